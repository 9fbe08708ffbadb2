"""The masked convolution whose masked taps receive a gradient, for layers that were trained with it.

A layer that overwrites its masked taps by zero and then convolves gives those taps a gradient. Nothing comes of it,
for the next forward overwrites them again, except where a sum over all gradients is taken: the norm by which they are
clipped, the gain of a weight norm, the scale of a whole layer in LAMB. So that training stays the same, it is kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .window import Kind, Window, convolve, frame_for, live_taps

__all__ = ["convolve_keeping_gradient"]


def convolve_keeping_gradient(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    kind: Kind | None,
    window: Window,
    dilation: tuple[int, int],
) -> Tensor:
    """As ``convolve``, but the weight receives the gradient of an unmasked convolution at masked taps too.

    ``F.conv2d`` with a weight that was overwritten by zeros has these values and derivatives, of all orders. Only the
    gradient of the weight needs the whole kernel; output and gradient of ``x`` need the window.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _Convolution.apply(x, weight, bias, mask, kind, window, dilation)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor,
        kind: Kind | None,
        window: Window,
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.window, ctx.dilation = window, dilation
        return convolve(x, weight, bias, mask, kind, window, dilation)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_x = _grad_input(x, weight, mask, grad_y, ctx.window, ctx.dilation) if needs_x else None
        padding = _padding(weight, ctx.dilation)
        grad_weight = None
        if needs_weight:
            grad_weight = conv2d_weight(x, weight.shape, grad_y, padding=padding, dilation=ctx.dilation)
        return grad_x, grad_weight, grad_y.sum((0, 2, 3)) if needs_bias else None, None, None, None, None


def _padding(weight: Tensor, dilation: tuple[int, int]) -> tuple[int, int]:
    return weight.shape[-2] // 2 * dilation[0], weight.shape[-1] // 2 * dilation[1]


def _grad_input(
    x: Tensor, weight: Tensor, mask: Tensor, grad_y: Tensor, window: Window, dilation: tuple[int, int]
) -> Tensor:
    if torch.is_grad_enabled():  # to be differentiated again: masked taps are zero, but have a gradient here too
        zeroed = weight - (weight * (mask == 0)).detach()
        return conv2d_input(x.shape, zeroed, grad_y, padding=_padding(weight, dilation), dilation=dilation)
    frame = frame_for(window, (weight.shape[-2], weight.shape[-1]), dilation)
    left, right, above, below = frame.uneven
    shape = (*x.shape[:2], x.shape[2] + above + below, x.shape[3] + left + right)
    live = live_taps(weight, mask, window)
    grad_framed = conv2d_input(shape, live, grad_y, padding=frame.padding, dilation=dilation)
    return F.pad(grad_framed, (-left, -right, -above, -below))
