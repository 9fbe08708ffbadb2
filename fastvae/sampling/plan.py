"""Plan: which pixels of which operator are computed at which step, and what that costs."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .graph import Box, Linear, Operator, Pixels, Read

__all__ = ["TITLES", "Cells", "Plan", "ScheduleName"]

ScheduleName = Literal["wavefront", "row", "levels"]
TITLES: dict[str, str] = {"wavefront": "wavefront", "row": "row by row", "levels": "levels of the dependencies"}

# What a batch of images costs on one core of a Zen 4 CPU in float32, in seconds, fitted to four networks in both
# schedules and three batch sizes (within 15 %). The choice between schedules depends on the ratios only.
_CALL = 1.8e-6  # a call, with little to do
_MAC = 2.1e-11  # a multiplication of a matrix product
_WEIGHT = 1.5e-10  # a weight that a matrix product reads, whatever its number of rows
_MOVED = 6.7e-10  # a number that is gathered


@dataclass(frozen=True, eq=False)
class Cells:
    """The pixels of an operator in the order of their computation."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    box: Box
    places: NDArray[np.int64]  # (rows, columns) of the box -> 1 + index in this order, 0 where nothing is computed

    def __len__(self) -> int:
        return len(self.rows)

    def lookup(self, read: Read, box: Box) -> NDArray[np.int64]:
        """1 + index of what each pixel of a reader's box (rows, columns) reads, 0 where that is zero."""
        places = np.zeros(box.height * box.width, dtype=np.int64)
        mine, theirs = read.pairs(box)
        places[mine] = self.places.ravel()[theirs]
        return places.reshape(box.height, box.width)


