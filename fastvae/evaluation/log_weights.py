"""The importance weights of many datapoints, kept as a small state that chunks enter and that joins others."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvae import ops

from .khat import pareto_khat

__all__ = ["LogWeights", "MeanLogProb"]

_TAIL = 256  # largest log-weights kept: enough for k-hat up to M = 7000 by the usual rule, and a fair tail beyond


@dataclass(frozen=True)
class MeanLogProb:
    """A mean over datapoints with its two errors apart: that of the samples, and that of the data."""

    value: float
    monte_carlo_error: float  # standard error from the importance samples: vanishes as M grows
    data_error: float  # standard error from the choice of datapoints: vanishes as N grows
    num_points: int
    num_untrusted: int  # datapoints whose own error estimate is not to be trusted, so that the first is too small

    def __float__(self) -> float:
        return self.value

    def scaled(self, factor: float) -> "MeanLogProb":
        """In other units: value and errors times ``factor``, errors positive."""
        size = abs(factor)
        return MeanLogProb(
            self.value * factor,
            self.monte_carlo_error * size,
            self.data_error * size,
            self.num_points,
            self.num_untrusted,
        )


class LogWeights:
    r"""Streaming estimate of :math:`\log \frac1M \sum_m w_m` for N datapoints, with its errors and diagnostics.

    Eight float64 numbers and the 256 largest log-weights are kept for each datapoint, however many samples enter.
    Chunks may come in any size and order, and states from other processes merge: the result is that of one logsumexp
    to float64 rounding.

    Attributes:
        state: (8, N) float64, see :func:`fastvae.ops.empty_log_weights`.
        largest: (T, N) float64, the largest log-weights, padded with -inf.

    Args:
        num_points: N.
        tail: T, how many of the largest log-weights to keep for :attr:`khat`; 0 for none, and then no
            datapoint is ever :attr:`trusted`.
        device: where the state lives.

    Raises:
        ValueError: if ``num_points`` or ``tail`` is negative.

    Example:
        >>> weights = LogWeights(num_points=2)
        >>> weights.update(torch.zeros(10, 2))
        >>> weights.update(torch.full((10, 2), -torch.inf))  # zero weights count as samples
        >>> weights.log_prob.exp()
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, num_points: int, *, tail: int = _TAIL, device: torch.device | str | None = None) -> None:
        if tail < 0:
            raise ValueError(f"tail must not be negative, got {tail}")
        self.state = ops.empty_log_weights(num_points, device)
        self.largest = torch.full((tail, num_points), -torch.inf, dtype=torch.float64, device=device)

    def update(self, log_w: Tensor, points: slice = slice(None)) -> None:
        """Let samples enter.

        Args:
            log_w: (K, n) log-weights in nats of the n datapoints in ``points``. -inf is a zero weight and counts; nan
                and +inf poison the datapoint: its figures become nan and :attr:`num_bad` tells how many there were.
            points: which datapoints; all by default.

        Raises:
            TypeError: if ``log_w`` is not floating point.
            ValueError: if shapes or devices do not fit.
        """
        if not isinstance(log_w, Tensor):
            raise TypeError(f"log_w must be a tensor, got {type(log_w).__name__}")
        self.state[:, points] = ops.update_log_weights(self.state[:, points], log_w)
        if self.largest.shape[0] and log_w.shape[0]:
            fresh = log_w.detach().topk(min(log_w.shape[0], self.largest.shape[0]), dim=0, sorted=False).values
            self.largest[:, points] = _top(self.largest[:, points], fresh)

    def merge(self, other: "LogWeights") -> "LogWeights":
        """The state of the samples of both, for the same datapoints and disjoint samples.

        Raises:
            ValueError: if the other has another number of datapoints, tail length or device.
        """
        if self.largest.shape != other.largest.shape:
            raise ValueError(
                f"other must have as many datapoints and as long a tail, got {tuple(other.largest.shape)} against "
                f"{tuple(self.largest.shape)} (tail, datapoints)"
            )
        merged = object.__new__(LogWeights)
        merged.state = ops.merge_log_weights(self.state, other.state)
        merged.largest = _top(self.largest, other.largest)
        return merged

    @property
    def num_points(self) -> int:
        """N."""
        return self.state.shape[1]

    @property
    def num_samples(self) -> Tensor:
        """(N,) samples so far, zero and bad weights included."""
        return self.state[0].long()

    @property
    def num_zero(self) -> Tensor:
        """(N,) zero weights (log-weight -inf) among the samples."""
        return self.state[6].long()

    @property
    def num_bad(self) -> Tensor:
        """(N,) log-weights that were nan or +inf."""
        return self.state[7].long()

    @property
    def log_prob(self) -> Tensor:
        """(N,) nats: log of the mean weight. A lower bound of log p(x) in expectation; nan with bad weights."""
        n, m, s1 = self.state[:3]
        return self._poison(m + s1.log() - n.log())

    @property
    def elbo(self) -> Tensor:
        """(N,) nats: the mean log-weight; -inf with a zero weight."""
        mean = self.state[4].masked_fill(self.num_zero > 0, -torch.inf)
        return self._poison(mean.masked_fill(self.state[0] == 0, torch.nan))

    @property
    def variance(self) -> Tensor:
        """(N,) nats squared: the variance of the finite log-weights; nan below two of them."""
        finite = self.state[0] - self.state[6] - self.state[7]
        return self._poison((self.state[5] / (finite - 1)).masked_fill(finite < 2, torch.nan))

    @property
    def ess(self) -> Tensor:
        """(N,) effective sample size, ``(sum w)^2 / sum w^2``; 0 if all weights are zero."""
        _, _, s1, s2 = self.state[:4]
        return self._poison((s1.square() / s2).masked_fill(s1 == 0, 0.0))

    @property
    def cv2(self) -> Tensor:
        """(N,) squared coefficient of variation of the weights, unbiased for the variance; nan below two samples."""
        n = self.state[0]
        cv2 = (n / self.ess - 1).clamp(min=0) * n / (n - 1)
        return cv2.masked_fill(n < 2, torch.nan)

    @property
    def std_error(self) -> Tensor:
        """(N,) nats: standard error of :attr:`log_prob` by the delta method. Too small where not :attr:`trusted`."""
        return (self.cv2 / self.state[0]).sqrt()

    @property
    def khat(self) -> Tensor:
        """(N,) Pareto tail diagnostic, see :func:`fastvae.evaluation.pareto_khat`."""
        khat = torch.full_like(self.state[0], torch.nan)
        for n in self.state[0].unique().tolist():  # datapoints may have seen different numbers of samples
            same = self.state[0] == n
            if n >= 1:
                largest = self.largest[:, same]
                khat[same] = pareto_khat(largest.topk(min(int(n), largest.shape[0]), dim=0).values, int(n))
        return self._poison(khat)

    @property
    def trusted(self) -> Tensor:
        """(N,) bool: whether error and bias estimates mean anything: ESS above 100 and k-hat below 0.7."""
        return (self.ess > 100) & (self.khat < 0.7)

    @property
    def bias(self) -> Tensor:
        """(N,) nats: the O(1/M) bias of :attr:`log_prob`, ``-CV^2 / (2 M)``; nan (unknown) where not trusted."""
        return (-self.cv2 / (2 * self.state[0])).masked_fill(~self.trusted, torch.nan)

    def mean(self) -> MeanLogProb:
        """The mean log-probability over datapoints in nats, its Monte-Carlo and its data error apart."""
        log_prob, n = self.log_prob, self.num_points
        return MeanLogProb(
            value=float(log_prob.mean()),
            monte_carlo_error=float(self.std_error.square().sum().sqrt()) / n if n else math.nan,
            data_error=float(log_prob.std()) / math.sqrt(n) if n > 1 else math.nan,
            num_points=n,
            num_untrusted=int((~self.trusted).sum()),
        )

    def _poison(self, values: Tensor) -> Tensor:
        return values.masked_fill(self.state[7] > 0, torch.nan)

    def __repr__(self) -> str:
        samples = sorted({int(n) for n in self.num_samples.unique()})
        return f"LogWeights(num_points={self.num_points}, num_samples={samples})"


def _top(a: Tensor, b: Tensor) -> Tensor:
    """The largest of both in the shape and dtype of ``a``."""
    return torch.cat([a, b.to(a.dtype)]).topk(a.shape[0], dim=0, sorted=False).values
