"""The definition that every implementation of ``gaussian_log_prob`` is checked against."""

import math

import torch
from torch import Tensor

__all__ = ["gaussian_log_prob"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def gaussian_log_prob(x: Tensor, loc: Tensor, log_scale: Tensor, event_dims: int) -> Tensor:
    """Sum over the last ``event_dims`` dimensions of ``-(x - loc)^2 / (2 s^2) - log s - log(2 pi) / 2``.

    In the wider dtype of ``loc`` and ``log_scale`` = log s. Distances in units of s are those for a scale of at least
    1e-35 (1e-304 in float64): below, 1 / s is infinite, and the density of a value that is met exactly would be nan.
    """
    dtype = torch.promote_types(loc.dtype, log_scale.dtype)
    floor = -700.0 if dtype == torch.float64 else -80.0
    noise = (x.to(dtype) - loc) * (-log_scale.clamp(min=floor)).exp()
    terms = -0.5 * noise.square() - log_scale - _HALF_LOG_TWO_PI
    return terms.flatten(terms.ndim - event_dims).sum(-1)
