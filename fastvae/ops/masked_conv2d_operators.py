"""The three operators under masked convolution: forward, input gradient, weight gradient, for any window of taps.

A window is (C_out, C_in, rows, columns): the part of a kernel that holds its live taps. ``live`` of them, the first in
raster order, are used, whatever the others hold; ``above`` and ``before`` say how far right and below of the first tap
the output pixel lies.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ._dispatch import is_transformed
from .masked_conv2d_taps import frame_of

__all__ = [
    "KERNEL_DTYPES",
    "convolve_window",
    "empty_like",
    "grad_input",
    "grad_weight",
    "layout_of",
    "masked_conv2d_forward",
    "only_live",
    "runs_kernels",
]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def convolve_window(x: Tensor, window: Tensor, bias: Tensor | None, above: int, before: int, dilation: int) -> Tensor:
    """The PyTorch path: what lies outside the window is cut off instead of multiplied by 0.

    Plain differentiable operations: every derivative and every transform of torch.func is PyTorch's own.
    """
    frame = frame_of(window.shape[2], window.shape[3], above, before, dilation)
    return F.conv2d(frame.around(x), window, bias, padding=frame.even, dilation=dilation)


def _plain_forward(x: Tensor, window: Tensor, bias: Tensor | None, live: int, *where: int) -> Tensor:
    return convolve_window(x, only_live(window, live), bias, *where)


def _plain_grad_input(grad_y: Tensor, window: Tensor, live: int, above: int, before: int, dilation: int) -> Tensor:
    # the taps mirrored at the output pixel: last become first
    mirrored = only_live(window, live).flip(2, 3).transpose(0, 1)
    below, after = window.shape[2] - 1 - above, window.shape[3] - 1 - before
    return convolve_window(grad_y, mirrored, None, below, after, dilation)


def _plain_grad_weight(
    x: Tensor, grad_y: Tensor, rows: int, columns: int, live: int, above: int, before: int, dilation: int
) -> Tensor:
    shape = (grad_y.shape[1], x.shape[1], rows, columns)
    frame = frame_of(rows, columns, above, before, dilation)
    whole = conv2d_weight(frame.around(x), shape, grad_y, padding=frame.even, dilation=dilation)
    return only_live(whole, live)


# The operators run the Triton kernels. They are closed under differentiation: each is linear in both of its tensors,
# and the derivative of one is another. On a CPU without the interpreter they run the PyTorch path, so that a graph
# traced for CUDA means the same everywhere.


def runs_kernels(x: Tensor) -> bool:
    """Whether an operator that got ``x`` runs its kernels."""
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout that results have: that of ``x``."""
    is_channels_last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


def only_live(window: Tensor, live: int) -> Tensor:
    """``window`` with zeros after its first ``live`` taps."""
    taps = window.shape[2] * window.shape[3]
    return window if live == taps else F.pad(window.flatten(2)[..., :live], (0, taps - live)).view(window.shape)


def empty_like(x: Tensor, channels: int) -> Tensor:
    """(N, channels, H, W) in the layout of ``x``, for the shapes of what is not computed."""
    shape = (x.shape[0], channels, x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))


@torch.library.custom_op("fastvae::masked_conv2d", mutates_args=())
def masked_conv2d_forward(
    x: Tensor, window: Tensor, bias: Tensor | None, live: int, above: int, before: int, dilation: int
) -> Tensor:
    """(N, C_in, H, W) -> (N, C_out, H, W)."""
    if not runs_kernels(x):
        y = _plain_forward(x, window, bias, live, above, before, dilation)
    else:
        from fastvae_kernels import masked_conv2d as kernels

        y = kernels.forward(x, window, bias, live, dilation, (above, before))
    return y.contiguous(memory_format=layout_of(x))


@masked_conv2d_forward.register_fake
def _(x: Tensor, window: Tensor, bias: Tensor | None, live: int, above: int, before: int, dilation: int) -> Tensor:
    return empty_like(x, window.shape[0])


@torch.library.custom_op("fastvae::masked_conv2d_grad_input", mutates_args=())
def masked_conv2d_grad_input(
    grad_y: Tensor, window: Tensor, live: int, above: int, before: int, dilation: int
) -> Tensor:
    """(N, C_out, H, W) -> (N, C_in, H, W)."""
    if not runs_kernels(grad_y):
        grad_x = _plain_grad_input(grad_y, window, live, above, before, dilation)
    else:
        from fastvae_kernels import masked_conv2d as kernels

        grad_x = kernels.grad_input(grad_y, window, live, dilation, (above, before))
    return grad_x.contiguous(memory_format=layout_of(grad_y))


