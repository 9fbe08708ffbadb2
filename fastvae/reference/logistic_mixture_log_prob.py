"""The definition that every implementation of ``logistic_mixture_log_prob`` is checked against."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["logistic_mixture_log_prob", "logistic_mixture_means", "logistic_mixture_parts"]

# Beyond e^60 and below e^-60 a scale changes no digit of a probability, but its inverse would overflow
_LARGEST_LOG_SCALE = 60.0


def logistic_mixture_parts(params: Tensor, num_channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What the parameters of a mixture of K discretised logistics hold, in the order of Salimans et al.'s code.

    Args:
        params: (..., P, H, W), P = 3 K for one channel and 10 K for three.
        num_channels: C, 1 or 3.

    Returns:
        logits (..., K, H, W) of the components; means and log-scales (..., C, K, H, W); for C = 3 the coefficients
        (..., 3, K, H, W), before tanh: of the second channel on the first, of the third on the first and on the second.

    Example:
        >>> logits, means, log_scales, coefficients = logistic_mixture_parts(torch.zeros(5, 20, 8, 8), 3)
        >>> means.shape
        torch.Size([5, 3, 2, 8, 8])
    """
    groups = 3 if num_channels == 1 else 10
    logits, rest = params.unflatten(-3, (groups, params.shape[-3] // groups)).split([1, groups - 1], -4)
    values = rest.unflatten(-4, (num_channels, -1))  # (..., C, 2 or 3, K, H, W)
    coefficients = None if num_channels == 1 else values.select(-4, 2)
    return logits.squeeze(-4), values.select(-4, 0), values.select(-4, 1), coefficients


def logistic_mixture_means(scaled: Tensor, means: Tensor, coefficients: Tensor | None) -> Tensor:
    """Means (..., C, K, H, W) that follow the channels before: ``scaled`` data (..., C, 1, H, W) in [-1, 1]."""
    if coefficients is None:
        return means
    first, second, third = means.unbind(-4)
    on_first, third_on_first, third_on_second = coefficients.tanh().unbind(-4)
    x, y, _ = scaled.unbind(-4)
    shape = torch.broadcast_shapes(first.shape, x.shape)
    second, third = second + on_first * x, third + third_on_first * x + third_on_second * y
    return torch.stack((first.expand(shape), second, third), -4)


def logistic_mixture_log_prob(x: Tensor, params: Tensor, num_levels: int) -> Tensor:
    r"""Log-probability of ``x`` (..., C, H, W) under K discretised logistics per pixel, in the dtype of ``params``.

    With the levels mapped to [-1, 1], :math:`d` half of their distance and :math:`\sigma` the logistic function, a
    component gives a channel :math:`\sigma((x - \mu + d) / s) - \sigma((x - \mu - d) / s)`; the first level also has
    all mass below it and the last one all above. Its logarithm is written as
    :math:`\log \sigma(a) + \log \sigma(-b) + \log(1 - e^{b - a})`: no difference, no clamp.
    """
    half = 1.0 / (num_levels - 1)
    logits, means, log_scales, coefficients = logistic_mixture_parts(params, x.shape[-3])
    x = x.to(params.dtype).unsqueeze(-3)  # (..., C, 1, H, W)
    scaled = (2 * x - (num_levels - 1)) / (num_levels - 1)
    distance = scaled - logistic_mixture_means(scaled, means, coefficients)
    inverse = (-log_scales.clamp(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE)).exp()
    above, below = (distance + half) * inverse, (distance - half) * inverse
    is_first, is_last = x <= 0, x >= num_levels - 1
    terms = (
        F.logsigmoid(above).masked_fill(is_last, 0.0)
        + F.logsigmoid(-below).masked_fill(is_first, 0.0)
        + _log1mexp(2 * half * inverse, math.log(2 * half) - log_scales).masked_fill(is_first | is_last, 0.0)
    )
    joint = terms.sum(-4) + logits.log_softmax(-3)
    return joint.logsumexp(-3).flatten(-2).sum(-1)


def _log1mexp(w: Tensor, log_w: Tensor) -> Tensor:
    """log(1 - e^-w) from w > 0 and its logarithm."""
    exact = (-torch.expm1(-w.clamp(min=1e-3))).log()
    return torch.where(w < 1e-3, log_w - w / 2 + w * w / 24, exact)
