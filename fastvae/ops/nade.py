"""``nade_log_prob`` and ``nade_sample``: NADE as a fused scan that never holds (B, D, H) in memory."""

from typing import Any

import torch
from torch import Tensor

from fastvae import reference

from . import nade_blocks
from ._dispatch import choose, must_use_definition, refuse_tangents
from .bernoulli_log_prob import bernoulli_log_prob

__all__ = ["nade_log_prob", "nade_logits", "nade_sample"]

_MOST_HIDDEN = 8192  # units that one program of the kernels keeps in registers


def nade_log_prob(
    x: Tensor,
    weight: Tensor,
    hidden_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    order: Tensor | None = None,
) -> Tensor:
    """Log-probability of binary data under NADE, nats; see :func:`nade_logits`.

    Args:
        x: (..., D) zeros and ones of any dtype.
        weight, hidden_bias, output_weight, output_bias, order: as for :func:`nade_logits`.

    Returns:
        (...) nats; float64 for float64 parameters, else float32.

    Raises:
        TypeError, ValueError: as :func:`nade_logits`.

    Example:
        >>> x = torch.cartesian_prod(*[torch.arange(2.0)] * 3)
        >>> weight, output_weight = torch.randn(2, 3, 5)
        >>> total = nade_log_prob(x, weight, torch.zeros(5), output_weight, torch.zeros(3)).exp().sum()
        >>> bool(total.sub(1.0).abs() < 1e-5)
        True
    """
    logits = nade_logits(x, weight, hidden_bias, output_weight, output_bias, order)
    return bernoulli_log_prob(x, logits, event_dims=1)


def nade_logits(
    x: Tensor,
    weight: Tensor,
    hidden_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    order: Tensor | None = None,
) -> Tensor:
    r"""Logits of every binary value given the ones before it, :math:`b_i + V_i \sigma(c + \sum_{j<i} x_j W_j)`.

    Equal to :func:`fastvae.reference.nade_logits`, at O(D H) for each row; the backward pass recomputes the hidden
    units from the last dimension to the first, so the memory beside data and parameters is O(B H).
    Larochelle and Murray: "The neural autoregressive distribution estimator" (2011), equations 7 to 9.

    Args:
        x: (..., D) zeros and ones of any dtype.
        weight: W (D, H), floating point, what each dimension adds to the hidden units.
        hidden_bias: c (H,).
        output_weight: V (D, H), how the logit of each dimension reads the hidden units.
        output_bias: b (D,).
        order: (D,) int64, the dimensions in the order in which they are generated; None for 0, 1, 2, ...

    Returns:
        (..., D) logits in the dtype of the parameters, at least float32.

    Raises:
        TypeError: if a parameter is not floating point or their dtypes differ, or ``order`` is not int64.
        ValueError: if shapes or devices do not fit.

    Example:
        >>> nade_logits(torch.ones(2, 3), torch.ones(3, 4), torch.zeros(4), torch.ones(3, 4), torch.zeros(3))[0]
        tensor([2.0000, 2.9242, 3.5232])
    """
    parameters = (weight, hidden_bias, output_weight, output_bias)
    _check("x", x, parameters, order)
    rows = x.reshape(-1, x.shape[-1])
    parameters = _wide(parameters)
    if order is not None:
        rows, parameters = rows.index_select(1, order), _ordered(parameters, order)
    rows = rows.to(parameters[0].dtype)
    if x.requires_grad or must_use_definition(x, *parameters):
        with torch.autocast(x.device.type, enabled=False):
            logits = reference.nade_logits(rows, *parameters)
    else:
        logits = _forward(rows, *parameters)
    if order is not None:
        logits = logits.index_select(1, order.argsort())
    return logits.reshape(x.shape)


def nade_sample(
    uniform: Tensor,
    weight: Tensor,
    hidden_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    order: Tensor | None = None,
) -> Tensor:
    """Binary data drawn from NADE, one where the uniform number is below the probability, O(D H) for each row.

    Equal to :func:`fastvae.reference.nade_sample`. Not differentiable.

    Args:
        uniform: (..., D) floating point numbers in (0, 1), one for each dimension.
        weight, hidden_bias, output_weight, output_bias, order: as for :func:`nade_logits`.

    Returns:
        (..., D) zeros and ones in the dtype of the parameters, at least float32.

    Raises:
        TypeError, ValueError: as :func:`nade_logits`.

    Example:
        >>> nade_sample(torch.tensor([0.6, 0.6]), torch.ones(2, 4), torch.zeros(4), torch.ones(2, 4), torch.zeros(2))
        tensor([1., 1.])
    """
    parameters = (weight, hidden_bias, output_weight, output_bias)
    _check("uniform", uniform, parameters, order)
    rows = uniform.reshape(-1, uniform.shape[-1])
    weight, hidden_bias, output_weight, output_bias = (p.detach() for p in parameters)
    parameters = _wide((weight, hidden_bias, output_weight, output_bias))
    if order is not None:
        rows, parameters = rows.index_select(1, order), _ordered(parameters, order)
    rows = rows.to(parameters[0].dtype)
    if must_use_definition(uniform, *parameters):
        with torch.autocast(uniform.device.type, enabled=False):
            x = reference.nade_sample(rows, *parameters)
    else:
        x = _sample(rows, *parameters)
    if order is not None:
        x = x.index_select(1, order.argsort())
    return x.reshape(uniform.shape)


