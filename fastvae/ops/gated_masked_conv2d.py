"""``gated_masked_conv2d``: the layer of gated PixelCNNs, convolution, conditioning and gate in one pass."""

import torch
from torch import Tensor

from fastvae import reference
from fastvae.reference.masked_conv2d import NamedMask

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
from .masked_conv2d_taps import Taps, live_window

__all__ = ["check_gated", "gate_in_place", "gated_masked_conv2d", "gated_masked_conv2d_by_taps"]


def gated_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    condition: Tensor | None = None,
    *,
    mask: NamedMask | Tensor,
    dilation: int = 1,
) -> Tensor:
    """Masked convolution to 2C channels, of which the second half gates the first.

    Equal to ``tanh(f + condition_f) * sigmoid(g + condition_g)`` where ``f, g`` are the halves of
    ``masked_conv2d(x, weight, bias, mask=mask, dilation=dilation)``. The condition reaches every pixel: no mask.
    Van den Oord et al.: "Conditional image generation with PixelCNN decoders" (2016), equation 4.

    The Triton kernel writes C channels and, where a gradient is wanted, tanh and sigmoid, as many bytes as f and g:
    storing them is less work than convolving again. PyTorch's own operations are as fast as a hand-written gate on a
    CPU, where the time is that of tanh and sigmoid; there the gain is that of :func:`masked_conv2d`.

    Args:
        x: (N, C_in, H, W), floating point; N may be 0. A channels_last layout is preserved.
        weight: (2C, C_in, kH, kW) with both sizes odd.
        bias: (2C,) or None.
        condition: a vector (N, 2C) for each image, a map (N, 2C, H, W), or None.
        mask: as in :func:`masked_conv2d`.
        dilation: the distance between taps in pixels.

    Returns:
        (N, C, H, W) in the dtype of ``x`` (under autocast, in the autocast dtype).

    Raises:
        TypeError: if an argument is no floating point tensor, or their dtypes differ.
        ValueError: if shapes do not fit, the number of output channels is odd, or as in :func:`masked_conv2d`.

    Example:
        >>> x, weight = torch.zeros(2, 3, 8, 8), torch.zeros(10, 3, 3, 3)
        >>> gated_masked_conv2d(x, weight, condition=torch.zeros(2, 10), mask="A").shape
        torch.Size([2, 5, 8, 8])
    """
    key = key_of("gated", mask, dilation, 1, x, weight, bias, condition)
    call = known_call(key)
    if call is None:
        check_arguments(x, weight, bias, dilation)
        check_mask(mask, weight, 1)
        check_gated(x, weight, condition)
        taps = taps_for(mask, weight, 1)
        if key is None:
            return gated_masked_conv2d_by_taps(x, weight, bias, condition, taps, mask, dilation)
        call = decide(key, x, weight, taps, mask, dilation)
    return gate_in_place(call(x, weight, bias), condition)


def check_gated(x: Tensor, weight: Tensor, condition: Tensor | None) -> None:
    """What a gate needs besides what a masked convolution does."""
    if x.ndim != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}; one image is x[None]")
    channels = weight.shape[0]
    if channels % 2:
        raise ValueError(
            f"weight must have an even number of output channels, one half to gate the other, got {channels}"
        )
    if condition is not None:
        check_tensor("condition", condition, x)
        shapes = ((x.shape[0], channels), (x.shape[0], channels, *x.shape[2:]))
        if tuple(condition.shape) not in shapes:
            raise ValueError(f"condition must have shape {shapes[0]} or {shapes[1]}, got {tuple(condition.shape)}")


def gated_masked_conv2d_by_taps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    taps: Taps,
    mask: NamedMask | Tensor,
    dilation: int,
) -> Tensor:
    """:func:`gated_masked_conv2d` of arguments known to be good, for a mask whose taps are known."""
    if (dtype := autocast_dtype(x)) is not None:
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        condition = None if condition is None else condition.to(dtype)
    preferred = kernels_are_faster(x, weight, "gated")
    if choose(x, weight, unsupported=why_not_kernels(x), preferred=preferred) == "triton" and not must_use_definition(
        x, weight
    ):
        given = [t for t in (x, weight, bias, condition) if t is not None]
        save = torch.is_grad_enabled() and any(t.requires_grad for t in given)
        window = live_window(weight, taps, mask, zero_dead=False)
        where = (taps.live, taps.above, taps.before, dilation)
        return _forward(x, window, bias, condition, *where, save)[0]
    h = masked_conv2d_by_taps(x, weight, bias, taps, mask, dilation)
    return gate_in_place(h, condition) if runs_as_written() else reference.gate(h, condition)