@dataclass(eq=False)
class Plan:
    """A schedule: what each step computes, operator by operator, before it draws.

    Attributes:
        name: "wavefront" (pixel (i, j) at step j + skew * i), "row" (one pixel after the other, what reads finished
            rows a whole row at once) or "levels" (each pixel as soon as all it depends on is there).
        operators: those that are needed, in order; the first is the image.
        output: the value that holds the parameters, and where it is read.
        skew: pixel (i, j) is drawn at step j + skew * i (times the groups of channels); 0 for levels.
        cells: the pixels of each operator.
        passes: for each operator, and each time that it is computed for a pixel, the number of cells done after each
            step. It is more than once only for the groups of channels of a pixel that are drawn one after the other.
        groups: the channels that are drawn together, in their order.
        draws: for each step the pixels that are drawn, first and end in the order of the cells, and their group.
        starts: for each operator the number of its first cell that is computed, 0 where it is not named.
        cached: operators whose cells are kept; the others live for one step.
        reason: why this schedule was chosen.
    """

    name: ScheduleName
    operators: list[Operator]
    pixels: Pixels
    output: Read
    skew: int
    cells: dict[Operator, Cells]
    passes: dict[Operator, list[NDArray[np.int64]]]
    height: int
    width: int
    groups: tuple[slice, ...] = (slice(None),)
    draws: tuple[tuple[int, int, int], ...] = ()
    starts: dict[Operator, int] = field(default_factory=dict)
    cached: set[Operator] = field(default_factory=set)
    reason: str = ""
    _direct: dict[Any, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cached = _cached(self)
        self.draws = self.draws or tuple(self._draw(step) for step in range(self.num_steps))

    @property
    def bounds(self) -> dict[Operator, NDArray[np.int64]]:
        """For each operator the number of cells whose last pass is done after each step."""
        return {op: passes[-1] for op, passes in self.passes.items()}

    @property
    def num_steps(self) -> int:
        """Serial steps for an image; naive sampling takes height * width, or as often the groups of channels."""
        return len(self.passes[self.pixels][-1])

    @property
    def most_pixels(self) -> int:
        """The most pixels drawn in one step."""
        return max(int(np.diff(bounds, prepend=0).max()) for bounds in self.passes[self.pixels])

    @property
    def order(self) -> list[int]:
        """Numbers of the pixels, in raster order, in the order of their draws."""
        cells = self.cells[self.pixels]
        return (cells.rows * self.width + cells.columns).tolist() if self.name == "levels" else list(range(len(cells)))

    @cached_property
    def calls(self) -> dict[Operator, int]:
        """In how many steps each operator has something to compute."""
        return {
            op: sum(int((np.diff(bounds, prepend=0) > 0).sum()) for bounds in passes)
            for op, passes in self.passes.items()
        }

    @property
    def macs(self) -> int:
        """Multiplications for one image."""
        return sum(len(self.passes[op]) * len(self.cells[op]) * len(op.taps) * _matrix(op) for op in self.linear)

    @property
    def naive_macs(self) -> int:
        """Multiplications for one image with a full pass of the dense operators per pixel and group of channels."""
        passes = self.height * self.width * len(self.groups)
        return passes * sum(op.macs * op.box.height * op.box.width for op in self.linear)

    @property
    def cache_bytes(self) -> int:
        """Bytes kept for one image."""
        return sum((len(self.cells[op]) + 1) * int(np.prod(op.features)) * op.dtype.itemsize for op in self.cached)

    def only(self, unknown: NDArray[np.bool_]) -> "Plan":
        """The same schedule for images in which only some values (C, H, W) are unknown: the steps that draw these.

        What other steps compute is computed with the next one that draws: before the first of them that is one parallel
        pass over what is known and still read, and after the last one nothing.
        """
        chosen = list(self.steps_for(unknown))
        passes = {op: [bounds[chosen] for bounds in passes] for op, passes in self.passes.items()}
        draws = tuple(self.draws[step] for step in chosen)
        plan = replace(self, passes=passes, draws=draws)
        plan.starts = plan._first_needed(np.any(unknown, axis=0))
        return plan

    def pixel_steps(self, group: int = -1) -> NDArray[np.int64]:
        """The step at which each pixel is drawn, (H, W), or its last group of channels if these are drawn one by one.

        See :func:`fastvae.figures.wavefront` for a picture.
        """
        places = self.cells[self.pixels].places
        return np.searchsorted(self.passes[self.pixels][group], places - 1, side="right")

    def steps_for(self, unknown: NDArray[np.bool_]) -> tuple[int, ...]:
        """The steps that draw any of the values (C, H, W) that are not known."""
        steps = [self.pixel_steps(number)[unknown[group].any(0)] for number, group in enumerate(self.groups)]
        return tuple(int(step) for step in np.unique(np.concatenate(steps)))

    def rows_done(self) -> NDArray[np.int64]:
        """How many rows of the image, from the first on, are complete after each step."""
        last = np.maximum.accumulate(self.cells[self.pixels].places.max(1))  # of each row, or of one above
        return np.searchsorted(last, self.bounds[self.pixels], side="right")

    def cost(self, batch: int) -> float:
        """Estimated seconds for a batch on one CPU core: the calls of all steps, and the work, which all images share.

        Calls: one for each operator and step in which it has pixels, one for each gather of what it reads elsewhere,
        two for a draw. Work: multiplications, the weights that each product reads, and the numbers gathered.
        """
        calls = 2.0 * self.calls[self.pixels]
        work = self.macs * _MAC * batch
        for op in self.operators[1:]:
            gathered = self._gathered(op)
            calls += self.calls[op] * (1 + len(gathered))
            numbers = sum(int(np.prod(read.value.sample.shape[2:])) for reads in gathered for read in reads)
            work += numbers * len(self.cells[op]) * len(self.passes[op]) * batch * _MOVED
            if isinstance(op, Linear):
                work += self.calls[op] * len(op.taps) * _matrix(op) * _WEIGHT
        return calls * _CALL + work

    def _gathered(self, op: Operator) -> list[list[Read]]:
        """The reads of an operator that take a gather, those of one gather together."""
        if not len(self.cells[op]):
            return []
        if isinstance(op, Linear):
            return [] if not op.reads or (len(op.reads) == 1 and self.is_direct(op, op.reads[0])) else [op.reads]
        return [[read] for read in op.reads if not self.is_direct(op, read)]

    def is_direct(self, reader: Operator, read: Read) -> bool:
        """Whether a read takes the same cells in the same order: a slice instead of a gather."""
        mine, theirs = self.cells[reader], self.cells[read.value.operator]
        if read.offset != (0, 0) or not read.is_uniform or mine is not theirs:
            return False
        key = (mine, read.value.box)
        if key not in self._direct:
            seen = theirs.lookup(read, mine.box)
            self._direct[key] = bool(seen[mine.rows - mine.box.top, mine.columns - mine.box.left].all())
        return self._direct[key]

    def __str__(self) -> str:
        pixels, steps = self.height * self.width * len(self.groups), self.num_steps
        lines = [
            f"{TITLES[self.name]} over {self.height} x {self.width} pixels{_RULES[self.name].format(self)}",
            f"  {'steps':<16}{steps} instead of {pixels} ({pixels / steps:.1f}x fewer)",
            f"  {'most pixels':<16}{self.most_pixels} in one step",
            f"  {'operators':<16}{len(self.operators) - 1}, {len(self.linear)} with weights; "
            f"{sum(self.calls.values())} calls",
            f"  {'work':<16}{2 * self.macs / 1e6:.4g} MFLOP per image, naive {2 * self.naive_macs / 1e6:.4g} "
            f"({self.naive_macs / max(1, self.macs):.0f}x)",
            f"  {'cache':<16}{self.cache_bytes / 1024:.4g} KiB per image, {len(self.cached)} operators",
        ]
        if len(self.groups) > 1:
            lines.insert(2, f"  {'channels':<16}drawn one after the other, in {len(self.groups)} groups")
        return "\n".join([*lines, *([f"  {'chosen':<16}{self.reason}"] if self.reason else [])])

    def _first_needed(self, drawn: NDArray[np.bool_]) -> dict[Operator, int]:
        """The first cell of each operator that the parameters of some pixels (H, W) depend on."""
        needed = {op: np.zeros(op.box.height * op.box.width, dtype=bool) for op in self.operators}

        def mark(read: Read, box: Box, readers: NDArray[np.bool_]) -> None:
            mine, theirs = read.pairs(box)
            needed[read.value.operator][theirs[readers[mine]]] = True

        mark(self.output, self.pixels.box, drawn.ravel())
        for op in reversed(self.operators):
            for read in op.reads:
                mark(read, op.box, needed[op])
        starts = {}
        for op in self.operators:
            places = self.cells[op].places.ravel()[needed[op]]
            starts[op] = int(places[places > 0].min(initial=len(self.cells[op]) + 1)) - 1
        # what lives for one step only is read by its place in that step
        shared = [(op, read.value.operator) for op in self.operators for read in op.reads]
        shared = [(op, source) for op, source in shared if source not in self.cached]
        while uneven := [pair for pair in shared if starts[pair[0]] != starts[pair[1]]]:
            for op, source in uneven:
                starts[op] = starts[source] = min(starts[op], starts[source])
        return starts

    def _draw(self, step: int) -> tuple[int, int, int]:
        """At most one group of channels is drawn in a step."""
        ranges = [(int(b[step - 1]) if step else 0, int(b[step])) for b in self.passes[self.pixels]]
        number = next((number for number, (start, end) in enumerate(ranges) if end > start), 0)
        return (*ranges[number], number)

    @cached_property
    def linear(self) -> list[Linear]:
        """The operators with weights."""
        return [op for op in self.operators if isinstance(op, Linear)]


_RULES = {
    "wavefront": ": pixel (i, j) at step j + {0.skew} i",
    "row": ": one pixel after the other, what reads finished rows a row at once",
    "levels": ": each pixel as soon as all it depends on is there",
}


def _matrix(op: Linear) -> int:
    sizes = op.taps[0][1].value.sample.shape[2:] if op.taps else (0,)
    return int(np.prod(sizes)) * op.features[0]


def _cached(plan: Plan) -> set[Operator]:
    """Operators that something reads in another step or at another pixel, or that are computed more than once."""
    cached: set[Operator] = {plan.pixels, plan.output.value.operator}
    cached.update(op for op, passes in plan.passes.items() if len(passes) > 1)
    for op in plan.operators:
        for read in op.reads if len(plan.cells[op]) else ():
            source = read.value.operator
            together = np.array_equal(plan.passes[op][-1], plan.passes[source][-1])
            if len(plan.passes[op]) > 1 or not together or not plan.is_direct(op, read):
                cached.add(source)
    return cached
