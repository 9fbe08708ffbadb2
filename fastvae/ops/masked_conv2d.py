"""``masked_conv2d``: the convolution of autoregressive image models, without the work that its mask throws away."""

from collections.abc import Hashable
from typing import Any, Literal

import torch
from torch import Tensor

from fastvae import reference
from fastvae.reference.masked_conv2d import Mask, NamedMask

from ._dispatch import HAS_TRITON, autocast_dtype, choose, constant_when_compiled, must_use_definition
from ._memory import keep_freed_memory
from .masked_conv2d_calls import Call, key_of, known_call, remember_call
from .masked_conv2d_checks import check_arguments, check_mask
from .masked_conv2d_operators import KERNEL_DTYPES, convolve_window, masked_conv2d_forward
from .masked_conv2d_taps import Taps, live_window, named_taps, remembered_mask, taps_of

__all__ = [
    "Mask",
    "NamedMask",
    "decide",
    "kernels_are_faster",
    "masked_conv2d",
    "masked_conv2d_by_taps",
    "pays_to_crop",
    "taps_for",
    "why_not_kernels",
]

# cropping copies the input and a part of the weight: it pays above these numbers of saved products, and below them the
# definition is the fastest: k=3, 28x28, times faster than the masked weight, forward on one core: one image C=16 (0.6
# million saved) 1.17, C=32 (2.4) 1.48, C=64 (9.6) 1.32, but on two 0.93 and 0.93; batch 2 C=8 (0.3) 0.89, C=16 (1.2)
# 0.91, C=32 (4.8) 1.30
_SAVED_PER_INPUT = 24
_SAVED_IN_TOTAL, _SAVED_IN_ONE_IMAGE = 2_000_000, 12_000_000


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: NamedMask | Tensor,
    dilation: int = 1,
    num_colours: int = 1,
) -> Tensor:
    """Convolution in which an output pixel sees only a part of its neighbourhood, by default earlier pixels.

    Equal to ``F.conv2d(x, weight * m, bias, padding=(kH // 2 * dilation, kW // 2 * dilation), dilation=dilation)``
    where ``m`` is one at live taps and zero at the others, whose gradient is exactly zero.
    Van den Oord, Kalchbrenner, Kavukcuoglu: "Pixel recurrent neural networks" (2016), section 3.4; the vertical
    stacks: van den Oord et al.: "Conditional image generation with PixelCNN decoders" (2016), section 2.3.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), floating point; N may be 0. A channels_last layout is preserved.
        weight: (C_out, C_in, kH, kW) with both sizes odd.
        bias: (C_out,) or None.
        mask: what is alive. In raster order, "A" the taps before the centre (a first layer, whose pixel must not see
            itself), "B" these and the centre (every later layer). With a kernel of one row they are the horizontal
            stack of a gated net. "vertical" all rows down to that of the centre, "vertical-strict" the rows above it.
            Or a boolean tensor that broadcasts to the weight, for any other mask. Its values are read when they have
            changed (on CUDA when its version has, which ``mask.data`` escapes); compiled functions cannot read them
            and multiply the whole weight (``nn.MaskedConv2d`` reads before).
        dilation: the distance between taps in pixels.
        num_colours: G, for masks A and B. Channels of one pixel belong to G colours, channel c to colour c * G // C,
            and a centre tap is alive if the colour of its input comes before that of its output (A), or is the
            same (B). With 1, all channels of a pixel are generated at once.

    Returns:
        (N, C_out, H, W) or (C_out, H, W) in the dtype of ``x`` (under autocast, in the autocast dtype).

    Raises:
        TypeError: if an argument is no floating point tensor, their dtypes differ, or a given mask is not boolean.
        ValueError: if shapes do not fit, the kernel is even, devices differ, or ``mask``, ``dilation`` or
            ``num_colours`` is something else.

    Example:
        >>> x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
        >>> masked_conv2d(x, weight, mask="A")[0, 0]
        tensor([[0., 1., 1.],
                [2., 4., 3.],
                [2., 4., 3.]])
    """
    key = key_of("plain", mask, dilation, num_colours, x, weight, bias)
    if (call := known_call(key)) is not None:
        return call(x, weight, bias)
    check_arguments(x, weight, bias, dilation)
    check_mask(mask, weight, num_colours)
    taps = taps_for(mask, weight, num_colours)
    if key is not None and x.ndim == 4:
        return decide(key, x, weight, taps, mask, dilation, num_colours)(x, weight, bias)
    return masked_conv2d_by_taps(x, weight, bias, taps, mask, dilation, num_colours)


