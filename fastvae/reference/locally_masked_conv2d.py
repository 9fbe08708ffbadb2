"""The definition of locally masked convolution: unfold, cut what a pixel must not see, multiply."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["locally_masked_conv2d", "masked_columns", "unpack_tap_bits"]


def unpack_tap_bits(mask: Tensor, kernel_size: int) -> Tensor:
    """Which taps each pixel may see: ``mask`` (..., H, W) int64 -> (..., k * k, H, W) bool, taps in raster order.

    Example:
        >>> unpack_tap_bits(torch.tensor([[5]]), 3).flatten().int().tolist()
        [1, 0, 1, 0, 0, 0, 0, 0, 0]
    """
    taps = torch.arange(kernel_size * kernel_size, device=mask.device)
    return (mask.unsqueeze(-3) >> taps[:, None, None]).bitwise_and(1).bool()


def locally_masked_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int = 1) -> Tensor:
    """Convolution in which every output pixel has a mask of its own.

    ``y[n, o, p] = bias[o] + sum over channels c and taps t with bit t of mask[p] of w[o, c, t] x[n, c, p + offset(t)]``
    with zeros outside the image. A tap that is cut is never multiplied, so an invalid number behind it spoils nothing.
    Jain, Abbeel, Pathak: "Locally masked convolution for autoregressive models" (2020), section 3.

    Args:
        x: (N, C_in, H, W), any floating dtype.
        weight: (C_out, C_in, k, k) with k odd and at most 7.
        bias: (C_out,) or None.
        mask: (H, W) or (N, H, W) int64; bit ``u * k + v`` is tap (u, v).
        dilation: the distance between taps in pixels.

    Returns:
        (N, C_out, H, W).
    """
    columns = masked_columns(x, weight.shape[-1], mask, dilation)
    y = (weight.flatten(1) @ columns).unflatten(-1, x.shape[-2:])
    return y if bias is None else y + bias[:, None, None]


def masked_columns(x: Tensor, kernel_size: int, mask: Tensor, dilation: int = 1) -> Tensor:
    """(N, C_in, H, W) -> (N, C_in * k * k, H * W), what every pixel sees, zero where it may not."""
    columns = F.unfold(x, kernel_size, padding=kernel_size // 2 * dilation, dilation=dilation)
    dead = ~unpack_tap_bits(mask, kernel_size).flatten(-2)  # (k * k, H * W) or (N, k * k, H * W)
    return columns.unflatten(1, (x.shape[1], kernel_size**2)).masked_fill(dead.unsqueeze(-3), 0).flatten(1, 2)
