"""Locally masked convolution where there is little: one image of a few channels, as when it is generated.

What each pixel may see becomes a row, as in blocks of many images, and one product does the rest. Plans, gathers and
operators would take longer than that.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae import reference
from fastvae.reference.locally_masked_conv2d import masked_columns

from . import locally_masked_blocks as blocks
from ._dispatch import is_transformed
from .locally_masked_plan import kept_bits, mirrored, taps_or_bits
from .tap_bits import mirror_tap_bits

__all__ = ["SMALL", "plain_grad_input", "plain_grad_weight", "small_conv2d"]

SMALL = 1 << 20  # elements of the unfolded input, below which plans and operators cost more than they save


def small_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int) -> Tensor:
    """``locally_masked_conv2d`` of arguments known to be good, (N, C, H, W) on the CPU."""
    taps, keep = taps_or_bits(mask, weight.shape[-1], dilation, x.element_size(), x.shape[1])
    if taps is not None:
        y = blocks.static(x, weight, bias, taps, dilation)
    elif torch.is_grad_enabled():
        saved = mask.clone() if mask.is_inference() else mask
        y = _Small.apply(x, weight, bias, saved, dilation, keep)
    else:
        y = _product(_seen(x, keep, weight.shape[-1], dilation), weight, bias, x)
    return y.contiguous(memory_format=blocks.layout(x))


def _seen(x: Tensor, keep: Tensor, size: int, dilation: int) -> Tensor:
    """(N, C, H, W) -> (N, k * k * C, H * W), zero where ``taps_or_bits`` are."""
    batch, channels, height, width = x.shape
    if channels > 1:
        return blocks.rows_of(x, keep, size, dilation).view(batch, height * width, -1).transpose(1, 2)
    framed = F.pad(x, (size // 2 * dilation,) * 4).contiguous()
    image, _, row, one = framed.stride()
    seen = framed.as_strided((batch, size, size, height, width), (image, row * dilation, one * dilation, row, one))
    columns = x.new_empty(seen.shape)
    torch.bitwise_and(seen.view(keep.dtype), keep, out=columns.view(keep.dtype))
    return columns.view(batch, size * size, -1)


def _product(seen: Tensor, weight: Tensor, bias: Tensor | None, like: Tensor) -> Tensor:
    """``seen`` (N, k * k * C_in, H * W) -> (N, C_out, H, W) for images ``like`` these."""
    batch, _, height, width = like.shape
    packed = weight.flatten(1)
    if weight.shape[1] > 1:  # channels last, as in the rows
        packed = weight.flatten(2).transpose(1, 2).reshape(weight.shape[0], -1)
    if batch == 1:
        y = packed.mm(seen[0]) if bias is None else torch.addmm(bias[:, None], packed, seen[0])
    else:
        many = packed.expand(batch, -1, -1)
        y = many.bmm(seen) if bias is None else torch.baddbmm(bias[:, None], many, seen)
    return y.view(batch, -1, height, width)


class _Small(torch.autograd.Function):
    """Linear in both tensors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int, keep: Tensor
    ) -> Tensor:
        seen = _seen(x, keep, weight.shape[-1], dilation)
        ctx.dilation, ctx.seen = dilation, seen if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(x, weight, mask)
        return _product(seen, weight, bias, x)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_x = grad_weight = None
        size, dilation = weight.shape[-1], ctx.dilation
        if is_transformed():
            grad_x = plain_grad_input(grad_y, weight, mask, dilation) if needs_x else None
            grad_weight = plain_grad_weight(x, grad_y, size, mask, dilation) if needs_weight else None
        elif torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad_y):
            operators = (
                torch.ops.fastvae
            )  # whose derivatives are each other; several gradients at once are a loop to them
            if needs_x:
                grad_x = operators.locally_masked_conv2d_grad_input(grad_y, weight, mask, dilation, False)
            if needs_weight:
                grad_weight = operators.locally_masked_conv2d_grad_weight(x, grad_y, size, mask, dilation, False)
        else:
            grad_x = _grad_input(grad_y, weight, mask, dilation) if needs_x else None
            grad_weight = _grad_weight(ctx.seen, grad_y, weight) if needs_weight else None
        return grad_x, grad_weight, grad_y.sum((0, 2, 3)) if needs_bias else None, None, None, None


def _grad_input(grad_y: Tensor, weight: Tensor, mask: Tensor, dilation: int) -> Tensor:
    out_channels, in_channels, size, _ = weight.shape
    few = in_channels < min(blocks.FEWEST_CHANNELS, out_channels)
    if few or grad_y.numel() * size**2 >= SMALL:  # the gradient of many channels would be far from small, unfolded
        return blocks.fold_grad_input(grad_y, weight, mask, dilation)
    keep = kept_bits(mirrored(mask, size, dilation), size, grad_y.element_size(), out_channels)
    seen = blocks.rows_of(grad_y, keep, size, dilation).view(len(grad_y), grad_y[0, 0].numel(), -1).transpose(1, 2)
    return _product(seen, weight.transpose(0, 1).flip(2, 3), None, grad_y)


def _grad_weight(seen: Tensor, grad_y: Tensor, weight: Tensor) -> Tensor:
    out_channels, in_channels = weight.shape[:2]
    columns = seen.transpose(0, 1).reshape(seen.shape[1], -1)  # (k * k * C_in, N * H * W)
    product = grad_y.transpose(0, 1).reshape(out_channels, -1).mm(columns.t())
    return product.view(out_channels, -1, in_channels).transpose(1, 2).reshape(weight.shape)


def plain_grad_input(grad_y: Tensor, weight: Tensor, mask: Tensor, dilation: int) -> Tensor:
    """(N, C_out, H, W) -> (N, C_in, H, W) in operations that have all derivatives and transforms."""
    seen_by = mirror_tap_bits(mask, weight.shape[-1], dilation)
    return reference.locally_masked_conv2d(grad_y, weight.flip(2, 3).transpose(0, 1), None, seen_by, dilation)


def plain_grad_weight(x: Tensor, grad_y: Tensor, size: int, mask: Tensor, dilation: int) -> Tensor:
    """(N, C_in, H, W), (N, C_out, H, W) -> (C_out, C_in, k, k), likewise."""
    product = grad_y.flatten(2) @ masked_columns(x, size, mask, dilation).transpose(1, 2)  # (N, C_out, C_in * k * k)
    return product.sum(0).unflatten(1, (x.shape[1], size, size))