def gate_in_place(h: Tensor, condition: Tensor | None) -> Tensor:
    """:func:`fastvae.reference.gate` in the memory of ``h``, which is nobody else's, with the same bits."""
    if condition is not None:
        h = h.add_(condition[:, :, None, None] if condition.ndim == 2 else condition)
    f, g = h.chunk(2, 1)
    return f.tanh() * g.sigmoid() if h.requires_grad else f.tanh_() * g.sigmoid_()


@torch.library.custom_op("fastvae::gated_masked_conv2d", mutates_args=())
def _forward(
    x: Tensor,
    window: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    live: int,
    above: int,
    before: int,
    dilation: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The result and, if they are to be saved, tanh and sigmoid (N, 2C, H, W), else nothing (0,)."""
    if runs_kernels(x):
        from fastvae_kernels import masked_conv2d_epilogues as kernels

        y, saved = kernels.gated_forward(x, window, bias, condition, live, dilation, (above, before), save=save)
    else:
        h = convolve_window(x, only_live(window, live), bias, above, before, dilation)
        if condition is not None:
            h = h + (condition[:, :, None, None] if condition.ndim == 2 else condition)
        f, g = h.chunk(2, 1)
        saved = torch.cat((f.tanh(), g.sigmoid()), 1) if save else None
        y = f.tanh() * g.sigmoid()
    layout = layout_of(x)
    gates = x.new_empty(0) if saved is None else saved.contiguous(memory_format=layout)
    return y.contiguous(memory_format=layout), gates


@_forward.register_fake
def _(
    x: Tensor,
    window: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    live: int,
    above: int,
    before: int,
    dilation: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    gates = empty_like(x, window.shape[0]) if save else x.new_empty(0)
    return empty_like(x, window.shape[0] // 2), gates


@torch.library.custom_op("fastvae::gate_backward", mutates_args=())
def _gate_backward(gates: Tensor, grad_y: Tensor) -> Tensor:
    """tanh and sigmoid (N, 2C, H, W) and the gradient (N, C, H, W) of their product -> that of f and g."""
    if runs_kernels(gates):
        from fastvae_kernels import masked_conv2d_epilogues as kernels

        return kernels.gate_backward(gates, grad_y).contiguous(memory_format=layout_of(gates))
    return _gate_gradient(gates, grad_y, None).contiguous(memory_format=layout_of(gates))


@_gate_backward.register_fake
def _(gates: Tensor, grad_y: Tensor) -> Tensor:
    return empty_like(gates, gates.shape[1])


def _gate_gradient(gates: Tensor, grad_y: Tensor, grad_gates: Tensor | None) -> Tensor:
    """The same as differentiable operations; ``grad_gates`` is what else depends on the gates."""
    t, s = gates.chunk(2, 1)
    grad = torch.cat((grad_y * s, grad_y * t), 1)
    grad = grad if grad_gates is None else grad + grad_gates
    return grad * torch.cat((1 - t * t, s * (1 - s)), 1)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, window, _, condition, *ctx.taps, ctx.saved = inputs
    ctx.is_map = condition is not None and condition.ndim == 4
    # an output, so that a second derivative finds its way through tanh and sigmoid
    ctx.save_for_backward(x, window, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y: Tensor | None, grad_gates: Tensor | None):  # type: ignore[no-untyped-def]
    x, window, gates = ctx.saved_tensors
    nothing = (None,) * 5
    if not ctx.saved:
        raise RuntimeError("gated_masked_conv2d was called without save=True and cannot be differentiated")
    if grad_y is None and grad_gates is None:
        return None, None, None, None, *nothing
    if grad_y is None:
        grad_y = torch.zeros_like(gates[:, : gates.shape[1] // 2])
    simple = grad_gates is None and not (torch.is_grad_enabled() or is_transformed())
    grad_h = _gate_backward(gates, grad_y) if simple else _gate_gradient(gates, grad_y, grad_gates)
    needs_x, needs_window, needs_bias, needs_condition, *_ = ctx.needs_input_grad
    summed = grad_h.sum((2, 3)) if needs_bias or (needs_condition and not ctx.is_map) else None  # (N, 2C)
    return (
        grad_input(grad_h, window, *ctx.taps) if needs_x else None,
        grad_weight(x, grad_h, *window.shape[2:], *ctx.taps) if needs_window else None,
        summed.sum(0) if needs_bias and summed is not None else None,
        (grad_h if ctx.is_map else summed) if needs_condition else None,
        *nothing,
    )


_forward.register_autograd(_backward, setup_context=_save)
