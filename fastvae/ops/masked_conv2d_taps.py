"""Which taps of a masked kernel are alive: the window that holds them, where it lies, and how many of it are needed."""

import weakref
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fastvae.reference.masked_conv2d import NamedMask, colour_groups, count_live_taps, named_mask, raster_mask

from ._dispatch import runs_as_written, untraced

__all__ = ["Frame", "Seen", "Taps", "frame_of", "live_window", "named_taps", "remembered_mask", "taps_of"]


_FEWEST_BYTES = 1 << 14  # for numpy to be faster


class Taps(NamedTuple):
    """The smallest window of a kernel that holds its live taps. Plain numbers, which a compiler can trace.

    Attributes:
        top: the first row of the window in the kernel.
        left: its first column.
        rows: its height, at least 1 even if no tap is alive.
        columns: its width, likewise.
        live: the number of its first taps, in raster order, after which all are dead.
        above: how many rows the centre of the kernel lies below the first row of the window.
        before: how many columns it lies right of the first column.
        is_partial: whether a weight among the first ``live`` taps is masked too, so that a mask has to be multiplied.
    """

    top: int
    left: int
    rows: int
    columns: int
    live: int
    above: int
    before: int
    is_partial: bool


def named_taps(kernel_size: tuple[int, int], mask: NamedMask, num_colours: int = 1) -> Taps:
    """The taps of a mask that has a name.

    Example:
        >>> named_taps((3, 3), "B")
        Taps(top=0, left=0, rows=2, columns=3, live=5, above=1, before=1, is_partial=False)
    """
    height, width = kernel_size
    has_colours = num_colours > 1 and mask in ("A", "B")
    live = count_live_taps(kernel_size, "B" if has_colours else mask)  # of several colours the centre is part alive
    rows = max(1, -(-live // width))
    return Taps(0, 0, rows, width if rows > 1 else max(1, live), live, height // 2, width // 2, has_colours)


class Seen:
    """A mask when its values were read, to know whether it is the same still.

    On the CPU its values are compared: they may change behind PyTorch's counter of versions (``mask.data``, an array of
    numpy that shares its memory). Elsewhere this would wait for the device, and the version has to do.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = weakref.ref(mask)
        self.version = _version(mask)
        self.values = mask.detach().clone() if mask.device.type == "cpu" else None

    def is_same(self, mask: Tensor) -> bool:
        """Whether ``mask`` is that tensor, with the same values."""
        if self.mask() is not mask or (self.version is not None and self.version != _version(mask)):
            return False
        if self.values is None:
            return self.version is not None
        return _equal(self.values, mask.detach())


def _equal(values: Tensor, others: Tensor) -> bool:
    """``torch.equal`` for bits; of 1.6 MB in 44 us instead of 250, for it compares number by number."""
    size = values.numel() * values.element_size()
    if size < _FEWEST_BYTES or size % 8 or not (_is_simple(values) and _is_simple(others)):
        return torch.equal(values, others)
    if values.shape != others.shape or values.dtype != others.dtype:
        return False
    mine, theirs = (t.view(-1).view(torch.int64).numpy() for t in (values, others))
    return np.array_equal(mine, theirs)


def _is_simple(values: Tensor) -> bool:
    return values.is_contiguous() and not values.storage_offset()


def _version(mask: Tensor) -> int | None:
    return None if mask.is_inference() else mask._version


_seen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # mask -> (when it was read, the size of the kernel, taps)


def taps_of(mask: Tensor, kernel_size: tuple[int, int]) -> Taps:
    """The taps of a boolean tensor that broadcasts to the weight; its values are read again when they change.

    Example:
        >>> import torch
        >>> taps_of(torch.tensor([[False, False, False], [True, True, False], [True, True, False]]), (3, 3))
        Taps(top=1, left=0, rows=2, columns=2, live=4, above=0, before=1, is_partial=False)
    """
    with untraced():
        return _taps_of(mask, (int(kernel_size[0]), int(kernel_size[1])))


def _taps_of(mask: Tensor, kernel_size: tuple[int, int]) -> Taps:
    known = _seen.get(mask)
    if known is not None and known[1] == kernel_size and known[0].is_same(mask):
        return known[2]
    taps = _read_taps(mask.detach(), kernel_size)
    _seen[mask] = (Seen(mask), kernel_size, taps)
    return taps


def _read_taps(mask: Tensor, kernel_size: tuple[int, int]) -> Taps:
    # leading dimensions of 1 make every mask (O, I, kH, kW) without copying what is repeated
    per_weight = mask.view((1,) * (4 - mask.ndim) + tuple(mask.shape)).expand(-1, -1, *kernel_size)
    is_live = per_weight.any(0).any(0)  # (kH, kW)
    rows, columns = is_live.any(1).nonzero().flatten().tolist(), is_live.any(0).nonzero().flatten().tolist()
    if not rows:
        return Taps(0, 0, 1, 1, 0, kernel_size[0] // 2, kernel_size[1] // 2, False)
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    window = per_weight[:, :, top:bottom, left:right]
    live = int(is_live[top:bottom, left:right].flatten().nonzero()[-1]) + 1
    is_partial = not bool(window.flatten(2)[..., :live].all())
    above, before = kernel_size[0] // 2 - top, kernel_size[1] // 2 - left
    return Taps(top, left, bottom - top, right - left, live, above, before, is_partial)


_masks: dict[tuple[int, int, NamedMask, torch.dtype, torch.device], Tensor] = {}  # a few numbers each


def remembered_mask(weight: Tensor, mask: NamedMask) -> NamedMask | Tensor:
    """The (kH, kW) zeros and ones of a mask, built once: building it takes as long as a small convolution.

    Where tensors are not what they seem (compilers, tracers, transforms), the name as it came.
    """
    if not runs_as_written():
        return mask
    key = (weight.shape[2], weight.shape[3], mask, weight.dtype, weight.device)
    known = _masks.get(key)
    if known is None:
        with torch.inference_mode(False):  # what is kept must serve calls in any mode
            known = _masks[key] = raster_mask(key[:2], mask, dtype=weight.dtype, device=weight.device)
    return known


def _sizes(weight: Tensor) -> tuple[int, int, int, int]:
    out, into, rows, columns = map(int, weight.shape)
    return out, into, rows, columns


def live_window(
    weight: Tensor, taps: Taps, mask: NamedMask | Tensor, num_colours: int = 1, *, zero_dead: bool = True
) -> Tensor:
    """The window of ``weight``, (C_out, C_in, rows, columns), with masked weights multiplied by zero.

    The taps after the first ``taps.live`` are zero, or with ``zero_dead=False`` may be anything.
    """
    rows, columns = slice(taps.top, taps.top + taps.rows), slice(taps.left, taps.left + taps.columns)
    is_whole = taps.rows == weight.shape[2] and taps.columns == weight.shape[3]
    window = weight if is_whole else weight[:, :, rows, columns]
    size = taps.rows * taps.columns
    if isinstance(mask, Tensor) and taps.is_partial:
        whole = mask.expand(*mask.shape[:-2], *weight.shape[-2:])
        return window * whole[..., rows, columns].to(weight.dtype)
    if not taps.is_partial and (taps.live == size or not zero_dead):
        return window
    if torch.compiler.is_compiling() and not isinstance(mask, Tensor):
        # inductor cannot order the strides of the view below where sizes are symbols
        whole = named_mask(_sizes(weight), mask, num_colours, dtype=torch.bool, device=weight.device)
        return window.masked_fill(~whole[..., rows, columns], 0)
    if weight.is_cpu and not taps.is_partial and runs_as_written():
        return window * _prefix(taps.rows, taps.columns, taps.live, weight.dtype)
    prefix = window.flatten(2)[..., : taps.live]  # dead taps are not even read
    if taps.is_partial:  # of several colours, in the last live tap: the centre
        out, into = (colour_groups(channels, num_colours, weight.device) for channels in weight.shape[:2])
        centre = into[None, :] < out[:, None] if mask == "A" else into[None, :] <= out[:, None]
        prefix = torch.cat((prefix[..., :-1], prefix[..., -1:] * centre[..., None].to(weight.dtype)), 2)
    return F.pad(prefix, (0, size - taps.live)).unflatten(2, (taps.rows, taps.columns))


@lru_cache(maxsize=64)
def _prefix(rows: int, columns: int, live: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns): ones for the first ``live`` taps, zeros for the others."""
    with torch.inference_mode(False):  # what is kept must serve calls in any mode
        return (torch.arange(rows * columns, device="cpu") < live).to(dtype).view(rows, columns)


class Frame(NamedTuple):
    """What a convolution with a window needs around the image to keep its size.

    Attributes:
        even: rows and columns of zeros that the convolution itself adds on both sides.
        uneven: what is added besides, or cut off where negative: left, right, above, below.
    """

    even: tuple[int, int]
    uneven: tuple[int, int, int, int]

    def around(self, x: Tensor) -> Tensor:
        """``x`` with what the convolution does not add itself."""
        left, right, above, below = self.uneven
        if not any(self.uneven):
            return x
        if max(-left, -right) < x.shape[3] and max(-above, -below) < x.shape[2]:
            return F.pad(x, self.uneven)
        # the window lies wholly outside of a small image: nothing would be left between cutting and adding
        wide = F.pad(x, [max(0, size) for size in self.uneven])
        rows = slice(max(0, -above), wide.shape[2] + min(0, below))
        return wide[:, :, rows, max(0, -left) : wide.shape[3] + min(0, right)]


def frame_of(rows: int, columns: int, above: int, before: int, dilation: int) -> Frame:
    """The frame for a window of ``rows`` x ``columns`` taps; the other arguments are those of :class:`Taps`.

    Example:
        >>> frame_of(2, 3, above=1, before=1, dilation=1)  # the upper two rows of a kernel of three
        Frame(even=(0, 1), uneven=(0, 0, 1, 0))
    """
    top, bottom = above * dilation, (rows - 1 - above) * dilation
    left, right = before * dilation, (columns - 1 - before) * dilation
    down, across = max(0, min(top, bottom)), max(0, min(left, right))
    return Frame((down, across), (left - across, right - across, top - down, bottom - down))
