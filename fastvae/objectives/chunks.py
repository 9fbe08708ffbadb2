"""How many samples to draw and to decode at once, within a budget of memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from fastvae.evaluation.draw import BLOCK_SAMPLES

__all__ = ["Chunks", "make_chunks"]

_BYTES_OF_NOISE = 64  # for each number: z, its gradient and score, and the integers of the generator


@dataclass(frozen=True)
class Chunks:
    """Samples drawn at once, and the part of them and of the datapoints that is decoded at once."""

    num_points: int
    num_samples: int
    draw: int
    samples: int
    points: int

    def draws(self) -> Iterator[tuple[int, int]]:
        """(first sample, how many) of each draw."""
        for first in range(0, self.num_samples, self.draw):
            yield first, min(self.draw, self.num_samples - first)

    def parts(self, count: int) -> Iterator[tuple[slice, slice]]:
        """(samples, datapoints) of each chunk of a draw of ``count`` samples."""
        for point in range(0, self.num_points, self.points):
            for sample in range(0, count, self.samples):
                yield slice(sample, min(sample + self.samples, count)), slice(point, point + self.points)


def make_chunks(
    num_points: int, num_samples: int, row_bytes: int, latent_size: int, max_bytes: int, addressed: bool
) -> Chunks | None:
    """Chunks of rows (datapoint, sample) of ``row_bytes`` each, ``max_bytes`` at once; None if all fit."""
    rows = max(1, max_bytes // max(row_bytes, 1))
    if rows >= num_points * num_samples:
        return None
    points = min(num_points, rows)
    samples = _even(num_samples, rows // points)
    if addressed:
        most = max_bytes // (_BYTES_OF_NOISE * num_points * max(latent_size, 1))
        draw = min(num_samples, samples * max(1, most // samples))
    else:  # proposals that draw for themselves do it in fixed blocks, or the draws would depend on the budget
        draw = min(num_samples, BLOCK_SAMPLES)
    return Chunks(num_points, num_samples, draw, samples, points)


def _even(total: int, most: int) -> int:
    """The size of nearly equal parts of ``total`` that are no larger than ``most``."""
    parts = -(-total // min(most, total))
    return -(-total // parts)
