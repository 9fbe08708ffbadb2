"""``locally_masked_conv2d``: convolution for autoregressive models in any generation order."""

import os
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from fastvae import reference

from . import locally_masked_blocks as blocks
from ._dispatch import autocast_dtype, choose, is_transformed, must_use_definition
from ._memory import keep_freed_memory
from .locally_masked_small import SMALL, plain_grad_input, plain_grad_weight, small_conv2d
from .masked_conv2d_calls import key_of
from .masked_conv2d_checks import check_tensor
from .tap_bits import LARGEST_KERNEL, mirror_tap_bits

__all__ = ["locally_masked_conv2d"]

_MOST_KNOWN = 256
_small_calls: set[Hashable] = set()  # what calls looked like that have been checked and found to be small
_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def locally_masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, mask: Tensor, dilation: int = 1
) -> Tensor:
    """Convolution in which every output pixel has its own set of taps, given as the bits of one integer.

    Equal to ``weight.flatten(1) @ (F.unfold(x, k, padding=k // 2 * dilation, dilation=dilation) * live)`` plus the
    bias, where ``live`` (C_in * k * k, H * W) has the bits of ``mask``, repeated for each channel; but nothing of the
    size of the unfolded input is ever stored, not for the backward pass either. Only where that is small, on the CPU
    below 2**20 elements (4 MiB of float32), it is stored, masked: once forward and once more for the gradient of x.
    One set of weights serves any order in which pixels are generated: make masks with :func:`fastvae.ops.tap_bits`.
    Jain, Abbeel, Pathak: "Locally masked convolution for autoregressive models" (2020), section 3.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), floating point; N may be 0. A channels_last layout is preserved.
        weight: (C_out, C_in, k, k) with k odd and at most 7.
        bias: (C_out,) or None.
        mask: (H, W) int64 for all images or (N, H, W), one for each; bit ``u * k + v`` lets the pixel see tap (u, v).
            Further bits, and taps outside the image, have no effect.
        dilation: the distance between taps in pixels.

    Returns:
        (N, C_out, H, W) or (C_out, H, W) in the dtype of ``x`` (under autocast, in the autocast dtype).

    Raises:
        TypeError: if x, weight or bias is no floating point tensor, their dtypes differ, or ``mask`` is not int64.
        ValueError: if shapes do not fit, the kernel is even, not square or too large, devices differ, or ``dilation``
            is no positive integer.

    Example:
        >>> from fastvae.ops import generation_order, tap_bits
        >>> order = generation_order("s_curve", (2, 3))
        >>> mask = tap_bits(order, (2, 3), 3, mask="A")
        >>> locally_masked_conv2d(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 3, 3), mask=mask)[0, 0]
        tensor([[0., 1., 1.],
                [3., 4., 2.]])
    """
    key = key_of("locally masked", "B", dilation, 1, x, weight, bias) if type(mask) is Tensor else None
    facts = None if key is None else (key, mask.shape, mask.dtype, mask.is_cpu)
    if facts in _small_calls:
        return small_conv2d(x, weight, bias, mask, dilation)
    _check(x, weight, bias, mask, dilation)
    if facts is not None and x.ndim == 4 and 0 < x.numel() * weight.shape[-1] ** 2 < SMALL:
        if len(_small_calls) >= _MOST_KNOWN:
            _small_calls.clear()
        _small_calls.add(facts)
        return small_conv2d(x, weight, bias, mask, dilation)
    if x.ndim == 3:
        return locally_masked_conv2d(x[None], weight, bias, mask=mask, dilation=dilation)[0]
    if (dtype := autocast_dtype(x)) is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    unsupported = None if x.dtype in _KERNEL_DTYPES else f"the kernels serve {_KERNEL_DTYPES}, got {x.dtype}"
    backend = choose(x, weight, mask, unsupported=unsupported)
    if must_use_definition(x, weight) or not x.numel():
        return reference.locally_masked_conv2d(x, weight, bias, mask, dilation)
    return _forward(x, weight, bias, mask, dilation, backend == "triton")


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int) -> None:
    tensors = {"x": x, "weight": weight, "mask": mask} | ({} if bias is None else {"bias": bias})
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if name != "mask":
            check_tensor(name, tensor, x)
        elif tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")
    if mask.dtype != torch.int64:
        raise TypeError(f"mask must be int64, the bits of taps as fastvae.ops.tap_bits makes them, got {mask.dtype}")
    if x.ndim not in (3, 4):
        raise ValueError(f"x must be (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}")
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be (C_out, C_in, k, k), got shape {tuple(weight.shape)}")
    if weight.shape[-1] % 2 == 0 or weight.shape[-1] > LARGEST_KERNEL:
        raise ValueError(f"weight must have an odd kernel size of at most {LARGEST_KERNEL}, got {weight.shape[-1]}")
    if x.shape[-3] != weight.shape[1]:
        raise ValueError(f"x must have the {weight.shape[1]} channels of weight, got shape {tuple(x.shape)}")
    if 0 in x.shape[-3:] or 0 in weight.shape:
        raise ValueError(f"only the batch may be empty, got x {tuple(x.shape)} and weight {tuple(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    shared, own = tuple(x.shape[-2:]), (1 if x.ndim == 3 else x.shape[0], *x.shape[-2:])
    if tuple(mask.shape) not in (shared, own):
        raise ValueError(f"mask must have shape {shared}, or {own} with one for each image, got {tuple(mask.shape)}")
    if not isinstance(dilation, int) or isinstance(dilation, bool) or dilation < 1:
        raise ValueError(f"dilation must be a positive integer, got {dilation!r}")


# The three operators below are closed under differentiation: each is linear in both of its floating point tensors, and
# the derivative of one is another. The input gradient is itself a locally masked convolution, of mirrored taps.
# ``use_kernels`` is fixed where the public function is called: a backward pass runs what its forward pass ran.


def _runs_kernels(x: Tensor, use_kernels: bool) -> bool:
    # a graph traced for CUDA means the same on a CPU without the interpreter
    return use_kernels and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


@torch.library.custom_op("fastvae::locally_masked_conv2d", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int, use_kernels: bool) -> Tensor:
    if not x.numel():
        return x.new_empty(0, weight.shape[0], *x.shape[2:]).contiguous(memory_format=blocks.layout(x))
    if not _runs_kernels(x, use_kernels):
        keep_freed_memory()
        return blocks.forward(x, weight, bias, mask, dilation)
    from fastvae_kernels import locally_masked_conv2d as kernels

    return kernels.forward(x, weight, bias, mask, dilation).contiguous(memory_format=blocks.layout(x))


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int, use_kernels: bool) -> Tensor:
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=blocks.layout(x))


