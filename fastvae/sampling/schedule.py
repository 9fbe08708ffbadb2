"""Schedule: at which step each pixel of each operator is computed, in as few calls as the dependencies allow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .graph import Operator, Read

__all__ = ["UNUSED", "Ints", "Needs", "Reads", "Schedule", "levels", "make_schedule"]

Ints = NDArray[np.int64]
Reads = dict[Operator, list[Read]]  # the reads of each operator that are not all padding
# For each operator its passes; for each pass and each of the operator's reads, which pass of the source it waits for,
# -1 for none. An operator has several passes only where the channels of a pixel are drawn one after the other.
Needs = dict[Operator, list[list[int]]]
UNUSED = np.int64(1) << 40  # the step of a pixel that nothing needs


@dataclass(frozen=True, eq=False)
class Schedule:
    """Steps of every operator's pixels.

    Attributes:
        orders: for each operator the pixels that are needed (numbers in its box), in the order of their computation.
        steps: for each operator and each of its passes the step of these pixels, in that order: it never decreases.
    """

    orders: dict[Operator, Ints]
    steps: dict[Operator, list[Ints]]


def make_schedule(
    operators: Sequence[Operator],
    reads: Reads,
    output: Read,
    needed: dict[Operator, NDArray[np.bool_]],
    draws: Sequence[Ints],
    keys: dict[Operator, Ints | None],
    needs: Needs,
    ends: Sequence[int],
) -> Schedule:
    """Compute every pixel of every operator as late as it is needed, and neighbours in one call where that is possible.

    A pixel of an operator can be computed from the step on at which all that it reads is there, and must be before the
    first step at which something reads it. From the last operator to the first, pixels in a row (in the order of their
    draws) share a step as long as these intervals overlap, which gives the fewest calls for each operator: what reads
    finished rows only is computed a whole row at once.

    Args:
        operators: in topological order, the image first.
        reads: of each operator.
        output: where the parameters are read.
        needed: the pixels of each operator that are computed.
        draws: for each group of channels the step (H * W,) at which each pixel is drawn.
        keys: for each operator a number for each pixel of its box, which orders them as the draws do; None if there is
            no such order.
        needs: the passes.
        ends: for each group of channels the pass of the output operator that its draw waits for.
    """
    ready = _ready(operators, reads, draws, needs)
    due = {op: [np.full(op.box.height * op.box.width, UNUSED) for _ in needs[op]] for op in operators[1:]}
    image = operators[0]
    mine, theirs = output.pairs(image.box)
    last = output.value.operator
    if last is not image:
        for step, number in zip(draws, ends, strict=True):
            np.minimum.at(due[last][number], theirs, step[mine])
    orders, steps = {}, {}
    for op in reversed(operators[1:]):
        cells = np.flatnonzero(needed[op])
        orders[op], steps[op] = _grouped(cells, ready[op], due[op], keys[op])
        for number, needed_passes in enumerate(needs[op]):
            step = np.full(op.box.height * op.box.width, UNUSED)
            step[orders[op]] = steps[op][number]
            for read, source_pass in zip(reads[op], needed_passes, strict=True):
                source = read.value.operator
                if source is not image and source_pass >= 0:
                    mine, theirs = read.pairs(op.box)
                    np.minimum.at(due[source][source_pass], theirs, step[mine])
    first = draws[0]
    key = keys[image]
    orders[image] = np.lexsort((np.arange(len(first)), first if key is None else key))
    steps[image] = [step[orders[image]] for step in draws]
    return Schedule(orders, steps)


def _ready(
    operators: Sequence[Operator], reads: Reads, draws: Sequence[Ints], needs: Needs
) -> dict[Operator, list[Ints]]:
    """The first step at which everything that a pixel reads is there."""
    ready = {operators[0]: [step + 1 for step in draws]}
    for op in operators[1:]:
        ready[op] = []
        for needed_passes in needs[op]:
            time = np.zeros(op.box.height * op.box.width, dtype=np.int64)
            for read, number in zip(reads[op], needed_passes, strict=True):
                if number < 0:
                    continue
                mine, theirs = read.pairs(op.box)
                np.maximum.at(time, mine, ready[read.value.operator][number][theirs])
            ready[op].append(time)
    return ready


def _grouped(cells: Ints, ready: list[Ints], due: list[Ints], key: Ints | None) -> tuple[Ints, list[Ints]]:
    """The order of pixels and their steps, by the fewest points that hit all intervals [ready, due]."""
    for keyed in (key, due[-1]):
        if keyed is None:
            continue
        order = cells[np.argsort(keyed[cells], kind="stable")]
        first = [np.maximum.accumulate(each[order]) for each in ready]
        last = [np.minimum.accumulate(each[order][::-1])[::-1] for each in due]
        if keyed is due[-1] or all((a <= b).all() for a, b in zip(first, last, strict=True)):
            break
    return order, [_stabbed(a, b) for a, b in zip(first, last, strict=True)]


def _stabbed(ready: Ints, due: Ints) -> Ints:
    """One step for each interval, both ends of which never decrease."""
    steps = due.copy()
    start = 0
    while start < len(due):
        end = max(start + 1, int(np.searchsorted(ready, due[start], side="right")))
        steps[start:end] = due[start]
        start = end
    return steps


def levels(operators: Sequence[Operator], reads: Reads, output: Read) -> tuple[Ints | None, NDArray[np.bool_]]:
    """The length of the longest chain of pixels that ends at each one: no schedule draws a pixel in an earlier step.

    Returns:
        The levels (H * W,), None if the dependencies go in a circle; and the dependencies (H * W, H * W): the
        parameters of a pixel (row) depend on the value of a pixel (column).
    """
    depends = _dependencies(operators, reads, output)
    level = np.full(len(depends), -1)
    waits, readers = depends.sum(1), np.ascontiguousarray(depends.T)
    front = np.flatnonzero(waits == 0)
    number = 0
    while len(front):
        level[front] = number
        waits = waits - readers[front].sum(0)
        front = np.flatnonzero((waits == 0) & (level < 0))
        number += 1
    return (None if (level < 0).any() else level), depends


def _dependencies(operators: Sequence[Operator], reads: Reads, output: Read) -> NDArray[np.bool_]:
    """By bit sets, from the image to the parameters."""
    image = operators[0]
    pixels = image.box.height * image.box.width
    bits = {image: np.packbits(np.eye(pixels, dtype=bool), axis=1)}
    last_reader = {read.value.operator: op for op in operators for read in reads[op]}
    for op in operators[1:]:
        bits[op] = np.zeros((op.box.height * op.box.width, bits[image].shape[1]), dtype=np.uint8)
        for read in reads[op]:
            _join(bits[op], bits[read.value.operator], *read.pairs(op.box))
        for source in {read.value.operator for read in reads[op]}:
            if last_reader[source] is op and source not in (image, output.value.operator):
                del bits[source]
    result = np.zeros((pixels, bits[image].shape[1]), dtype=np.uint8)
    _join(result, bits[output.value.operator], *output.pairs(image.box))
    return np.unpackbits(result, axis=1, count=pixels).astype(bool)


def _join(bits: NDArray[np.uint8], source: NDArray[np.uint8], mine: Ints, theirs: Ints) -> None:
    if len(mine) < 2 or (np.diff(mine) > 0).all():
        bits[mine] |= source[theirs]
        return
    starts = np.flatnonzero(np.diff(mine, prepend=-1))  # attention: the pixels are sorted, each has many
    for pixel, part in zip(mine[starts], np.split(theirs, starts[1:]), strict=True):
        bits[pixel] |= np.bitwise_or.reduce(source[part], axis=0)
