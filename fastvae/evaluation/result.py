"""What an evaluation returns: log-likelihoods, and everything needed to judge them."""

import math
from functools import cached_property

import torch
from torch import Tensor

from .log_weights import LogWeights, MeanLogProb

__all__ = ["LogLikelihood"]


class LogLikelihood:
    """Importance-weighted log-likelihoods of N datapoints, in nats each; made by :func:`fastvae.log_likelihood`.

    Attributes:
        weights: the :class:`LogWeights` behind the figures.
        num_dims: D, the number of values in a datapoint, for :meth:`bits_per_dim`.
    """

    def __init__(self, weights: LogWeights, num_dims: int) -> None:
        self.weights, self.num_dims = weights, num_dims

    @cached_property
    def log_prob(self) -> Tensor:
        """(N,) nats, see :attr:`LogWeights.log_prob`."""
        return self.weights.log_prob

    @cached_property
    def elbo(self) -> Tensor:
        """(N,) nats: the mean log-weight of the same samples."""
        return self.weights.elbo

    @cached_property
    def std_error(self) -> Tensor:
        """(N,) nats: Monte-Carlo standard error of ``log_prob``; too small where not ``trusted``."""
        return self.weights.std_error

    @cached_property
    def ess(self) -> Tensor:
        """(N,) effective sample size, between 0 and M."""
        return self.weights.ess

    @cached_property
    def khat(self) -> Tensor:
        """(N,) Pareto tail diagnostic: above 0.7 weights that matter were not drawn."""
        return self.weights.khat

    @cached_property
    def trusted(self) -> Tensor:
        """(N,) bool: ESS above 100 and k-hat below 0.7."""
        return (self.ess > 100) & (self.khat < 0.7)

    @cached_property
    def bias(self) -> Tensor:
        """(N,) nats, at most 0: the O(1/M) bias of ``log_prob``; nan (unknown) where not ``trusted``."""
        return (-self.weights.cv2 / (2 * self.weights.state[0])).masked_fill(~self.trusted, torch.nan)

    def mean(self) -> MeanLogProb:
        """The mean over datapoints in nats, with Monte-Carlo error and data error apart."""
        return self.weights.mean()

    def bits_per_dim(self) -> MeanLogProb:
        """The mean code length, ``-log2 p(x) / D``, with its errors."""
        return self.mean().scaled(-1.0 / (max(self.num_dims, 1) * math.log(2.0)))

    def merge(self, other: "LogLikelihood") -> "LogLikelihood":
        """Both together: the same datapoints, other samples (``first_sample=`` of ``log_likelihood``).

        Raises:
            ValueError: if the other is not of the same datapoints.
        """
        if self.num_dims != other.num_dims:
            raise ValueError(f"other must have datapoints of {self.num_dims} values, got {other.num_dims}")
        return LogLikelihood(self.weights.merge(other.weights), self.num_dims)

    def __repr__(self) -> str:
        n = self.weights.num_points
        if n == 0:
            return "LogLikelihood(no datapoints)"
        samples = sorted({int(count) for count in self.weights.num_samples.unique()})
        mean, ess, khat = self.mean(), self.ess, self.khat.nan_to_num(nan=math.inf)
        error = f"+- {mean.monte_carlo_error:.4f} (samples)"
        lines = [
            f"LogLikelihood of {n} datapoints, {' or '.join(map(str, samples))} samples each, in nats",
            f"  log p(x)  {mean.value:.4f} {error} +- {mean.data_error:.4f} (data)",
            f"  ELBO      {float(self.elbo.mean()):.4f}",
            f"  ESS       median {float(ess.median()):.1f}, smallest {float(ess.min()):.1f}",
            f"  k-hat     median {float(khat.median()):.2f}, largest {float(khat.max()):.2f}",
        ]
        if mean.num_untrusted:
            lines.append(
                f"  unknown   bias of {mean.num_untrusted} datapoints (ESS <= 100 or k-hat >= 0.7): their log p(x) may "
                "be far too low, and the error from samples is larger than shown"
            )
        else:
            lines.append(f"  bias      {float(self.bias.mean()):.1e} (O(1/M) estimate)")
        return "\n".join(lines)
