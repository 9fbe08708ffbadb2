"""``masked_residual``: masked convolution, bias, activation and the residual's addition in one pass."""

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae import reference
from fastvae.reference.masked_conv2d import NamedMask
from fastvae.reference.masked_residual import Activation

from ._dispatch import autocast_dtype, choose, is_transformed, must_use_definition, runs_as_written
from .masked_conv2d import decide, kernels_are_faster, masked_conv2d_by_taps, taps_for, why_not_kernels
from .masked_conv2d_calls import key_of, known_call
from .masked_conv2d_checks import check_arguments, check_mask, check_tensor
from .masked_conv2d_operators import (
    convolve_window,
    empty_like,
    grad_input,
    grad_weight,
    layout_of,
    only_live,
    runs_kernels,
)
from .masked_conv2d_taps import live_window

__all__ = ["Activation", "masked_residual"]

_ACTIVATIONS = get_args(Activation)


def masked_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    *,
    mask: NamedMask | Tensor,
    activation: Activation = "relu",
    dilation: int = 1,
) -> Tensor:
    """A masked convolution whose activated result is added to a residual.

    Equal to ``residual + activation(masked_conv2d(x, weight, bias, mask=mask, dilation=dilation))``.

    Args:
        x: (N, C_in, H, W), floating point; N may be 0. A channels_last layout is preserved.
        weight: (C_out, C_in, kH, kW) with both sizes odd.
        bias: (C_out,) or None.
        residual: (N, C_out, H, W).
        mask: as in :func:`masked_conv2d`.
        activation: "relu", "elu" (with slope 1) or "none".
        dilation: the distance between taps in pixels.

    Returns:
        (N, C_out, H, W) in the dtype of ``x`` (under autocast, in the autocast dtype).

    Raises:
        TypeError: if an argument is no floating point tensor, or their dtypes differ.
        ValueError: if shapes do not fit, ``activation`` is something else, or as in :func:`masked_conv2d`.

    Example:
        >>> x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)
        >>> masked_residual(x, weight, None, 10 * x, mask="A")[0, 0]
        tensor([[10., 11.],
                [12., 13.]])
    """
    key = key_of("residual", mask, dilation, 1, x, weight, bias, residual)
    call = known_call(key)
    if call is not None and activation in _ACTIVATIONS:
        return _add_activated(call(x, weight, bias), residual, activation, layout_of(x))
    check_arguments(x, weight, bias, dilation)
    check_mask(mask, weight, 1)
    check_tensor("residual", residual, x)
    if x.ndim != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}; one image is x[None]")
    expected = (x.shape[0], weight.shape[0], *x.shape[2:])
    if tuple(residual.shape) != expected:
        raise ValueError(f"residual must have the shape of the result, {expected}, got {tuple(residual.shape)}")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {_ACTIVATIONS}, got {activation!r}")
    taps = taps_for(mask, weight, 1)
    if key is not None:
        h = decide(key, x, weight, taps, mask, dilation)(x, weight, bias)
        return _add_activated(h, residual, activation, layout_of(x))
    if (dtype := autocast_dtype(x)) is not None:
        x, weight, residual = x.to(dtype), weight.to(dtype), residual.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    preferred = kernels_are_faster(x, weight, "residual")
    if choose(x, weight, unsupported=why_not_kernels(x), preferred=preferred) == "triton" and not must_use_definition(
        x, weight
    ):
        given = [t for t in (x, weight, bias, residual) if t is not None]
        save = activation != "none" and torch.is_grad_enabled() and any(t.requires_grad for t in given)
        window = live_window(weight, taps, mask, zero_dead=False)
        where = (taps.live, taps.above, taps.before, dilation)
        return _forward(x, window, bias, residual, activation, *where, save)[0]
    h = masked_conv2d_by_taps(x, weight, bias, taps, mask, dilation)
    if runs_as_written():
        return _add_activated(h, residual, activation, layout_of(x))
    y = residual + reference.activate(h, activation)
    return y.contiguous(memory_format=layout_of(x))  # a sum takes the layout of its first term


