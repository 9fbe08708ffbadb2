"""The definition of masked convolution: an ordinary convolution whose dead taps are multiplied by zero."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Mask", "NamedMask", "colour_groups", "count_live_taps", "masked_conv2d", "named_mask", "raster_mask"]

Mask = Literal["A", "B"]
NamedMask = Literal["A", "B", "vertical", "vertical-strict"]


def count_live_taps(kernel_size: int | tuple[int, int], mask: NamedMask) -> int:
    """How many taps of an odd kernel a mask keeps.

    They are always the first ones in raster order, so this number is the whole mask: those before the centre (A),
    and the centre (B); the rows above the centre ("vertical-strict"), and its own row ("vertical").

    Example:
        >>> count_live_taps(3, "A"), count_live_taps(3, "B"), count_live_taps((1, 5), "B")
        (4, 5, 3)
        >>> count_live_taps(3, "vertical-strict"), count_live_taps(3, "vertical")
        (3, 6)
    """
    rows, columns = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if mask in ("A", "B"):
        return rows * columns // 2 + (mask == "B")
    return (rows // 2 + (mask == "vertical")) * columns


def raster_mask(
    kernel_size: int | tuple[int, int],
    mask: NamedMask,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """(kH, kW) ones at the live taps and zeros elsewhere.

    Example:
        >>> raster_mask(3, "A").tolist()
        [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    rows, columns = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    taps = torch.zeros(rows * columns, dtype=dtype, device=device)
    taps[: count_live_taps(kernel_size, mask)] = 1
    return taps.view(rows, columns)


def colour_groups(num_channels: int, num_colours: int, device: torch.device | None = None) -> Tensor:
    """(C,) the colour of every channel: channel c belongs to colour c * G // C, so colours are blocks of channels.

    Blocks, not every G-th channel, because the parameters of an image are viewed as (N, C, P, H, W): those of the
    first colour come first.

    Example:
        >>> colour_groups(6, 3).tolist()
        [0, 0, 1, 1, 2, 2]
    """
    return torch.arange(num_channels, device=device) * num_colours // num_channels


def named_mask(
    weight_shape: tuple[int, int, int, int],
    mask: NamedMask,
    num_colours: int = 1,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """(C_out, C_in, kH, kW), or (kH, kW) for one colour: ones where a weight is live and zeros elsewhere.

    With several colours the centre tap joins a channel to the earlier colours of its own pixel, in the order of
    :func:`colour_groups`: those before its own with mask A, and its own too with mask B.
    """
    out_channels, in_channels, rows, columns = weight_shape
    taps = raster_mask((rows, columns), mask, dtype=dtype, device=device)
    if num_colours == 1 or mask not in ("A", "B"):
        return taps
    out = colour_groups(out_channels, num_colours, device)[:, None]
    into = colour_groups(in_channels, num_colours, device)[None, :]
    whole = taps.repeat(out_channels, in_channels, 1, 1)
    whole[:, :, rows // 2, columns // 2] = ((into < out) if mask == "A" else (into <= out)).to(whole.dtype)
    return whole


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: NamedMask | Tensor,
    dilation: int = 1,
    num_colours: int = 1,
) -> Tensor:
    """Convolution that sees only earlier pixels in raster order, and with mask B the pixel itself.

    Van den Oord, Kalchbrenner, Kavukcuoglu: "Pixel recurrent neural networks" (2016), section 3.4.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), any floating dtype.
        weight: (C_out, C_in, kH, kW) with kH and kW odd.
        bias: (C_out,) or None.
        mask: "A" without the centre tap, "B" with it, "vertical" for all rows down to the pixel's own,
            "vertical-strict" without its own, or a tensor of zeros and ones that broadcasts to the weight.
        dilation: the distance between taps in pixels.
        num_colours: G, for masks A and B: channels of one pixel see each other in G groups.

    Returns:
        (N, C_out, H, W) or (C_out, H, W).
    """
    if not isinstance(mask, Tensor):
        # whole numbers: where torch.jit.trace looks on, sizes are tensors
        mask = named_mask(tuple(map(int, weight.shape)), mask, num_colours, dtype=weight.dtype, device=weight.device)  # type: ignore[arg-type]
    rows, columns = weight.shape[-2:]
    padding = (rows // 2 * dilation, columns // 2 * dilation)
    return F.conv2d(x, weight * mask.to(weight.dtype), bias, padding=padding, dilation=dilation)
