"""Masks of locally masked convolution: for each pixel the taps that it may see, as the bits of one integer."""

from typing import Any, Literal

import torch
from torch import Tensor

from fastvae.reference.locally_masked_conv2d import unpack_tap_bits

from .orders import check_order, check_size

__all__ = ["LARGEST_KERNEL", "OrderMask", "mirror_tap_bits", "neighbours", "pack_tap_bits", "tap_bits"]

OrderMask = Literal["A", "B"]
LARGEST_KERNEL = 7  # 49 taps: the bits of 9 x 9 no longer fit into 64


def tap_bits(order: Any, size: tuple[int, int], kernel_size: int, *, mask: OrderMask, dilation: int = 1) -> Tensor:
    """The taps that come earlier in a generation order, for :func:`fastvae.ops.locally_masked_conv2d`.

    Args:
        order: (H * W, 2) integers, rows and columns with the first pixel first; see
            :func:`fastvae.ops.generation_order`.
        size: (H, W) of the image.
        kernel_size: k, odd and at most 7.
        mask: "A" without the pixel itself, "B" with it.
        dilation: the distance between taps in pixels.

    Returns:
        (H, W) int64 on the CPU: bit ``u * k + v`` is set where tap (u, v) is inside the image and earlier.

    Raises:
        TypeError: if ``order`` holds other things than integers.
        ValueError: if ``order`` does not have every pixel exactly once, or another argument is out of range.

    Example:
        >>> bits = tap_bits([[0, 0], [0, 1], [1, 1], [1, 0]], (2, 2), 3, mask="A")
        >>> [[f"{taps:09b}" for taps in row] for row in bits.tolist()]
        [['000000000', '000001000'], ['000100110', '000000011']]
    """
    height, width = check_size(size)
    check_kernel(kernel_size, mask, dilation)
    given = check_order(order, (height, width))
    rank = torch.empty(height * width + 1, dtype=torch.int64)
    rank[given[:, 0] * width + given[:, 1]] = torch.arange(height * width)
    rank[-1] = height * width  # what is outside comes last
    before = rank[neighbours(height, width, kernel_size, dilation)] < rank[:-1, None]  # (H * W, k * k)
    before[:, kernel_size * kernel_size // 2] = mask == "B"
    return pack_tap_bits(before).view(height, width)


def check_kernel(kernel_size: Any, mask: Any, dilation: Any) -> None:
    """Refuse what no operator here serves."""
    is_number = isinstance(kernel_size, int) and not isinstance(kernel_size, bool)
    if not is_number or kernel_size % 2 == 0 or not 1 <= kernel_size <= LARGEST_KERNEL:
        raise ValueError(f"kernel_size must be odd and at most {LARGEST_KERNEL}, got {kernel_size!r}")
    if mask not in ("A", "B"):
        raise ValueError(f'mask must be "A" (without the centre) or "B" (with it), got {mask!r}')
    if not isinstance(dilation, int) or isinstance(dilation, bool) or dilation < 1:
        raise ValueError(f"dilation must be a positive integer, got {dilation!r}")


def neighbours(
    height: int, width: int, kernel_size: int, dilation: int, *, device: torch.device | str | None = None
) -> Tensor:
    """(H * W, k * k) int64: the pixel under each tap of each pixel, and H * W where that is outside the image."""
    tap = torch.arange(kernel_size * kernel_size, device=device)
    pixel = torch.arange(height * width, device=device)[:, None]
    row = pixel // width + (tap // kernel_size - kernel_size // 2) * dilation
    col = pixel % width + (tap % kernel_size - kernel_size // 2) * dilation
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    return torch.where(inside, row * width + col, height * width)


def pack_tap_bits(live: Tensor) -> Tensor:
    """(..., T) bool -> (...) int64 with bit t set where ``live[..., t]``."""
    return (live.long() << torch.arange(live.shape[-1], device=live.device)).sum(-1)


def mirror_tap_bits(mask: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Who sees me, where ``mask`` says whom I see: the masks of the input gradient, a convolution of mirrored taps.

    Args:
        mask: (H, W) or (N, H, W) int64.
        kernel_size: odd.
        dilation: the distance between taps in pixels.

    Returns:
        int64 in the shape of ``mask``; what lies outside the image is seen by nobody.
    """
    height, width = mask.shape[-2:]
    live = unpack_tap_bits(mask, kernel_size).flatten(-2).transpose(-1, -2)  # (..., H * W, k * k)
    live = torch.cat([live.flip(-1), torch.zeros_like(live[..., :1, :])], -2)  # outside the image: no taps
    there = neighbours(height, width, kernel_size, dilation, device=mask.device)  # (H * W, k * k)
    tap = torch.arange(kernel_size * kernel_size, device=mask.device)
    return pack_tap_bits(live[..., there, tap]).view(mask.shape)