def _add_activated(h: Tensor, residual: Tensor, activation: Activation, layout: torch.memory_format) -> Tensor:
    """In the memory of ``h``, which is nobody else's, as far as a gradient allows it."""
    a = _activate_in_place(h, activation)
    y = residual + a if h.requires_grad else a.add_(residual)
    return y.contiguous(memory_format=layout)


def _activate_in_place(h: Tensor, activation: Activation) -> Tensor:
    """:func:`fastvae.reference.activate` in the memory of ``h``, which is nobody else's: its gradient needs y only."""
    if activation == "none":
        return h
    return h.relu_() if activation == "relu" else F.elu_(h)


@torch.library.custom_op("fastvae::masked_residual", mutates_args=())
def _forward(
    x: Tensor,
    window: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    activation: str,
    live: int,
    above: int,
    before: int,
    dilation: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The result and, if it is to be saved, the activation (N, C_out, H, W), else nothing (0,)."""
    layout = layout_of(x)
    if runs_kernels(x):
        from fastvae_kernels import masked_conv2d_epilogues as kernels

        name = "" if activation == "none" else activation
        y, saved = kernels.residual_forward(x, window, bias, residual, name, live, dilation, (above, before), save=save)
    else:
        h = convolve_window(x, only_live(window, live), bias, above, before, dilation)
        a = reference.activate(h, activation)  # type: ignore[arg-type]
        y, saved = residual + a, a if save else None
    kept = x.new_empty(0) if saved is None else saved.contiguous(memory_format=layout)
    return y.contiguous(memory_format=layout), kept


@_forward.register_fake
def _(
    x: Tensor,
    window: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    activation: str,
    live: int,
    above: int,
    before: int,
    dilation: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    return empty_like(x, window.shape[0]), empty_like(x, window.shape[0]) if save else x.new_empty(0)


@torch.library.custom_op("fastvae::activation_backward", mutates_args=())
def _activation_backward(activated: Tensor, grad_y: Tensor, activation: str) -> Tensor:
    """(N, C, H, W) twice -> the gradient before the activation."""
    if runs_kernels(activated):
        from fastvae_kernels import masked_conv2d_epilogues as kernels

        grad_h = kernels.activation_backward(activated, grad_y, activation)
    else:
        grad_h = _activation_gradient(activated, grad_y, activation)
    return grad_h.contiguous(memory_format=layout_of(activated))


@_activation_backward.register_fake
def _(activated: Tensor, grad_y: Tensor, activation: str) -> Tensor:
    return empty_like(activated, activated.shape[1])


def _activation_gradient(activated: Tensor, grad_y: Tensor, activation: str) -> Tensor:
    """The same as differentiable operations."""
    slope = activated + 1 if activation == "elu" else torch.zeros_like(activated)
    return grad_y * torch.where(activated > 0, torch.ones_like(activated), slope)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, window, _, _, ctx.activation, *ctx.taps, ctx.saved = inputs
    # an output, so that a second derivative finds its way through the activation
    ctx.save_for_backward(x, window, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y: Tensor | None, grad_activated: Tensor | None):  # type: ignore[no-untyped-def]
    x, window, activated = ctx.saved_tensors
    nothing = (None,) * 6
    if not ctx.saved and ctx.activation != "none":
        raise RuntimeError("masked_residual was called without save=True and cannot be differentiated")
    total = grad_y if grad_activated is None else grad_activated if grad_y is None else grad_y + grad_activated
    if total is None:
        return None, None, None, None, *nothing
    if ctx.activation == "none":
        grad_h = total
    elif torch.is_grad_enabled() or is_transformed():
        grad_h = _activation_gradient(activated, total, ctx.activation)
    else:
        grad_h = _activation_backward(activated, total, ctx.activation)
    needs_x, needs_window, needs_bias, *_ = ctx.needs_input_grad
    return (
        grad_input(grad_h, window, *ctx.taps) if needs_x else None,
        grad_weight(x, grad_h, *window.shape[2:], *ctx.taps) if needs_window else None,
        grad_h.sum((0, 2, 3)) if needs_bias else None,
        grad_y,
        *nothing,
    )


_forward.register_autograd(_backward, setup_context=_save)