@torch.library.custom_op("fastvae::locally_masked_conv2d_grad_input", mutates_args=())
def _grad_input(grad_y: Tensor, weight: Tensor, mask: Tensor, dilation: int, use_kernels: bool) -> Tensor:
    if not grad_y.numel():
        return grad_y.new_empty(0, weight.shape[1], *grad_y.shape[2:]).contiguous(memory_format=blocks.layout(grad_y))
    if not _runs_kernels(grad_y, use_kernels):
        return blocks.grad_input(grad_y, weight, mask, dilation)
    from fastvae_kernels import locally_masked_conv2d as kernels

    seen_by = mirror_tap_bits(mask, weight.shape[-1], dilation)
    grad_x = kernels.grad_input(grad_y, weight, seen_by, dilation)
    return grad_x.contiguous(memory_format=blocks.layout(grad_y))


@_grad_input.register_fake
def _(grad_y: Tensor, weight: Tensor, mask: Tensor, dilation: int, use_kernels: bool) -> Tensor:
    shape = (grad_y.shape[0], weight.shape[1], grad_y.shape[2], grad_y.shape[3])
    return torch.empty(shape, dtype=grad_y.dtype, device=grad_y.device, memory_format=blocks.layout(grad_y))


@torch.library.custom_op("fastvae::locally_masked_conv2d_grad_weight", mutates_args=())
def _grad_weight(x: Tensor, grad_y: Tensor, kernel_size: int, mask: Tensor, dilation: int, use_kernels: bool) -> Tensor:
    if not x.numel():
        return x.new_zeros(grad_y.shape[1], x.shape[1], kernel_size, kernel_size)
    if not _runs_kernels(x, use_kernels):
        return blocks.grad_weight(x, grad_y, kernel_size, mask, dilation)
    from fastvae_kernels import locally_masked_conv2d as kernels

    return kernels.grad_weight(x, grad_y, kernel_size, mask, dilation)


