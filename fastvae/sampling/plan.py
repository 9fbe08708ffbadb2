"""Plan: which pixels of which operator are computed at which step, derived from offsets alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .axes import image_layout
from .graph import Box, Linear, Operator, Pixels, Read, Value
from .lowering import Lowering
from .trace import NotAutoregressiveError, describe

__all__ = ["Cells", "Plan", "make_plan"]

Reads = dict[Operator, list[Read]]  # the reads of each operator that are not all padding


@dataclass(frozen=True, eq=False)
class Cells:
    """The pixels of an operator in the order of their computation, by time column + skew * row, then by row."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    times: NDArray[np.int64]
    box: Box
    places: NDArray[np.int64]  # (rows, columns) of the box -> 1 + index in this order, 0 where nothing is computed

    def __len__(self) -> int:
        return len(self.rows)

    def lookup(self, rows: NDArray[np.int64], columns: NDArray[np.int64], box: Box) -> NDArray[np.int64]:
        """1 + index of pixels, 0 outside ``box``."""
        inside = (rows >= box.top) & (rows < box.bottom) & (columns >= box.left) & (columns < box.right)
        places = np.zeros(rows.shape, dtype=np.int64)
        places[inside] = self.places[rows[inside] - self.box.top, columns[inside] - self.box.left]
        return places


@dataclass(eq=False)
class Plan:
    """A schedule: step ``t`` computes, operator by operator, the pixels with time at most ``t + lead``.

    Attributes:
        operators: those that are needed, in order; the first is the image.
        output: the value that holds the parameters, and where it is read.
        skew: pixel (i, j) is drawn at step j + skew * i.
        leads: how many steps an operator runs ahead of the draw (negative: behind).
        cells: the pixels of each operator.
        bounds: for each operator, the number of cells done after each step.
        cached: operators whose cells are kept; the others live for one step.
    """

    operators: list[Operator]
    pixels: Pixels
    output: Read
    skew: int
    leads: dict[Operator, int]
    cells: dict[Operator, Cells]
    bounds: dict[Operator, NDArray[np.int64]]
    cached: set[Operator]
    height: int
    width: int
    _direct: dict[Any, bool] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """Serial steps for an image; naive sampling takes height * width."""
        return len(self.bounds[self.pixels])

    @property
    def most_pixels(self) -> int:
        """The most pixels drawn in one step."""
        return int(np.diff(self.bounds[self.pixels], prepend=0).max())

    @property
    def macs(self) -> int:
        """Multiplications for one image."""
        return sum(len(self.cells[op]) * len(op.taps) * self._matrix(op) for op in self._linear())

    @property
    def naive_macs(self) -> int:
        """Multiplications for one image with a full pass of the dense operators per pixel."""
        passes = self.height * self.width
        return passes * sum(op.macs * op.box.height * op.box.width for op in self._linear())

    @property
    def cache_bytes(self) -> int:
        """Bytes kept for one image."""
        return sum((len(self.cells[op]) + 1) * int(np.prod(op.features)) * op.dtype.itemsize for op in self.cached)

    def only(self, steps: Sequence[int]) -> "Plan":
        """The same schedule for images in which all pixels of the other steps are known.

        What those steps compute is computed with the next one that draws: before the first of them that is one
        parallel pass over all that is known, and after the last one nothing.
        """
        return replace(self, bounds={op: bounds[list(steps)] for op, bounds in self.bounds.items()})

    def steps_for(self, unknown: NDArray[np.bool_]) -> tuple[int, ...]:
        """The steps that draw any of the pixels (H, W) that are not known."""
        cells = self.cells[self.pixels]
        drawn = np.flatnonzero(unknown[cells.rows, cells.columns])
        steps = np.searchsorted(self.bounds[self.pixels], drawn, side="right")
        return tuple(int(step) for step in np.unique(steps))

    def rows_done(self) -> NDArray[np.int64]:
        """How many rows of the image, from the first on, are complete after each step."""
        last = np.maximum.accumulate(self.cells[self.pixels].places.max(1))  # of each row, or of one above
        return np.searchsorted(last, self.bounds[self.pixels], side="right")

    def is_direct(self, reader: Operator, read: Read) -> bool:
        """Whether a read takes the same cells in the same order: a slice instead of a gather."""
        mine, theirs = self.cells[reader], self.cells[read.value.operator]
        if read.offset != (0, 0) or mine is not theirs:
            return False
        key = (mine, read.value.box)
        if key not in self._direct:
            self._direct[key] = bool(theirs.lookup(mine.rows, mine.columns, read.value.box).all())
        return self._direct[key]

    def __str__(self) -> str:
        pixels, steps = self.height * self.width, self.num_steps
        return "\n".join(
            [
                f"wavefront over {self.height} x {self.width} pixels: pixel (i, j) at step j + {self.skew} i",
                f"  {'steps':<16}{steps} instead of {pixels} ({pixels / steps:.1f}x fewer)",
                f"  {'most pixels':<16}{self.most_pixels} in one step",
                f"  {'operators':<16}{len(self.operators) - 1}, {len(self._linear())} with weights",
                f"  {'work':<16}{2 * self.macs / 1e6:.4g} MFLOP per image, naive {2 * self.naive_macs / 1e6:.4g} "
                f"({self.naive_macs / max(1, self.macs):.0f}x)",
                f"  {'cache':<16}{self.cache_bytes / 1024:.4g} KiB per image, {len(self.cached)} operators",
            ]
        )

    def _linear(self) -> list[Linear]:
        return [op for op in self.operators if isinstance(op, Linear)]

    @staticmethod
    def _matrix(op: Linear) -> int:
        sizes = op.taps[0][1].value.sample.shape[2:] if op.taps else (0,)
        return int(np.prod(sizes)) * op.features[0]