@masked_conv2d_grad_input.register_fake
def _(grad_y: Tensor, window: Tensor, live: int, above: int, before: int, dilation: int) -> Tensor:
    return empty_like(grad_y, window.shape[1])


@torch.library.custom_op("fastvae::masked_conv2d_grad_weight", mutates_args=())
def masked_conv2d_grad_weight(
    x: Tensor, grad_y: Tensor, rows: int, columns: int, live: int, above: int, before: int, dilation: int
) -> Tensor:
    """(N, C_in, H, W) and (N, C_out, H, W) -> (C_out, C_in, rows, columns), exactly zero at the dead taps."""
    if runs_kernels(x):
        from fastvae_kernels import masked_conv2d as kernels

        return kernels.grad_weight(x, grad_y, (rows, columns), live, dilation, (above, before))
    return _plain_grad_weight(x, grad_y, rows, columns, live, above, before, dilation).contiguous()


@masked_conv2d_grad_weight.register_fake
def _(x: Tensor, grad_y: Tensor, rows: int, columns: int, live: int, above: int, before: int, dilation: int) -> Tensor:
    return x.new_empty(grad_y.shape[1], x.shape[1], rows, columns)


# What backward passes call: they can be inside a transform in which their forward pass was not.


def _forward(x: Tensor, window: Tensor, *taps: int) -> Tensor:
    return (_plain_forward if is_transformed() else masked_conv2d_forward)(x, window, None, *taps)


def grad_input(grad_y: Tensor, window: Tensor, *taps: int) -> Tensor:
    """(N, C_out, H, W) -> (N, C_in, H, W), differentiable in every way; ``taps`` are live, above, before, dilation."""
    return (_plain_grad_input if is_transformed() else masked_conv2d_grad_input)(grad_y, window, *taps)


def grad_weight(x: Tensor, grad_y: Tensor, rows: int, columns: int, *taps: int) -> Tensor:
    """(N, C_in, H, W), (N, C_out, H, W) -> (C_out, C_in, rows, columns), differentiable in every way."""
    return (_plain_grad_weight if is_transformed() else masked_conv2d_grad_weight)(x, grad_y, rows, columns, *taps)


def _save_forward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, window, _, *ctx.taps = inputs
    ctx.save_for_backward(x, window)


def _backward(ctx, grad_y: Tensor):  # type: ignore[no-untyped-def]
    x, window = ctx.saved_tensors
    needs_x, needs_window, needs_bias, *_ = ctx.needs_input_grad
    grad_x = grad_input(grad_y, window, *ctx.taps) if needs_x else None
    grad_window = grad_weight(x, grad_y, *window.shape[2:], *ctx.taps) if needs_window else None
    return grad_x, grad_window, grad_y.sum((0, 2, 3)) if needs_bias else None, None, None, None, None


def _save_grad_input(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    grad_y, window, *ctx.taps = inputs
    ctx.save_for_backward(grad_y, window)


def _grad_input_backward(ctx, grad_out: Tensor):  # type: ignore[no-untyped-def]
    grad_y, window = ctx.saved_tensors
    needs_y, needs_window, *_ = ctx.needs_input_grad
    grad_grad_y = _forward(grad_out, window, *ctx.taps) if needs_y else None
    grad_window = grad_weight(grad_out, grad_y, *window.shape[2:], *ctx.taps) if needs_window else None
    return grad_grad_y, grad_window, None, None, None, None


def _save_grad_weight(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, grad_y, _, _, *ctx.taps = inputs
    ctx.save_for_backward(x, grad_y)


def _grad_weight_backward(ctx, grad_out: Tensor):  # type: ignore[no-untyped-def]
    x, grad_y = ctx.saved_tensors
    needs_x, needs_y, *_ = ctx.needs_input_grad
    grad_x = grad_input(grad_y, grad_out, *ctx.taps) if needs_x else None
    grad_grad_y = _forward(x, grad_out, *ctx.taps) if needs_y else None
    return grad_x, grad_grad_y, None, None, None, None, None, None


masked_conv2d_forward.register_autograd(_backward, setup_context=_save_forward)
masked_conv2d_grad_input.register_autograd(_grad_input_backward, setup_context=_save_grad_input)
masked_conv2d_grad_weight.register_autograd(_grad_weight_backward, setup_context=_save_grad_weight)
