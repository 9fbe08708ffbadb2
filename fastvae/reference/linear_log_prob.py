"""The definitions of a last linear layer with its likelihood: the layer, then the likelihood of what it gives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .bernoulli_log_prob import bernoulli_log_prob
from .categorical_log_prob import categorical_log_prob
from .gaussian_log_prob import gaussian_log_prob
from .logistic_mixture_log_prob import logistic_mixture_log_prob

__all__ = [
    "linear_bernoulli_log_prob",
    "linear_categorical_log_prob",
    "linear_gaussian_log_prob",
    "linear_logistic_mixture_log_prob",
]


def linear_bernoulli_log_prob(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, event_dims: int) -> Tensor:
    """``bernoulli_log_prob`` of the logits ``h @ weight.T + bias``: ``h`` (..., H) -> (...)."""
    return bernoulli_log_prob(x, _params(h, weight, bias, x.shape[x.ndim - event_dims :]), event_dims)


def linear_gaussian_log_prob(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    log_scale: Tensor | None,
    event_dims: int,
    params_dim: int,
) -> Tensor:
    """``gaussian_log_prob`` of the means ``h @ weight.T + bias``; without ``log_scale`` of means and log-scales, which
    the layer gives at index 0 and 1 of ``params_dim``."""
    event = x.shape[x.ndim - event_dims :]
    if log_scale is not None:
        return gaussian_log_prob(x, _params(h, weight, bias, event), log_scale, event_dims)
    both = _params(h, weight, bias, _inserted(event, 2, params_dim))
    return gaussian_log_prob(x, both.select(params_dim, 0), both.select(params_dim, 1), event_dims)


def linear_categorical_log_prob(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, event_dims: int, levels_dim: int
) -> Tensor:
    """``categorical_log_prob`` of the logits ``h @ weight.T + bias``, whose levels are at ``levels_dim``."""
    event = x.shape[x.ndim - event_dims :]
    num_levels = weight.shape[0] // max(event.numel(), 1)
    return categorical_log_prob(
        x, _params(h, weight, bias, _inserted(event, num_levels, levels_dim)), event_dims, levels_dim
    )


def linear_logistic_mixture_log_prob(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, num_levels: int, event_dims: int
) -> Tensor:
    """``logistic_mixture_log_prob`` of the parameters ``h @ weight.T + bias``, in the shape (P, D2, ..., De) for the
    channels ``x`` (..., D1, ..., De)."""
    sites = x.shape[x.ndim - event_dims + 1 :].numel()
    params = _params(h, weight, bias, torch.Size((weight.shape[0] // max(sites, 1), sites, 1)))
    images = x.reshape(*x.shape[: x.ndim - event_dims + 1], sites, 1)
    return logistic_mixture_log_prob(images, params, num_levels)


def _params(h: Tensor, weight: Tensor, bias: Tensor | None, shape: torch.Size) -> Tensor:
    """The output of the layer; half precision is for its product, the likelihood of the result is float32."""
    params = F.linear(h, weight, bias)
    return params.to(torch.promote_types(params.dtype, torch.float32)).unflatten(-1, shape)


def _inserted(event: torch.Size, size: int, dim: int) -> torch.Size:
    """``event`` with one more dimension, at the negative index ``dim`` of the result."""
    at = len(event) + 1 + dim
    return torch.Size((*event[:at], size, *event[at:]))
