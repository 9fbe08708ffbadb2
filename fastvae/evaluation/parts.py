"""An evaluation cut into parts, the same ones for any number of processes, and shared out among them."""

from collections.abc import Sequence
from dataclasses import dataclass

from .draw import BLOCK_POINTS, BLOCK_SAMPLES

__all__ = ["Part", "make_parts", "share"]

_PARTS = 64  # about: a kill costs each process a 64th of the work at most, and 64 processes have something to do
_FEWEST_ROWS = BLOCK_POINTS * BLOCK_SAMPLES  # of a part, where datapoints are few: less is not worth its start


@dataclass(frozen=True)
class Part:
    """Some samples of some datapoints."""

    points: range
    samples: range

    @property
    def rows(self) -> int:
        """How many passes of the decoder it takes."""
        return len(self.points) * len(self.samples)

    @property
    def name(self) -> str:
        """For a file."""
        points, samples = (f"{numbers.start}-{numbers.stop}" for numbers in (self.points, self.samples))
        return f"points-{points}-samples-{samples}.safetensors"


def make_parts(num_points: int, samples: range, whole_samples: bool = False) -> list[Part]:
    """Datapoints are cut first, for that costs nothing; where they are few, each group's samples are cut too.

    Cuts are at multiples of the fixed blocks in which some proposals draw, so the parts together draw what one
    evaluation draws. All samples of a group come before the next group. With ``whole_samples`` (where every part of a
    group would refine its proposals again) datapoints alone are cut, down to one: such proposals draw in no blocks.
    """
    size = max(-(-num_points // _PARTS), 1)
    if whole_samples:
        count = len(samples)
    else:
        size = _rounded_up(size, BLOCK_POINTS)
        pieces = _PARTS // max(-(-num_points // size), 1)
        fewest = -(-_FEWEST_ROWS // max(min(size, num_points), 1))
        count = _rounded_up(max(-(-len(samples) // max(pieces, 1)), fewest), BLOCK_SAMPLES)
    return [
        Part(range(start, min(start + size, num_points)), range(first, min(first + count, samples.stop)))
        for start in range(0, num_points, size)
        for first in range(samples.start, samples.stop, count)
    ]


def share(parts: Sequence[Part], size: int) -> list[list[Part]]:
    """The parts in ``size`` runs of neighbours with nearly equal numbers of rows."""
    total, before = sum(part.rows for part in parts), 0
    shares: list[list[Part]] = [[] for _ in range(size)]
    for part in parts:
        middle = before + part.rows / 2
        shares[min(int(size * middle / total), size - 1)].append(part)
        before += part.rows
    return shares


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
