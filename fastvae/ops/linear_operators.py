"""The operator behind every last linear layer with its likelihood, and its gradient; the families enter themselves."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._dispatch import choose, must_use_definition, refuse_tangents
from .likelihood_rows import accumulator, is_small, needs_grad, runs_directly
from .linear_rows import as_rows, cast_for_autocast, check_linear

__all__ = ["FAMILIES", "Family", "linear_log_prob"]


@dataclass(frozen=True)
class Family:
    """The CPU path of a likelihood.

    ``forward(x, h, weight, bias, log_scale, num_levels)`` with data (X, A, B), rows (R, H), weights (P, H), whose P
    parameters are (A, P / AB, B), for mixtures (P / B, B), and for Gaussians log-scales (1 or A * B,) -> (R,); row r
    meets ``x[r % X]``. ``backward(x, h, weight, bias, log_scale, num_levels, grad, needs)`` -> the gradients of h,
    weight, bias and log_scale, empty where there is nothing or ``needs`` (h, weight, bias) says that nobody asks.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


FAMILIES: dict[str, Family] = {}

# parameters that a gradient may keep, 64 MB in float32: up to there the layer and the likelihood apart are faster than
# computing them twice
_KEPT = 2**24


def linear_log_prob(
    family: str,
    definition: Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor],
    of_params: Callable[[Tensor, Tensor], Tensor],
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    event_dims: int,
    per_value: int,
    params_dim: int = -1,
    log_scale: Tensor | None = None,
    num_levels: int = 0,
    unit: int | None = None,
) -> Tensor:
    """Check, choose and run: the arguments of the public functions, ``per_value`` parameters (0: any number) for each
    value of ``x`` or any multiple of ``unit``, ``log_scale`` (1 or the size of the event,).
    ``of_params(x, params)`` is the likelihood apart, of the output (..., P) of the layer.
    """
    h, weight, bias = cast_for_autocast(h, weight, bias if bias is None else bias.contiguous())  # type: ignore[assignment]
    check_linear(h, weight, bias, x, event_dims, per_value, unit)
    rows, data, batch = as_rows(h, x, event_dims)
    inputs = [values for values in (h, weight, bias, log_scale) if values is not None]
    if x.requires_grad or must_use_definition(x, *inputs):
        return definition(h, weight, bias, x).expand(batch)
    size = rows.shape[0] * weight.shape[0]
    is_kept = needs_grad(*inputs) and size <= _KEPT
    use_torch = choose(data, rows, weight, preferred=not is_kept) == "torch"
    if use_torch and (is_kept or is_small(size, *inputs, factor=0.5)):
        return of_params(x, F.linear(h, weight, bias)).expand(batch)
    event = x.shape[x.ndim - event_dims :]
    before = math.prod(event[: event_dims + 1 + params_dim])
    data = data.reshape(data.shape[0], before, math.prod(event) // max(before, 1))
    if use_torch and runs_directly(*inputs):
        detached = [None if values is None else values.detach() for values in (rows, weight, bias, log_scale)]
        return FAMILIES[family].forward(data, *detached, num_levels).view(batch)
    return _forward(data, rows, weight, bias, log_scale, num_levels, family).view(batch)


@torch.library.custom_op("fastvae::linear_log_prob", mutates_args=())
def _forward(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, log_scale: Tensor | None, num_levels: int, family: str
) -> Tensor:
    return FAMILIES[family].forward(x, h, weight, bias, log_scale, num_levels)


@_forward.register_fake
def _(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, log_scale: Tensor | None, num_levels: int, family: str
) -> Tensor:
    return h.new_empty(h.shape[0], dtype=accumulator(h))


@torch.library.custom_op("fastvae::linear_log_prob_backward", mutates_args=())
def _backward(
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_scale: Tensor | None,
    num_levels: int,
    grad: Tensor,
    needs: list[bool],
    family: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return FAMILIES[family].backward(x, h, weight, bias, log_scale, num_levels, grad, needs)


@_backward.register_fake
def _(
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_scale: Tensor | None,
    num_levels: int,
    grad: Tensor,
    needs: list[bool],
    family: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        h.new_empty(h.shape if needs[0] else (0, 0, 0)),
        weight.new_empty(weight.shape if needs[1] else (0, 0)),
        weight.new_empty(weight.shape[0] if needs[2] else 0),
        h.new_empty(0) if log_scale is None else torch.empty_like(log_scale),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_levels, ctx.family = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    refuse_tangents(f"linear_{ctx.family}_log_prob", grad)
    needs = [bool(needed) for needed in ctx.needs_input_grad[1:5]]
    grads = _backward(*ctx.saved_tensors, ctx.num_levels, grad, needs[:3], ctx.family)
    return None, *(value if needed else None for value, needed in zip(grads, needs, strict=True)), None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