def make_plan(lowering: Lowering) -> Plan:
    """The wavefront with the smallest skew; where layers skip pixels (dilation), other schedules can take fewer steps.

    Raises:
        NotAutoregressiveError: if a value depends on itself or on later pixels in raster order.
    """
    height, width = lowering.height, lowering.width
    output_value: Value = lowering.values[lowering.trace.output]
    if output_value.layout != image_layout(output_value.sample.shape[2]):
        raise lowering.error(lowering.trace.output, "gives something else than (N, C * P, H, W)")
    output = Read(output_value, (-output_value.origin[0], -output_value.origin[1]))
    operators, reads, needed = _prune(lowering, output)
    raster = _raster_skew(reads, output)
    if _leads(operators, reads, output, raster)[lowering.pixels] > -1:
        raise _not_causal(operators, reads, output, raster, lowering)
    for skew in range(1, raster + 1):
        leads = _leads(operators, reads, output, skew)
        if leads[lowering.pixels] <= -1:
            break
    cells = _all_cells(operators, needed, skew, lowering)
    steps = np.arange(width + skew * (height - 1))
    leads[lowering.pixels] = 0  # the draw itself
    bounds = {op: np.searchsorted(cells[op].times, steps + leads[op], side="right") for op in operators}
    plan = Plan(operators, lowering.pixels, output, skew, leads, cells, bounds, set(), height, width)
    plan.cached = _cached(plan)
    return plan


def _prune(lowering: Lowering, output: Read) -> tuple[list[Operator], Reads, dict[Operator, NDArray[np.bool_]]]:
    """Drop operators, reads and pixels that no parameter of the image depends on."""
    image = Box(0, lowering.height, 0, lowering.width)
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
    source, (row, column) = read.value.operator, read.offset
    window = Box(box.top + row, box.bottom + row, box.left + column, box.right + column) & read.value.box
    if not window.height or not window.width:
        return False
    part = mask[
        window.top - row - box.top : window.bottom - row - box.top,
        window.left - column - box.left : window.right - column - box.left,
    ]
    needed[source][
        window.top - source.box.top : window.bottom - source.box.top,
        window.left - source.box.left : window.right - source.box.left,
    ] |= part
    return bool(part.any())


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


def _all_cells(
    operators: list[Operator], needed: dict[Operator, NDArray[np.bool_]], skew: int, lowering: Lowering
) -> dict[Operator, Cells]:
    known: dict[tuple[Box, bytes], Cells] = {}
    result = {}
    for op in operators:
        key = (op.box, needed[op].tobytes())
        if key not in known:
            known[key] = _order(needed[op], op.box, skew)
        result[op] = known[key]
    return result


def _order(mask: NDArray[np.bool_], box: Box, skew: int) -> Cells:
    rows, columns = np.nonzero(mask)
    rows, columns = rows + box.top, columns + box.left
    times = columns + skew * rows
    order = np.lexsort((rows, times))
    rows, columns, times = rows[order], columns[order], times[order]
    places = np.zeros((box.height, box.width), dtype=np.int64)
    places[rows - box.top, columns - box.left] = np.arange(1, len(rows) + 1)
    return Cells(rows, columns, times, box, places)


def _cached(plan: Plan) -> set[Operator]:
    """Operators that something reads in another step or at another pixel."""
    cached: set[Operator] = {plan.pixels, plan.output.value.operator}
    for op in plan.operators:
        for read in op.reads if len(plan.cells[op]) else ():
            source = read.value.operator
            if plan.leads[op] != plan.leads[source] or not plan.is_direct(op, read):
                cached.add(source)
    return cached