def decide(
    key: Hashable, x: Tensor, weight: Tensor, taps: Taps, mask: Any, dilation: int, num_colours: int = 1
) -> Call:
    """How every call with this key is computed from now on; the arguments have been checked."""
    crops = pays_to_crop(x, weight, taps)
    if crops:
        keep_freed_memory()  # of the cropped copies
    return remember_call(key, x, weight, taps, mask, dilation, num_colours, crops)


def taps_for(mask: NamedMask | Tensor, weight: Tensor, num_colours: int) -> Taps:
    """The taps of a mask; all of them where the values of a given one cannot be read."""
    height, width = int(weight.shape[2]), int(weight.shape[3])  # a tracer's sizes are tensors
    if not isinstance(mask, Tensor):
        return named_taps((height, width), mask, num_colours)
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return Taps(0, 0, height, width, height * width, height // 2, width // 2, True)
    return taps_of(mask, (height, width))


def masked_conv2d_by_taps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
    mask: NamedMask | Tensor,
    dilation: int,
    num_colours: int = 1,
) -> Tensor:
    """:func:`masked_conv2d` of arguments known to be good, for a mask whose taps are known."""
    if x.ndim == 3:
        return masked_conv2d_by_taps(x[None], weight, bias, taps, mask, dilation, num_colours)[0]
    if (dtype := autocast_dtype(x)) is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    backend = choose(x, weight, unsupported=why_not_kernels(x), preferred=kernels_are_faster(x, weight, "plain"))
    if backend == "triton" and not must_use_definition(x, weight):
        window = live_window(weight, taps, mask, num_colours, zero_dead=False)
        return masked_conv2d_forward(x, window, bias, taps.live, taps.above, taps.before, dilation)
    if backend == "reference":
        return reference.masked_conv2d(x, weight, bias, mask, dilation, num_colours)
    if not pays_to_crop(x, weight, taps):
        if num_colours == 1 and isinstance(mask, str):
            mask = remembered_mask(weight, mask)
        return reference.masked_conv2d(x, weight, bias, mask, dilation, num_colours)
    if not (x.is_cuda or torch.compiler.is_compiling()):
        keep_freed_memory()  # of the cropped copies
    return convolve_window(x, live_window(weight, taps, mask, num_colours), bias, taps.above, taps.before, dilation)


def why_not_kernels(x: Tensor) -> str | None:
    """Why the Triton kernels cannot serve ``x``; None if they can."""
    return None if x.dtype in KERNEL_DTYPES else f"the kernels serve {KERNEL_DTYPES}, got {x.dtype}"


def kernels_are_faster(x: Tensor, weight: Tensor, ending: Literal["plain", "gated", "residual"]) -> bool:
    """Whether the committed table knows our kernels to be the fastest for these tensors."""
    if not (HAS_TRITON and x.is_cuda and x.dtype in KERNEL_DTYPES):  # elsewhere Triton is not even imported
        return False
    return _table_prefers_kernels(x.device, x.dtype, weight.shape[1], weight.shape[0], ending)


@constant_when_compiled
def _table_prefers_kernels(
    device: torch.device, dtype: torch.dtype, in_channels: int, out_channels: int, ending: Any
) -> bool:
    from fastvae_kernels.masked_conv2d_config import is_fastest

    return is_fastest(torch.cuda.get_device_capability(device), dtype, in_channels, out_channels, ending)


def pays_to_crop(x: Tensor, weight: Tensor, taps: Taps) -> bool:
    """Whether cutting off what lies outside the window is faster than multiplying it by zero."""
    out_channels, _, rows, columns = weight.shape
    if x.is_cuda or rows * columns == 1:
        return True
    saved = out_channels * (rows * columns - taps.rows * taps.columns)  # products per input
    least = _SAVED_IN_ONE_IMAGE if x.shape[0] == 1 else _SAVED_IN_TOTAL
    return saved * x.numel() >= least and saved >= _SAVED_PER_INPUT
