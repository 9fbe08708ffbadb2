"""Counter-based random numbers: every draw has an address, so chunking, batching and device cannot change it."""

import math

import torch
from torch import Tensor

from fastvae import reference

__all__ = ["normal", "uniform"]

_SMALLEST_GAP = 2.0**-24  # float32 has no number between 1 - 2^-24 and 1


def uniform(
    seed: int, ids: Tensor, rows: Tensor, width: int, *, tag: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in the open interval (0, 1), addressed by (seed, id, row, column).

    Equal to ``(reference.philox(seed, ids, rows, width, tag) + 0.5) * 2**-32``, Philox 4x32-10 of Salmon et al.,
    "Parallel random numbers: as easy as 1, 2, 3" (2011). The value at an address depends on nothing else.

    Args:
        seed: an integer in [0, 2^64).
        ids: (N,) int64 in [0, 2^32), for example global datapoint or sample numbers.
        rows: (R,) int64 in [0, 2^32), for example importance-sample or pixel numbers.
        width: the number of columns, for example latent dimensions or channels.
        tag: an integer in [0, 2^32) that separates independent uses of one seed.
        dtype: torch.float32 or torch.float64.

    Returns:
        (N, R, width) on the device of ``ids``.

    Raises:
        TypeError: if ``ids`` or ``rows`` are not int64, or ``dtype`` is neither float32 nor float64.
        ValueError: if a number is out of range or a shape does not fit.

    Example:
        >>> ids, rows = torch.arange(3), torch.arange(100)
        >>> u = uniform(0, ids, rows, 5)
        >>> bool((u[1:2, 40:50] == uniform(0, ids[1:2], rows[40:50], 5)).all())
        True
    """
    bits = _bits(seed, ids, rows, width, tag, dtype)
    if dtype == torch.float64:
        return bits.double().add_(0.5).mul_(2.0**-32)
    return bits.double().add_(0.5).mul_(2.0**-32).float().clamp_(max=1.0 - _SMALLEST_GAP)


def normal(
    seed: int, ids: Tensor, rows: Tensor, width: int, *, tag: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers, addressed by (seed, id, row, column); see :func:`uniform`.

    Box and Muller's transform of pairs of 32-bit uniform numbers: magnitudes reach 6.76.

    Returns:
        (N, R, width) on the device of ``ids``.

    Example:
        >>> z = normal(0, torch.arange(10), torch.arange(1000), 4)
        >>> bool(z.mean().abs() < 0.02), bool((z.std() - 1).abs() < 0.02)
        (True, True)
    """
    even_width = width + width % 2 if width > 0 else width  # a negative one is refused below
    bits = _bits(seed, ids, rows, even_width, tag, dtype).to(dtype)
    first, second = bits[..., 0::2], bits[..., 1::2]
    radius = first.add(0.5).mul_(2.0**-32).log_().mul_(-2.0).clamp_(min=0.0).sqrt_()
    angle = second.mul(2.0 * math.pi * 2.0**-32)
    bits[..., 0::2] = angle.cos().mul_(radius)
    bits[..., 1::2] = angle.sin().mul_(radius)
    return bits[..., :width]


def _bits(seed: int, ids: Tensor, rows: Tensor, width: int, tag: int, dtype: torch.dtype) -> Tensor:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    for name, tensor in (("ids", ids), ("rows", rows)):
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
        if tensor.ndim != 1:
            raise ValueError(f"{name} must have one dimension, got shape {tuple(tensor.shape)}")
    if ids.device != rows.device:
        raise ValueError(f"ids and rows must be on one device, got {ids.device} and {rows.device}")
    for name, number in (("seed", seed), ("tag", tag), ("width", width)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name} must be an integer, got {number!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")
    if not 0 <= tag < 2**32:
        raise ValueError(f"tag must be in [0, 2^32), got {tag}")
    if width < 0:
        raise ValueError(f"width must not be negative, got {width}")
    return reference.philox(seed, ids, rows, width, tag)
