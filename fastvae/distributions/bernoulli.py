"""Bernoulli likelihood of binary images."""

from typing import Any

import torch
from torch import Tensor

from fastvae import ops

from .likelihood import ImageDistribution, Likelihood, check_finite, is_checked, support_error

__all__ = ["Bernoulli", "BernoulliLikelihood"]


class Bernoulli(ImageDistribution):
    """Independent binary values given their logits.

    Args:
        logits: (..., C, H, W), log p(1) - log p(0); (..., D) with ``event_dims=1``.
        event_dims: how many last dimensions belong to one datapoint.

    Raises:
        TypeError: if ``event_dims`` is not an integer.
        ValueError: if ``event_dims`` is below 1, or ``logits`` has fewer dimensions.

    Example:
        >>> Bernoulli(torch.zeros(4, 1, 2, 2)).log_prob(torch.ones(4, 1, 2, 2))
        tensor([-2.7726, -2.7726, -2.7726, -2.7726])
    """

    def __init__(self, logits: Tensor, event_dims: int = 3) -> None:
        if not isinstance(event_dims, int) or isinstance(event_dims, bool):
            raise TypeError(f"event_dims must be an integer, got {event_dims!r}")
        if event_dims < 1:
            raise ValueError(f"event_dims must be at least 1, got {event_dims}")
        super().__init__(logits.shape, event_dims)
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        return self.mean * (1.0 - self.mean)

    def log_prob(self, x: Tensor) -> Tensor:
        """``x`` (..., C, H, W) of zeros and ones -> (...) nats. Grey values are an error, not a silent wrong figure."""
        self._check_shape(x)
        if not is_checked():
            _check_binary(x)
        return self._log_prob(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        return ops.bernoulli_log_prob(x, self.logits, len(self.event_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        check_finite("logits", self.logits)
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))


class BernoulliLikelihood(Likelihood):
    """Binary images: one logit per value."""

    name = "bernoulli"
    num_params = 1
    num_levels = 2

    def forward(self, params: Tensor) -> Bernoulli:
        return Bernoulli(self.split(params).squeeze(-3))

    def check(self, x: Tensor) -> None:
        _check_binary(x)

    def marginal_params(self, x: Tensor) -> Tensor:
        ones = x.to(torch.get_default_dtype()).sum(0)
        return ((ones + 0.5) / (x.shape[0] + 1.0)).logit()


def _check_binary(x: Tensor) -> None:
    fix = "binarise the data first (--binarize on the command line, fastvae.data.binarize in code)"
    support_error("bernoulli", x, (x == 0) | (x == 1), "0 or 1", fix)
