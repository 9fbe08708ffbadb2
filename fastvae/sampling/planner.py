"""Planner: from operators to schedules, derived from offsets alone; the cheapest is chosen."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .axes import image_layout
from .channels import order_channels
from .graph import Box, Linear, Operator, Read, Value
from .lowering import Lowering
from .plan import TITLES, Cells, Plan, ScheduleName
from .schedule import Ints, Needs, Reads, levels, make_schedule
from .trace import NotAutoregressiveError, describe

__all__ = ["Planner", "cheapest"]

_MOST_PIXELS = 1 << 14  # the dependencies of all pixels on all others fit into memory


class Planner:
    """The schedules of a lowered network.

    Args:
        lowering: the network as operators on pixels.

    Raises:
        NotAutoregressiveError: if a value depends on itself, or there is no order in which pixels can be drawn.
    """

    def __init__(self, lowering: Lowering) -> None:
        self.lowering = lowering
        self.height, self.width = lowering.height, lowering.width
        value: Value = lowering.values[lowering.trace.output]
        if value.layout != image_layout(value.sample.shape[2]):
            raise lowering.error(lowering.trace.output, "gives something else than (N, C * P, H, W)")
        self.output = Read(value, (-value.origin[0], -value.origin[1]))
        self.operators, self.reads, self.needed = _prune(lowering, self.output)
        self.needs: Needs = {op: [[0] * len(self.reads[op])] for op in self.operators}
        self.ends = [0]
        self.groups: tuple[slice, ...] = (slice(0, lowering.pixels.features[0]),)
        self.level: Ints | None = None
        self.is_raster = True
        self.skew = self._order()

    def plans(self) -> list[Plan]:
        """All schedules worth a comparison; where they cost the same, the first is taken."""
        if self.level is not None:
            return [self._by_level(self.level), *([self._skewed("row", self.width)] if self.is_raster else [])]
        plans = [self._skewed("wavefront", self.skew), self._skewed("row", self.width)]
        return plans if self.skew < self.width else plans[::-1]

    def _order(self) -> int:
        """The smallest skew, and an order of the channels if the pixels themselves have none; 0 for levels."""
        raster = _raster_skew(self.reads, self.output)
        uniform = all(read.is_uniform for reads in self.reads.values() for read in reads)
        if uniform and self._is_valid(raster):
            return next(skew for skew in range(1, raster + 1) if self._is_valid(skew))
        error = None if not uniform else _not_causal(self.operators, self.reads, self.output, raster, self.lowering)
        if error is None or error.offset != (0, 0):
            return self._find_levels(error)
        if self.lowering.pixels.features[0] == 1:
            raise error
        channels = order_channels(self.operators, self.reads, self.output, raster, self.lowering.fixed)
        if channels is None:
            raise error
        self.groups, self.needs, self.ends = channels.groups, channels.needs, channels.ends
        return channels.skew

    def _find_levels(self, error: NotAutoregressiveError | None) -> int:
        """An order of the pixels other than raster order."""
        pixels = self.height * self.width
        if pixels > _MOST_PIXELS:
            message = f"the dependencies between {pixels} pixels are too many to be ordered; raster order is needed"
            raise error or self.lowering.error(self.lowering.trace.output, message)
        self.level, depends = levels(self.operators, self.reads, self.output)
        if self.level is None:
            raise error or self._no_order(depends)
        self.is_raster = not np.triu(depends).any()
        return 0

    def _no_order(self, depends: NDArray[np.bool_]) -> NotAutoregressiveError:
        """Name pixels that depend on each other."""
        own = np.flatnonzero(depends.diagonal())
        if len(own):
            first = f"the parameters of pixel {self._place(own[0])} depend on that pixel itself"
        else:
            one, other = self._circle(depends)
            first = f"pixels {self._place(one)} and {self._place(other)} depend on each other"
        image = self.lowering.pixels
        read = next(op for op in self.operators if any(each.value.operator is image for each in op.reads))
        return NotAutoregressiveError(
            f"the model is not causal in any order of the pixels: {first}. Mask the operators that read the image (the "
            f"first is {describe(read.node)}) and those behind them by one order, the first without the pixel itself",
            offset=(0, 0) if len(own) else None,
        )

    def _circle(self, depends: NDArray[np.bool_]) -> tuple[int, int]:
        """Neighbours in a circle: from a pixel that cannot be drawn to one that it waits for, until one comes again."""
        waits = np.ones(len(depends), dtype=bool)
        while (drawn := waits & ~depends[:, waits].any(1)).any():
            waits &= ~drawn
        path = [int(np.flatnonzero(waits)[0])]
        while len(set(path)) == len(path):
            path.append(int(np.flatnonzero(depends[path[-1]] & waits)[0]))
        return path[-2], path[-1]

    def _place(self, pixel: int) -> tuple[int, int]:
        return int(pixel) // self.width, int(pixel) % self.width

    def _is_valid(self, skew: int) -> bool:
        return _leads(self.operators, self.reads, self.output, skew)[self.lowering.pixels] <= -1

    def _skewed(self, name: ScheduleName, skew: int) -> Plan:
        keys: dict[Operator, Ints | None] = {op: _diagonals(op.box, skew) for op in self.operators}
        count = len(self.groups)
        draw = _diagonals(self.lowering.pixels.box, skew)
        return self._plan(name, skew, [count * draw + number for number in range(count)], keys)

    def _by_level(self, level: Ints) -> Plan:
        """Every pixel at its level, operators on other grids than the image by when they are due."""
        box = self.lowering.pixels.box
        return self._plan("levels", 0, [level], {op: level if op.box == box else None for op in self.operators})

    def _plan(self, name: ScheduleName, skew: int, draws: Sequence[Ints], keys: dict[Operator, Ints | None]) -> Plan:
        schedule = make_schedule(
            self.operators, self.reads, self.output, self.needed, draws, keys, self.needs, self.ends
        )
        cells, known = {}, {}
        for op in self.operators:
            order = schedule.orders[op]
            key = (op.box, order.tobytes())
            if key not in known:
                known[key] = _cells(order, op.box)
            cells[op] = known[key]
        steps = np.arange(max(int(draw.max()) for draw in draws) + 1)
        passes = {
            op: [np.searchsorted(each, steps, side="right") for each in schedule.steps[op]] for op in self.operators
        }
        return Plan(
            name, self.operators, self.lowering.pixels, self.output, skew, cells, passes, self.height, self.width,
            self.groups,
        )  # fmt: skip


def _diagonals(box: Box, skew: int) -> Ints:
    """Column + skew * row of all pixels."""
    return (np.arange(box.left, box.right) + skew * np.arange(box.top, box.bottom)[:, None]).ravel()


def _cells(order: Ints, box: Box) -> Cells:
    rows, columns = np.divmod(order, max(1, box.width))
    places = np.zeros(box.height * box.width, dtype=np.int64)
    places[order] = np.arange(1, len(order) + 1)
    return Cells(rows + box.top, columns + box.left, box, places.reshape(box.height, box.width))


def _prune(lowering: Lowering, output: Read) -> tuple[list[Operator], Reads, dict[Operator, NDArray[np.bool_]]]:
    """Drop operators, reads and pixels that no parameter of the image depends on."""
    image = lowering.pixels.box
    needed = {op: np.zeros((op.box.height, op.box.width), dtype=bool) for op in lowering.operators}
    _mark(needed, output, np.ones((image.height, image.width), dtype=bool), image)
    reads: Reads = {}
    for op in reversed(lowering.operators):
        reads[op] = [read for read in op.reads if _mark(needed, read, needed[op], op.box)]
        if isinstance(op, Linear):
            op.taps = [tap for tap in op.taps if tap[1] in reads[op]]
    pixels = lowering.pixels
    needed[pixels][:] = True  # every pixel is drawn
    alive = [op for op in lowering.operators if needed[op].any()]
    read = {read.value.operator for op in alive for read in op.reads}  # all padding for their readers: no cells
    return [op for op in lowering.operators if needed[op].any() or op in read], reads, needed


def _mark(needed: dict[Operator, NDArray[np.bool_]], read: Read, mask: NDArray[np.bool_], box: Box) -> bool:
    """Mark what pixels ``mask`` of ``box`` read; False if it is all padding."""
    mine, theirs = read.pairs(box)
    theirs = theirs[mask.ravel()[mine]]
    needed[read.value.operator].reshape(-1)[theirs] = True
    return len(theirs) > 0


def _leads(operators: list[Operator], reads: Reads, output: Read, skew: int) -> dict[Operator, int]:
    """Longest paths: the lead of an operator is the latest time at which anything reads it, relative to the draw."""
    never = -(10**9)
    leads = dict.fromkeys(operators, never)
    leads[output.value.operator] = _time(output, skew)
    for op in reversed(operators):
        for read in reads[op]:
            source = read.value.operator
            leads[source] = max(leads[source], leads[op] + _time(read, skew))
    return leads


def _time(read: Read, skew: int) -> int:
    return read.offset[1] + skew * read.offset[0]


def _raster_skew(reads: Reads, output: Read) -> int:
    """A skew that orders the two ends of every path as raster order does, however far to the side it goes.

    It can exceed the width of the image: narrow images, deep networks.
    """
    return 1 + abs(output.offset[1]) + sum(max((abs(d.offset[1]) for d in each), default=0) for each in reads.values())


def _not_causal(
    operators: list[Operator], all_reads: Reads, output: Read, skew: int, lowering: Lowering
) -> NotAutoregressiveError:
    """Name the furthest path from a parameter to a pixel that is not drawn yet, and its last read of the future."""
    leads = _leads(operators, all_reads, output, skew)
    op: Operator = lowering.pixels
    steps: list[tuple[Operator, tuple[int, int]]] = []
    while op is not output.value.operator or not steps:
        readers = [(r, read) for r in operators for read in all_reads[r] if read.value.operator is op]
        reader, read = next((r, d) for r, d in readers if leads[r] + _time(d, skew) == leads[op])
        steps.append((reader, read.offset))
        op = reader
    rows = output.offset[0] + sum(offset[0] for _, offset in steps)
    columns = output.offset[1] + sum(offset[1] for _, offset in steps)
    together = " (the channels of a pixel are drawn together)" if rows == columns == 0 else ""
    reads_ahead = max(steps, key=lambda step: step[1][1] + skew * step[1][0])[0]
    return NotAutoregressiveError(
        f"the model is not causal in raster order: the parameters of pixel (i, j) depend on pixel "
        f"(i{rows:+d}, j{columns:+d}){together} by way of {describe(reads_ahead.node)}. "
        "Mask that operator (type A in the first layer, type B later), or shift its input",
        offset=(rows, columns),
    )


def cheapest(plans: Sequence[Plan], schedule: str, batch: int) -> Plan:
    """The plan for a batch: by estimated time, or the one that was asked for.

    Raises:
        ValueError: if there is no such plan.
    """
    if schedule == "auto":
        plan = min(plans, key=lambda each: each.cost(batch))
        plan.reason = _reason(plan, plans)
        return plan
    for plan in plans:
        if plan.name == schedule:
            plan.reason = "as asked for"
            return plan
    raise ValueError(f"schedule {schedule!r} does not exist for this model, only {[plan.name for plan in plans]}")


def _reason(plan: Plan, plans: Sequence[Plan]) -> str:
    """Estimates of all schedules for a small and a large batch."""
    if len(plans) == 1:
        return "the only schedule"
    each = [
        f"{TITLES[other.name]} {1e3 * other.cost(1):.3g} ms for 1 image, {1e3 * other.cost(64):.3g} for 64"
        for other in (plan, *(other for other in plans if other is not plan))
    ]
    return f"as estimated on one CPU core: {'; '.join(each)}"
