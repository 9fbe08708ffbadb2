"""The definition of masked convolution: an ordinary convolution whose later taps are multiplied by zero."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Mask", "count_live_taps", "masked_conv2d", "raster_mask"]

Mask = Literal["A", "B"]


def count_live_taps(kernel_size: int, mask: Mask) -> int:
    """How many taps of a square kernel come before its centre in raster order, the centre counted for mask B.

    The live taps are always the first ones, so this number is the whole mask.

    Example:
        >>> count_live_taps(3, "A"), count_live_taps(3, "B")
        (4, 5)
    """
    return kernel_size * kernel_size // 2 + (mask == "B")


def raster_mask(
    kernel_size: int, mask: Mask, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """(k, k) ones at the live taps and zeros elsewhere.

    Example:
        >>> raster_mask(3, "A").tolist()
        [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    taps = torch.zeros(kernel_size * kernel_size, dtype=dtype, device=device)
    taps[: count_live_taps(kernel_size, mask)] = 1
    return taps.view(kernel_size, kernel_size)


def masked_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Mask, dilation: int = 1) -> Tensor:
    """Convolution that sees only earlier pixels in raster order, and with mask B the pixel itself.

    Van den Oord, Kalchbrenner, Kavukcuoglu: "Pixel recurrent neural networks" (2016), section 3.4.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), any floating dtype.
        weight: (C_out, C_in, k, k) with k odd.
        bias: (C_out,) or None.
        mask: "A" without the centre tap, "B" with it.
        dilation: the distance between taps in pixels.

    Returns:
        (N, C_out, H, W) or (C_out, H, W).
    """
    kernel_size = weight.shape[-1]
    live = weight * raster_mask(kernel_size, mask, dtype=weight.dtype, device=weight.device)
    return F.conv2d(x, live, bias, padding=kernel_size // 2 * dilation, dilation=dilation)