Parameters = tuple[Tensor, Tensor, Tensor, Tensor]


def _check(name: str, x: Tensor, parameters: Parameters, order: Tensor | None) -> None:
    weight = parameters[0]
    if not isinstance(weight, Tensor) or weight.ndim != 2 or 0 in weight.shape:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight must have shape (D, H), got {got}")
    features, hidden = weight.shape
    shapes = {"hidden_bias": (hidden,), "output_weight": (features, hidden), "output_bias": (features,)}
    for key, tensor, shape in zip(shapes, parameters[1:], shapes.values(), strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{key} must have shape {shape}, got {tuple(tensor.shape)}")
    for key, tensor in zip(("weight", *shapes), parameters, strict=True):
        if not tensor.is_floating_point() or tensor.dtype != weight.dtype:
            raise TypeError(f"{key} must be floating point and have one dtype, {weight.dtype}, got {tensor.dtype}")
    if not isinstance(x, Tensor) or x.shape[-1:] != (features,):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must have shape (..., {features}), got {got}")
    if order is not None and (order.dtype != torch.int64 or tuple(order.shape) != (features,)):
        raise TypeError(f"order must be int64 of shape ({features},), got {order.dtype} {tuple(order.shape)}")
    for key, other in ((name, x), *zip(shapes, parameters[1:], strict=True), ("order", order)):
        if other is not None and other.device != weight.device:
            raise ValueError(f"{key} must be on the device of weight, {weight.device}, got {other.device}")


def _wide(parameters: Parameters) -> Parameters:
    if parameters[0].dtype in (torch.float16, torch.bfloat16):
        return tuple(p.float() for p in parameters)  # type: ignore[return-value]
    return parameters


def _ordered(parameters: Parameters, order: Tensor) -> Parameters:
    weight, hidden_bias, output_weight, output_bias = parameters
    moved = (t.index_select(0, order) for t in (weight, output_weight, output_bias))
    weight, output_weight, output_bias = moved
    return weight, hidden_bias, output_weight, output_bias


def _uses_kernels(x: Tensor, weight: Tensor) -> bool:
    unsupported = None
    if weight.dtype == torch.float64:
        unsupported = "the kernels compute in float32, got float64"
    elif weight.shape[1] > _MOST_HIDDEN:
        unsupported = f"the kernels take up to {_MOST_HIDDEN} hidden units, got {weight.shape[1]}"
    return choose(x, weight, unsupported=unsupported) == "triton"


@torch.library.custom_op("fastvae::nade_logits", mutates_args=())
def _forward(x: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor) -> Tensor:
    if _uses_kernels(x, weight):
        from fastvae_kernels import nade as kernels

        return kernels.nade_forward(x, weight, hidden_bias, output_weight, output_bias)
    return nade_blocks.logits(x, weight, hidden_bias, output_weight, output_bias)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("fastvae::nade_logits_backward", mutates_args=())
def _backward(
    x: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if _uses_kernels(x, weight):
        from fastvae_kernels import nade as kernels

        return kernels.nade_backward(x, weight, hidden_bias, output_weight, grad)
    return nade_blocks.gradients(x, weight, hidden_bias, output_weight, grad)


@_backward.register_fake
def _(
    x: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(weight), torch.empty_like(hidden_bias), torch.empty_like(output_weight)


@torch.library.custom_op("fastvae::nade_sample", mutates_args=())
def _sample(uniform: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor) -> Tensor:
    if _uses_kernels(uniform, weight):
        from fastvae_kernels import nade as kernels

        return kernels.nade_sample(uniform, weight, hidden_bias, output_weight, output_bias)
    return nade_blocks.sample(uniform, weight, hidden_bias, output_weight, output_bias)


@_sample.register_fake
def _(uniform: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor) -> Tensor:
    return uniform.new_empty(uniform.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    refuse_tangents("nade_logits", grad)
    grad_weight, grad_hidden_bias, grad_output_weight = _backward(*ctx.saved_tensors, grad)
    return None, grad_weight, grad_hidden_bias, grad_output_weight, grad.sum(0)


_forward.register_autograd(_autograd, setup_context=_setup_context)
