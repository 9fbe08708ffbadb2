"""Where the taps of a mask are: the smallest window of the kernel that holds them, and the image framed for it."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae import ops

__all__ = ["Frame", "Kind", "Window", "convolve", "frame_for", "live_taps", "raster_kind", "window_of"]


Kind = Literal["A", "B"]  # the masks in raster order, which have an operator of their own


class Window(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of a kernel, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def num_taps(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


def window_of(taps: Tensor) -> Window:
    """The smallest window around the non-zeros of ``taps`` (..., kH, kW); an empty one if there are none.

    Example:
        >>> window_of(torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]))
        Window(top=0, bottom=2, left=0, right=3)
    """
    held = (taps != 0).flatten(0, -3).any(0) if taps.ndim > 2 else taps != 0  # (kH, kW)
    rows, columns = held.any(1).nonzero().flatten().tolist(), held.any(0).nonzero().flatten().tolist()
    if not rows:
        return Window(0, 0, 0, 0)
    return Window(rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)


def raster_kind(mask: Tensor) -> Kind | None:
    """ "A" or "B" if ``mask`` (..., kH, kW) is that mask in every channel, else None."""
    rows, columns = mask.shape[-2:]
    if rows != columns or rows % 2 == 0:
        return None
    flat = (mask != 0).flatten(-2)  # (..., T)
    before = torch.arange(rows * columns, device=mask.device) < rows * columns // 2
    if torch.equal(flat, before.expand_as(flat)):
        return "A"
    before[rows * columns // 2] = True
    return "B" if torch.equal(flat, before.expand_as(flat)) else None


class Frame(NamedTuple):
    """What a convolution with a part of the kernel needs to keep the size of the image.

    Attributes:
        padding: rows and columns of zeros on both sides, which the convolution adds itself.
        uneven: what has to be added (or, where negative, cut off) besides: left, right, above, below.
    """

    padding: tuple[int, int]
    uneven: tuple[int, int, int, int]

    def around(self, x: Tensor) -> Tensor:
        return F.pad(x, self.uneven) if any(self.uneven) else x


def frame_for(window: Window, kernel_size: tuple[int, int], dilation: tuple[int, int]) -> Frame:
    """The frame for the taps in ``window`` alone."""
    above = (kernel_size[0] // 2 - window.top) * dilation[0]
    below = (window.bottom - 1 - kernel_size[0] // 2) * dilation[0]
    left = (kernel_size[1] // 2 - window.left) * dilation[1]
    right = (window.right - 1 - kernel_size[1] // 2) * dilation[1]
    rows, columns = max(0, min(above, below)), max(0, min(left, right))
    return Frame((rows, columns), (left - columns, right - columns, above - rows, below - rows))


def live_taps(weight: Tensor, mask: Tensor, window: Window) -> Tensor:
    """The masked weight inside the window: (C_out, C_in, rows, columns)."""
    rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
    return (weight[:, :, rows, columns] * mask[..., rows, columns]).to(weight.dtype)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    kind: Kind | None,
    window: Window,
    dilation: tuple[int, int],
) -> Tensor:
    """``F.conv2d(x, weight * mask, bias)`` that keeps the size of the image, without the rows and columns of zeros.

    Args:
        x: (N, C_in, H, W).
        weight: (C_out, C_in, kH, kW), both odd.
        bias: (C_out,) or None.
        mask: zeros and ones that broadcast to the weight.
        kind: what ``raster_kind`` says of the mask; A and B go to the operator with the kernels.
        window: what ``window_of`` says of the mask.
        dilation: the distance between taps, down and across.

    Returns:
        (N, C_out, H, W); no gradient reaches a masked tap.
    """
    if kind is not None and dilation[0] == dilation[1]:
        return ops.masked_conv2d(x, weight, bias, mask=kind, dilation=dilation[0])
    frame = frame_for(window, (weight.shape[-2], weight.shape[-1]), dilation)
    live = live_taps(weight, mask, window)
    return F.conv2d(frame.around(x), live, bias, padding=frame.padding, dilation=dilation)
