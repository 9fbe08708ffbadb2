"""Counter-based random numbers: every draw has an address, so chunking, batching and device cannot change it."""

import math

import torch
from torch import Tensor

from fastvae.reference.philox import MASK, MULTIPLIERS, WEYL

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
    bits = torch.stack(_words(seed, ids, rows, width, tag, dtype), dim=-1).flatten(2)[..., :width]
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
    words = _words(seed, ids, rows, width, tag, dtype)
    columns = []
    for first, second in (words[:2], words[2:]):
        radius = first.to(dtype).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).clamp_(min=0.0).sqrt_()
        angle = second.to(dtype).mul_(2.0 * math.pi * 2.0**-32)
        columns += [angle.cos().mul_(radius), angle.sin_().mul_(radius)]
    return torch.stack(columns, dim=-1).flatten(2)[..., :width]


def _words(
    seed: int, ids: Tensor, rows: Tensor, width: int, tag: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of every block of columns, (N, R, ceil(width / 4)) each: ``reference.philox`` in few passes."""
    _check(seed, ids, rows, width, tag, dtype)
    shape = (ids.shape[0], rows.shape[0], -(-width // 4))
    # cloned, as they are overwritten: contiguous() might return the memory of ids
    c0 = torch.arange(shape[2], device=ids.device).expand(shape).clone(memory_format=torch.contiguous_format)
    c2 = ids[:, None, None].expand(shape).clone(memory_format=torch.contiguous_format)
    c1 = rows[None, :, None].expand(shape)
    c3 = torch.full((1, 1, 1), tag, device=ids.device).expand(shape)
    products = [torch.empty_like(c0) for _ in range(4)]  # of this round, and of the round before
    keys = (seed & MASK, seed >> 32)
    for _ in range(10):
        p0, p1, *_ = products
        torch.mul(c0, MULTIPLIERS[0], out=p0)
        torch.mul(c2, MULTIPLIERS[1], out=p1)
        # c1 and c3 are the products of the round before: their upper halves are masked away together with the sign
        torch.bitwise_right_shift(p1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(keys[0]).bitwise_and_(MASK)
        torch.bitwise_right_shift(p0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(keys[1]).bitwise_and_(MASK)
        c1, c3 = p1, p0
        keys = ((keys[0] + WEYL[0]) & MASK, (keys[1] + WEYL[1]) & MASK)
        products = products[2:] + products[:2]
    return c0, c1.bitwise_and_(MASK), c2, c3.bitwise_and_(MASK)


def _check(seed: int, ids: Tensor, rows: Tensor, width: int, tag: int, dtype: torch.dtype) -> None:
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
