"""How many datapoints and samples to work on at once, so that memory is bounded by a budget and not by M."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .draw import BLOCK_POINTS, BLOCK_SAMPLES

__all__ = ["OutputSizes", "Plan", "Sizes", "bytes_per_row", "default_max_bytes", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """Sizes of the three nested loops: encode ``points``, draw ``samples`` of each, decode ``chunk_*`` of them."""

    points: int
    samples: int
    chunk_points: int
    chunk_samples: int


@dataclass(frozen=True)
class Sizes:
    """Of one evaluation: bytes of the largest tensor for each row (datapoint, sample) that is decoded, and for each
    datapoint that is encoded; how many numbers one z is."""

    row_bytes: int
    point_bytes: int
    latent_size: int


def default_max_bytes(device: torch.device) -> int:
    """CPU: what stays in the cache, with work for every core. CUDA: enough work for the whole device."""
    return 2**28 if device.type == "cuda" else 2**24


def make_plan(num_points: int, num_samples: int, sizes: Sizes, max_bytes: int, addressed: bool) -> Plan:
    """The loops for at most ``max_bytes`` of rows (datapoint, sample) at once, and of datapoints."""
    rows = max(1, max_bytes // max(sizes.row_bytes, 1))
    if not addressed:  # fixed blocks, or the draws would depend on the budget
        points, samples = min(BLOCK_POINTS, num_points), min(BLOCK_SAMPLES, num_samples)
    else:
        # noise comes in larger pieces than decoding, many small operations that are each cheap; the generator works on
        # some twenty integers of 8 bytes at once for each number
        noise_rows = max(rows, max_bytes // (16 * max(sizes.latent_size, 1)))
        encoded = max(1, max_bytes // max(sizes.point_bytes, 1))
        points = max(1, min(noise_rows // num_samples, rows, encoded, num_points))
        samples = _even(num_samples, noise_rows // points)
    # many samples of few datapoints: what a likelihood prepares for a datapoint serves all of them
    chunk_samples = _even(samples, rows)
    most_points = min(points, rows // chunk_samples)
    chunk_points = -(-points // -(-points // most_points))  # nearly equal parts
    return Plan(points, samples, chunk_points, chunk_samples)


def _even(total: int, most: int) -> int:
    """The size of nearly equal parts of ``total`` that are no larger than ``most``, a multiple of 32 where it can be:
    matrix products run in blocks of so many rows, and 250 rows take longer than 256."""
    parts = -(-total // max(1, min(most, total)))
    size = -(-total // parts)
    rounded = -(-size // 32) * 32
    return rounded if rounded <= min(most, total) else size


def bytes_per_row(call: Callable[[int], object], first: "OutputSizes | None" = None) -> int:
    """Bytes of the largest tensor that a computation makes for each row.

    ``call(rows)`` runs it. Sizes that one row and two rows have in common (weights, masks) do not depend on rows.
    ``first`` watches the run of one row.
    """
    modes = first or OutputSizes(), OutputSizes()
    for rows, mode in enumerate(modes, start=1):
        with mode:
            call(rows)
    return max(modes[1].sizes - modes[0].sizes, default=0) // 2


class OutputSizes(TorchDispatchMode):
    """Notes the bytes of every tensor that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.sizes.add(tensor.numel() * tensor.element_size())
        return out