@_grad_weight.register_fake
def _(x: Tensor, grad_y: Tensor, kernel_size: int, mask: Tensor, dilation: int, use_kernels: bool) -> Tensor:
    return x.new_empty(grad_y.shape[1], x.shape[1], kernel_size, kernel_size)


# What backward passes call: they can be inside a transform in which their forward pass was not, where only plain
# operations are right.


def _forward_of(x: Tensor, weight: Tensor, mask: Tensor, dilation: int, use_kernels: bool) -> Tensor:
    if is_transformed():
        return reference.locally_masked_conv2d(x, weight, None, mask, dilation)
    return _forward(x, weight, None, mask, dilation, use_kernels)


def _grad_input_of(grad_y: Tensor, weight: Tensor, mask: Tensor, dilation: int, use_kernels: bool) -> Tensor:
    if is_transformed():
        return plain_grad_input(grad_y, weight, mask, dilation)
    return _grad_input(grad_y, weight, mask, dilation, use_kernels)


def _grad_weight_of(x: Tensor, grad_y: Tensor, size: int, mask: Tensor, dilation: int, use_kernels: bool) -> Tensor:
    if is_transformed():
        return plain_grad_weight(x, grad_y, size, mask, dilation)
    return _grad_weight(x, grad_y, size, mask, dilation, use_kernels)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, mask, *ctx.options = inputs
    ctx.save_for_backward(x, weight, mask)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    grad_x = _grad_input_of(grad_y, weight, mask, *ctx.options) if needs_x else None
    grad_weight = _grad_weight_of(x, grad_y, weight.shape[-1], mask, *ctx.options) if needs_weight else None
    return grad_x, grad_weight, grad_y.sum((0, 2, 3)) if needs_bias else None, None, None, None


def _save_grad_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, weight, mask, *ctx.options = inputs
    ctx.save_for_backward(grad_y, weight, mask)


def _grad_input_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, weight, mask = ctx.saved_tensors
    needs_y, needs_weight, *_ = ctx.needs_input_grad
    grad_grad_y = _forward_of(grad_out, weight, mask, *ctx.options) if needs_y else None
    grad_weight = _grad_weight_of(grad_out, grad_y, weight.shape[-1], mask, *ctx.options) if needs_weight else None
    return grad_grad_y, grad_weight, None, None, None


def _save_grad_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grad_y, _, mask, *ctx.options = inputs
    ctx.save_for_backward(x, grad_y, mask)


def _grad_weight_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, grad_y, mask = ctx.saved_tensors
    needs_x, needs_y, *_ = ctx.needs_input_grad
    grad_x = _grad_input_of(grad_y, grad_out, mask, *ctx.options) if needs_x else None
    grad_grad_y = _forward_of(x, grad_out, mask, *ctx.options) if needs_y else None
    return grad_x, grad_grad_y, None, None, None, None


_forward.register_autograd(_backward, setup_context=_save_forward)
_grad_input.register_autograd(_grad_input_backward, setup_context=_save_grad_input)
_grad_weight.register_autograd(_grad_weight_backward, setup_context=_save_grad_weight)
