"""``masked_conv2d``: the convolution of autoregressive image models, without the work that its mask throws away."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from fastvae import reference
from fastvae.reference.masked_conv2d import Mask, count_live_taps

from ._dispatch import HAS_TRITON, choose, constant_when_compiled, must_use_definition

__all__ = ["Mask", "masked_conv2d"]

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# cropping copies the input and the weight: measured on two CPU cores, it pays above these numbers of saved products,
# and below them the definition is the fastest
_SAVED_PER_INPUT = 80
_SAVED_IN_TOTAL = 4_000_000


def masked_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, mask: Mask, dilation: int = 1) -> Tensor:
    """Convolution in which an output pixel sees only earlier pixels in raster order (and itself with mask B).

    Equal to ``F.conv2d(x, weight * m, bias, padding=k // 2 * dilation, dilation=dilation)`` where ``m`` is one at the
    first ``k * k // 2`` taps (mask A; one more for mask B) and zero at the others, whose gradient is exactly zero.
    Van den Oord, Kalchbrenner, Kavukcuoglu: "Pixel recurrent neural networks" (2016), section 3.4.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), floating point; N may be 0. A channels_last layout is preserved.
        weight: (C_out, C_in, k, k) with k odd.
        bias: (C_out,) or None.
        mask: "A" for a first layer, whose pixel must not see itself, "B" for every later one.
        dilation: the distance between taps in pixels.

    Returns:
        (N, C_out, H, W) or (C_out, H, W) in the dtype of ``x`` (under autocast, in the autocast dtype).

    Raises:
        TypeError: if an argument is no floating point tensor, or their dtypes differ.
        ValueError: if shapes do not fit, the kernel is even or not square, devices differ, or ``mask`` or
            ``dilation`` is something else.

    Example:
        >>> x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
        >>> masked_conv2d(x, weight, mask="A")[0, 0]
        tensor([[0., 1., 1.],
                [2., 4., 3.],
                [2., 4., 3.]])
    """
    _check(x, weight, bias, mask, dilation)
    if x.ndim == 3:
        return masked_conv2d(x[None], weight, bias, mask=mask, dilation=dilation)[0]
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    live = count_live_taps(weight.shape[-1], mask)
    unsupported = None if x.dtype in _KERNEL_DTYPES else f"the kernels serve {_KERNEL_DTYPES}, got {x.dtype}"
    backend = choose(x, weight, unsupported=unsupported, preferred=_kernels_are_faster(x, weight))
    if backend == "triton" and not must_use_definition(x, weight):
        return _forward(x, weight, bias, live, dilation)
    if backend == "reference" or not _pays_to_crop(x, weight):
        return reference.masked_conv2d(x, weight, bias, mask, dilation)
    return _cropped(x, weight, bias, live, dilation)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, mask: str, dilation: int) -> None:
    tensors = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(
                f"{name} must be floating point, got {tensor.dtype}; convert it, for example {name}.float()"
            )
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")
        if tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}; convert one of them")
    if x.ndim not in (3, 4):
        raise ValueError(f"x must be (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}")
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be (C_out, C_in, k, k), got shape {tuple(weight.shape)}")
    if weight.shape[-1] % 2 == 0:
        raise ValueError(f"weight must have an odd kernel size, got {weight.shape[-1]}: an even one has no centre tap")
    if x.shape[-3] != weight.shape[1]:
        raise ValueError(f"x must have the {weight.shape[1]} channels of weight, got shape {tuple(x.shape)}")
    if 0 in x.shape[-3:] or 0 in weight.shape:
        raise ValueError(f"only the batch may be empty, got x {tuple(x.shape)} and weight {tuple(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if mask not in ("A", "B"):
        raise ValueError(f'mask must be "A" (without the centre) or "B" (with it), got {mask!r}')
    if not isinstance(dilation, int) or isinstance(dilation, bool) or dilation < 1:
        raise ValueError(f"dilation must be a positive integer, got {dilation!r}")


def _kernels_are_faster(x: Tensor, weight: Tensor) -> bool:
    if not (HAS_TRITON and x.is_cuda and x.dtype in _KERNEL_DTYPES):  # elsewhere Triton is not even imported
        return False
    return _table_prefers_kernels(x.device, x.dtype, weight.shape[1], weight.shape[0])


@constant_when_compiled
def _table_prefers_kernels(device: torch.device, dtype: torch.dtype, in_channels: int, out_channels: int) -> bool:
    from fastvae_kernels.masked_conv2d_config import is_fastest

    return is_fastest(torch.cuda.get_device_capability(device), dtype, in_channels, out_channels)


def _pays_to_crop(x: Tensor, weight: Tensor) -> bool:
    if x.is_cuda or weight.shape[-1] == 1:
        return True
    saved = weight.shape[0] * weight.shape[-1] * (weight.shape[-1] // 2)  # products per input element
    return saved >= _SAVED_PER_INPUT and saved * x.numel() >= _SAVED_IN_TOTAL


def _cropped(x: Tensor, weight: Tensor, bias: Tensor | None, live: int, dilation: int) -> Tensor:
    """The PyTorch path: rows of the kernel below its centre are dead, so they are cut off instead of multiplied by 0.

    Plain differentiable operations: every derivative and every transform of torch.func is PyTorch's own.
    """
    kernel_size = weight.shape[-1]
    if live == kernel_size**2:  # a single tap: nothing is masked
        return F.conv2d(x, weight, bias)
    reach = kernel_size // 2
    padding = reach * dilation
    above = F.pad(x, (0, 0, padding, 0))
    return F.conv2d(above, _live_rows(weight, live, reach + 1), bias, padding=(0, padding), dilation=dilation)


def _live_rows(weight: Tensor, live: int, rows: int) -> Tensor:
    """The first ``rows`` rows of the kernel, (C_out, C_in, rows, k), zero after the first ``live`` taps."""
    prefix = weight.flatten(2)[..., :live]  # (C_out, C_in, T)
    return F.pad(prefix, (0, rows * weight.shape[-1] - live)).unflatten(2, (rows, weight.shape[-1]))


# The three operators below run the Triton kernels. They are closed under differentiation: each is linear in both of
# its tensors, and the derivative of one is another. On a CPU without the interpreter they run the PyTorch path, so
# that a graph traced for CUDA means the same everywhere.


def _runs_kernels(x: Tensor) -> bool:
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def _layout(x: Tensor) -> torch.memory_format:
    is_channels_last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


@torch.library.custom_op("fastvae::masked_conv2d", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, live: int, dilation: int) -> Tensor:
    if not _runs_kernels(x):
        return _cropped(x, weight, bias, live, dilation).contiguous(memory_format=_layout(x))
    from fastvae_kernels import masked_conv2d as kernels

    return kernels.forward(x, weight, bias, live, dilation).contiguous(memory_format=_layout(x))


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, live: int, dilation: int) -> Tensor:
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))


@torch.library.custom_op("fastvae::masked_conv2d_grad_input", mutates_args=())
def _grad_input(grad_y: Tensor, weight: Tensor, live: int, dilation: int) -> Tensor:
    if not _runs_kernels(grad_y):
        shape = (grad_y.shape[0], weight.shape[1], grad_y.shape[2], grad_y.shape[3])
        size = weight.shape[-1]
        grad_x = conv2d_input(
            shape, _live_rows(weight, live, size), grad_y, padding=size // 2 * dilation, dilation=dilation
        )
        return grad_x.contiguous(memory_format=_layout(grad_y))
    from fastvae_kernels import masked_conv2d as kernels

    return kernels.grad_input(grad_y, weight, live, dilation).contiguous(memory_format=_layout(grad_y))


@_grad_input.register_fake
def _(grad_y: Tensor, weight: Tensor, live: int, dilation: int) -> Tensor:
    shape = (grad_y.shape[0], weight.shape[1], grad_y.shape[2], grad_y.shape[3])
    return torch.empty(shape, dtype=grad_y.dtype, device=grad_y.device, memory_format=_layout(grad_y))


@torch.library.custom_op("fastvae::masked_conv2d_grad_weight", mutates_args=())
def _grad_weight(x: Tensor, grad_y: Tensor, kernel_size: int, live: int, dilation: int) -> Tensor:
    if not _runs_kernels(x):
        shape = (grad_y.shape[1], x.shape[1], kernel_size, kernel_size)
        whole = conv2d_weight(x, shape, grad_y, padding=kernel_size // 2 * dilation, dilation=dilation)
        return _live_rows(whole, live, kernel_size).contiguous()
    from fastvae_kernels import masked_conv2d as kernels

    return kernels.grad_weight(x, grad_y, kernel_size, live, dilation)


@_grad_weight.register_fake
def _(x: Tensor, grad_y: Tensor, kernel_size: int, live: int, dilation: int) -> Tensor:
    return x.new_empty(grad_y.shape[1], x.shape[1], kernel_size, kernel_size)


def _save_forward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, ctx.live, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad_y: Tensor):  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    grad_x = _grad_input(grad_y, weight, ctx.live, ctx.dilation) if needs_x else None
    grad_weight = _grad_weight(x, grad_y, weight.shape[-1], ctx.live, ctx.dilation) if needs_weight else None
    return grad_x, grad_weight, grad_y.sum((0, 2, 3)) if needs_bias else None, None, None


def _save_grad_input(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    grad_y, weight, ctx.live, ctx.dilation = inputs
    ctx.save_for_backward(grad_y, weight)


def _grad_input_backward(ctx, grad_out: Tensor):  # type: ignore[no-untyped-def]
    grad_y, weight = ctx.saved_tensors
    needs_y, needs_weight, *_ = ctx.needs_input_grad
    grad_grad_y = _forward(grad_out, weight, None, ctx.live, ctx.dilation) if needs_y else None
    grad_weight = _grad_weight(grad_out, grad_y, weight.shape[-1], ctx.live, ctx.dilation) if needs_weight else None
    return grad_grad_y, grad_weight, None, None


def _save_grad_weight(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, grad_y, _, ctx.live, ctx.dilation = inputs
    ctx.save_for_backward(x, grad_y)


def _grad_weight_backward(ctx, grad_out: Tensor):  # type: ignore[no-untyped-def]
    x, grad_y = ctx.saved_tensors
    needs_x, needs_y, *_ = ctx.needs_input_grad
    grad_x = _grad_input(grad_y, grad_out, ctx.live, ctx.dilation) if needs_x else None
    grad_grad_y = _forward(x, grad_out, None, ctx.live, ctx.dilation) if needs_y else None
    return grad_x, grad_grad_y, None, None, None


_forward.register_autograd(_backward, setup_context=_save_forward)
_grad_input.register_autograd(_grad_input_backward, setup_context=_save_grad_input)
_grad_weight.register_autograd(_grad_weight_backward, setup_context=_save_grad_weight)
