"""Calls on the CPU that look like an earlier one: what was decided then is not decided again.

Checks and choices depend on types, shapes and names alone, and take longer than a small convolution does. They are made
once for each combination of these; tensors themselves are never kept, except masks that follow from a name.
"""

import math
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, constant_pad_nd, conv2d, is_grad_enabled, nn

from fastvae.reference.masked_conv2d import NamedMask, named_mask

from ._dispatch import decides_alone
from .masked_conv2d_taps import Taps, frame_of

__all__ = ["Call", "key_of", "known_call", "remember_call"]

_PLAIN, _DENSE = (Tensor, nn.Parameter), torch.strided
_LARGEST_WHOLE_MASK = 1 << 15  # elements: a mask as large as the weight multiplies faster than one repeated by strides
# products below which PyTorch's own convolution, a gather and a product, needs less than oneDNN to begin: 14 us for 47
_FEWEST_PRODUCTS = 300_000
_unfolding_conv2d: Any = getattr(torch._C._nn, "thnn_conv2d", None)
_MOST_KNOWN = 256
Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x, weight, bias, without a check
_known: dict[Hashable, Call] = {}


def key_of(
    kind: str, mask: Any, dilation: Any, num_colours: Any, x: Any, weight: Any, bias: Any, other: Any = None
) -> Hashable | None:
    """Everything that checks and choices depend on; None where they have to be made anew.

    ``kind`` names the function that is called, ``other`` is a further tensor that it takes.
    """
    if type(mask) is not str or type(dilation) is not int or type(num_colours) is not int or not decides_alone():
        return None
    if not (type(x) in _PLAIN and x.is_cpu and x.layout is _DENSE and _is_like(weight, x.dtype)):
        return None
    if (bias is not None and not _is_like(bias, x.dtype)) or (other is not None and not _is_like(other, x.dtype)):
        return None
    shapes = x.shape, weight.shape, None if bias is None else bias.shape, None if other is None else other.shape
    return kind, mask, dilation, num_colours, x.dtype, shapes


def _is_like(tensor: Any, dtype: torch.dtype) -> bool:
    return type(tensor) in _PLAIN and tensor.dtype is dtype and tensor.is_cpu and tensor.layout is _DENSE


def known_call(key: Hashable | None) -> Call | None:
    """What was decided for the first call with this key."""
    return _known.get(key)


def remember_call(
    key: Hashable, x: Tensor, weight: Tensor, taps: Taps, mask: NamedMask, dilation: int, num_colours: int, crops: bool
) -> Call:
    """Keep a decision about arguments that have been checked: whether to cut off what lies outside the window."""
    kernel: Any = tuple(weight.shape)
    rows, columns = kernel[2:]
    used = taps if crops else Taps(0, 0, rows, columns, taps.live, rows // 2, columns // 2, taps.is_partial)
    is_alive = not used.is_partial and used.live == used.rows * used.columns
    zeros = None if is_alive else _mask_of(kernel, mask, num_colours, x.dtype, used)
    products = x.numel() * kernel[0] * rows * columns
    if (used.rows, used.columns) != (rows, columns):
        call = _cropping(used, zeros, dilation)
    elif zeros is None:
        call = partial(_convolve, padding=(rows // 2 * dilation, columns // 2 * dilation), dilation=dilation)
    elif x.dtype == torch.float32 and dilation == 1 and 0 < products < _FEWEST_PRODUCTS and _unfolding_conv2d:
        call = _tiny((rows, columns), zeros)
    else:
        call = _whole((rows, columns), zeros, dilation)
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[key] = call
    return call


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], dilation: int) -> Tensor:
    return conv2d(x, weight, bias, 1, padding, dilation)


def _cropping(used: Taps, mask: Tensor | None, dilation: int) -> Call:
    frame = frame_of(used.rows, used.columns, used.above, used.before, dilation)
    only_adds = min(frame.uneven) >= 0

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        window = weight.narrow(2, used.top, used.rows)
        if used.columns != weight.shape[3]:
            window = window.narrow(3, used.left, used.columns)
        window = window if mask is None else window * mask
        framed = constant_pad_nd(x, frame.uneven) if only_adds else frame.around(x)
        return conv2d(framed, window, bias, 1, frame.even, dilation)

    return call


def _whole(size: tuple[int, int], mask: Tensor, dilation: int) -> Call:
    rows, columns = size[0] // 2 * dilation, size[1] // 2 * dilation
    padding: Any = rows if rows == columns else (rows, columns)

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(x, weight * mask, bias, 1, padding, dilation)

    return call


def _tiny(size: tuple[int, int], mask: Tensor) -> Call:
    padding = (size[0] // 2, size[1] // 2)

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        has_gradient = is_grad_enabled() and (x.requires_grad or weight.requires_grad or _requires_grad(bias))
        if not has_gradient and x.is_contiguous():  # a gradient needs what has derivatives in forward mode too
            return _unfolding_conv2d(x, weight * mask, size, bias, 1, padding)
        return conv2d(x, weight * mask, bias, 1, padding)

    return call


def _requires_grad(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


@lru_cache(maxsize=64)
def _mask_of(kernel: Any, mask: NamedMask, num_colours: int, dtype: torch.dtype, used: Taps) -> Tensor:
    """Zeros and ones that broadcast to a window of the kernel."""
    with torch.inference_mode(False):  # what is kept must serve calls in any mode
        whole = named_mask(kernel, mask, num_colours, dtype=dtype, device=torch.device("cpu"))
        window = whole[..., used.top : used.top + used.rows, used.left : used.left + used.columns]
        shape = (*kernel[:2], used.rows, used.columns)
        return (window.expand(shape) if math.prod(shape) <= _LARGEST_WHOLE_MASK else window).contiguous()
