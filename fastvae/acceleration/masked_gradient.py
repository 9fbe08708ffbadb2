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

from fastvae.ops._dispatch import autocast_dtype
from fastvae.ops.masked_conv2d import masked_conv2d_by_taps
from fastvae.ops.masked_conv2d_taps import Taps, frame_of, live_window

__all__ = ["convolve_keeping_gradient"]


def convolve_keeping_gradient(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
    mask: Tensor,
    dilation: int,
) -> Tensor:
    """As ``masked_conv2d_by_taps``, but masked taps of the weight receive the gradient of an unmasked convolution.

    ``F.conv2d`` with a weight that was overwritten by zeros has these values and derivatives, of all orders. Only the
    gradient of the weight needs the whole kernel; output and gradient of ``x`` need the window of the live taps.

    Args:
        x: (N, C_in, H, W).
        weight: (C_out, C_in, kH, kW), both odd.
        bias: (C_out,) or None.
        taps: those of ``mask``.
        mask: zeros and ones that broadcast to the weight.
        dilation: the distance between taps.

    Returns:
        (N, C_out, H, W).
    """
    if (dtype := autocast_dtype(x)) is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _Convolution.apply(x, weight, bias, taps, mask, dilation)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, taps: Taps, mask: Tensor, dilation: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.taps, ctx.dilation = taps, dilation
        return masked_conv2d_by_taps(x, weight, bias, taps, mask, dilation)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_x = _grad_input(x, weight, ctx.taps, mask, grad_y, ctx.dilation) if needs_x else None
        grad_weight = None
        if needs_weight:
            padding = _padding(weight, ctx.dilation)
            grad_weight = conv2d_weight(x, weight.shape, grad_y, padding=padding, dilation=ctx.dilation)
        return grad_x, grad_weight, grad_y.sum((0, 2, 3)) if needs_bias else None, None, None, None


def _padding(weight: Tensor, dilation: int) -> tuple[int, int]:
    return weight.shape[-2] // 2 * dilation, weight.shape[-1] // 2 * dilation


def _grad_input(x: Tensor, weight: Tensor, taps: Taps, mask: Tensor, grad_y: Tensor, dilation: int) -> Tensor:
    if torch.is_grad_enabled():  # to be differentiated again: masked taps are zero, but have a gradient here too
        zeroed = weight - (weight * (mask == 0)).detach()
        return conv2d_input(x.shape, zeroed, grad_y, padding=_padding(weight, dilation), dilation=dilation)
    frame = frame_of(taps.rows, taps.columns, taps.above, taps.before, dilation)
    left, right, above, below = frame.uneven
    shape = (*x.shape[:2], x.shape[2] + above + below, x.shape[3] + left + right)
    window = live_window(weight, taps, mask)
    grad_framed = conv2d_input(shape, window, grad_y, padding=frame.even, dilation=dilation)
    if min(frame.uneven) < 0:  # what was cut off has no gradient; first, for small images are cut to nothing
        grad_framed = F.pad(grad_framed, [max(0, -size) for size in frame.uneven])
    return F.pad(grad_framed, [min(0, -size) for size in frame.uneven]) if max(frame.uneven) > 0 else grad_framed
