"""The importance weights of many datapoints, kept as a small state that chunks enter and that joins others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastvae import ops

from . import stored
from .blocks import BoundCurve, Jackknife, bound_curve, effective_samples, jackknife, log_mean, relative, whole
from .khat import pareto_khat

__all__ = ["TRUSTED_ESS", "TRUSTED_KHAT", "UNTRUSTED", "LogWeights", "MeanLogProb", "is_trusted", "mean_log_prob"]

TRUSTED_ESS, TRUSTED_KHAT = 100, 0.5  # see is_trusted
UNTRUSTED = f"ESS <= {TRUSTED_ESS} or k-hat >= {TRUSTED_KHAT}"  # in words

_TAIL = 256  # largest log-weights kept: enough for k-hat up to M = 7000 by the usual rule, and a fair tail beyond
_BLOCKS = 32  # the jackknife's error is known to 13 %, and the curve has 5 doublings below M
_FILE = {"blocks": (3, torch.float64), "largest": (2, torch.float64)}


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


def mean_log_prob(log_prob: Tensor, std_error: Tensor, trusted: Tensor) -> MeanLogProb:
    """Of N datapoints, from the figures of each."""
    n = log_prob.shape[0]
    return MeanLogProb(
        value=float(log_prob.mean()),
        monte_carlo_error=float(std_error.square().sum().sqrt()) / n if n else math.nan,
        data_error=float(log_prob.std()) / math.sqrt(n) if n > 1 else math.nan,
        num_points=n,
        num_untrusted=int((~trusted).sum()),
    )


def is_trusted(ess: Tensor, khat: Tensor) -> Tensor:
    """Whether standard error and bias mean anything: ESS above 100 and k-hat below 0.5.

    Both presume weights of finite variance, a tail of shape below 1/2. Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto
    smoothed importance sampling" (2024), allow 0.7, but for smoothed weights, which these are not; their limit for few
    samples, ``1 - 1 / log10(M)``, is above 1/2 wherever the ESS can be above 100.

    What it is worth: runs that missed the tail of the weights look better than they are, and both figures are of the
    same runs. Simulated with weights of Gaussians, lognormals and Pareto tails and 500 to 50,000 samples, 800 runs of
    most: those that were trusted and whose bar of 1.96 standard errors missed the truth were up to 9 % of all, 11 % at
    worst (a Pareto tail of shape 0.6); 5 % would be right, and with 0.7 it would have been up to 26 %. Where few of
    many runs are trusted, these are the ones that err. And no figure of the samples knows of a mode that the
    proposal never visits.

    The other way round, right figures are called untrusted where a proposal is very close to a posterior whose tails
    are slightly heavier: the ESS is nearly M, the error tiny and right, yet k-hat, which looks at the shape of the tail
    and not at its weight, is above 0.5. So it is after many steps of :func:`fastvae.evaluation.refine`.
    """
    return (ess > TRUSTED_ESS) & (khat < TRUSTED_KHAT)


class LogWeights:
    r"""Streaming estimate of :math:`\log \frac1M \sum_m w_m` for N datapoints, with its errors and diagnostics.

    For each of 32 blocks of samples eight float64 numbers are kept, and the 256 largest log-weights: 4 KiB for each
    datapoint, however many samples enter. Chunks may come in any size and order, and states from other processes merge:
    the result is that of one logsumexp to float64 rounding.

    Attributes:
        blocks: (8, B, N) float64, the states of B blocks of samples, see :func:`fastvae.ops.empty_log_weights` for
            their rows. Sample m is in block ``m mod B``.
        largest: (T, N) float64, the largest log-weights, padded with -inf.

    Args:
        num_points: N.
        tail: T, how many of the largest log-weights to keep for :attr:`khat`; 0 for none, and then no
            datapoint is ever :attr:`trusted`.
        num_blocks: B, a power of two, for :attr:`jackknife` and :attr:`curve`.
        device: where the state lives.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if ``num_points`` or ``tail`` is negative, or ``num_blocks`` is no power of two.

    Example:
        >>> weights = LogWeights(num_points=2)
        >>> weights.update(torch.zeros(10, 2))
        >>> weights.update(torch.full((10, 2), -torch.inf))  # zero weights count as samples
        >>> weights.log_prob.exp()
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        num_points: int,
        *,
        tail: int = _TAIL,
        num_blocks: int = _BLOCKS,
        device: torch.device | str | None = None,
    ) -> None:
        for name, value in (("num_points", num_points), ("tail", tail), ("num_blocks", num_blocks)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        if tail < 0:
            raise ValueError(f"tail must not be negative, got {tail}")
        if num_blocks < 1 or num_blocks & (num_blocks - 1):
            raise ValueError(f"num_blocks must be a power of two, got {num_blocks}")
        empty = ops.empty_log_weights(num_points, device)
        self.blocks = empty[:, None].repeat(1, num_blocks, 1)
        self.largest = torch.full((tail, num_points), -torch.inf, dtype=torch.float64, device=device)

    @classmethod
    def _of(cls, blocks: Tensor, largest: Tensor) -> "LogWeights":
        made = object.__new__(cls)
        made.blocks, made.largest = blocks, largest
        return made

    def update(self, log_w: Tensor, points: slice = slice(None), *, first_sample: int | None = None) -> None:
        """Let samples enter.

        Args:
            log_w: (K, n) log-weights in nats of the n datapoints in ``points``. -inf is a zero weight and counts; nan
                and +inf poison the datapoint: its figures become nan and :attr:`num_bad` tells how many there were.
            points: which datapoints; all by default.
            first_sample: the number of the first of the K samples, which decides on their blocks; by default they
                follow those that the datapoints have, which is read from the device of the state.

        Raises:
            TypeError: if ``log_w`` is not floating point, or ``first_sample`` no integer.
            ValueError: if shapes or devices do not fit, or ``first_sample`` is negative.
        """
        if not isinstance(log_w, Tensor):
            raise TypeError(f"log_w must be a tensor, got {type(log_w).__name__}")
        if not log_w.is_floating_point():
            raise TypeError(f"log_w must be floating point, got {log_w.dtype}")
        counts = self.blocks[0, :, points]  # (B, n)
        if log_w.ndim != 2 or log_w.shape[1] != counts.shape[1]:
            raise ValueError(
                f"log_w must have shape (K, {counts.shape[1]}), got {tuple(log_w.shape)}; samples come first"
            )
        if log_w.device != counts.device:
            raise ValueError(f"log_w must be on the device of the state, got {log_w.device} and {counts.device}")
        if first_sample is None:
            first_sample = int(counts.sum(0).max()) if counts.shape[1] else 0
        if not isinstance(first_sample, int) or isinstance(first_sample, bool):
            raise TypeError(f"first_sample must be an integer, got {first_sample!r}")
        if first_sample < 0:
            raise ValueError(f"first_sample must not be negative, got {first_sample}")
        # whole rounds of B samples enter all blocks at once; what is before and after enters some of them
        num_blocks = self.blocks.shape[1]
        before = min(-first_sample % num_blocks, log_w.shape[0])
        rounds = (log_w.shape[0] - before) // num_blocks
        self._enter(log_w[:before], before, points, first_sample % num_blocks)
        self._enter(log_w[before : before + rounds * num_blocks], num_blocks, points, 0)
        after = log_w[before + rounds * num_blocks :]
        self._enter(after, after.shape[0], points, 0)
        if self.largest.shape[0] and log_w.shape[0]:
            fresh = log_w.detach().topk(min(log_w.shape[0], self.largest.shape[0]), dim=0, sorted=False).values
            self.largest[:, points] = _top(self.largest[:, points], fresh)

    def _enter(self, log_w: Tensor, width: int, points: slice, start: int) -> None:
        """``log_w`` (k * width, n) enters the ``width`` blocks from ``start`` on in turn."""
        if log_w.shape[0]:
            part = self.blocks[:, start : start + width, points]
            rows = log_w.reshape(log_w.shape[0] // width, width * log_w.shape[1])
            self.blocks[:, start : start + width, points] = ops.update_log_weights(part.flatten(1), rows).view_as(part)

    def merge(self, other: "LogWeights") -> "LogWeights":
        """The state of the samples of both, for the same datapoints and disjoint samples.

        Raises:
            ValueError: if the other has another number of datapoints or blocks, tail length or device.
        """
        self._check_alike("other", other)
        if self.num_points != other.num_points:
            raise ValueError(f"other must have {self.num_points} datapoints, got {other.num_points}")
        blocks = ops.merge_log_weights(self.blocks.flatten(1), other.blocks.flatten(1)).view_as(self.blocks)
        return LogWeights._of(blocks, _top(self.largest, other.largest))

    def absorb(self, other: "LogWeights", points: slice) -> None:
        """Let the samples of another state enter, which is of the datapoints in ``points``.

        Raises:
            TypeError: if the other is no LogWeights.
            ValueError: if it has another number of datapoints or blocks, tail length or device.
        """
        merged = LogWeights._of(self.blocks[..., points], self.largest[:, points]).merge(other)
        self.blocks[..., points], self.largest[:, points] = merged.blocks, merged.largest

    @staticmethod
    def join(parts: Sequence["LogWeights"]) -> "LogWeights":
        """The state of all datapoints of the parts, one part after the other.

        Raises:
            ValueError: if there is no part, or their numbers of blocks, tail lengths or devices differ.
        """
        if not parts:
            raise ValueError("parts must hold at least one LogWeights, got none")
        for part in parts[1:]:
            parts[0]._check_alike("parts", part)
        return LogWeights._of(
            torch.cat([part.blocks for part in parts], dim=2), torch.cat([part.largest for part in parts], dim=1)
        )

    def first(self, count: int) -> "LogWeights":
        """The first ``count`` datapoints alone."""
        return LogWeights._of(self.blocks[..., :count].clone(), self.largest[:, :count].clone())

    def _check_alike(self, name: str, other: "LogWeights") -> None:
        if not isinstance(other, LogWeights):
            raise TypeError(f"{name} must be LogWeights, got {type(other).__name__}")
        ours, theirs = ((w.blocks.shape[1], w.largest.shape[0], str(w.blocks.device)) for w in (self, other))
        if ours != theirs:
            raise ValueError(f"{name} must agree in number of blocks, tail length and device, got {theirs} and {ours}")

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a safetensors file for :meth:`load`, in one step.

        Raises:
            FileExistsError: if the file exists, without ``overwrite``.
            ValueError: if there is no folder for it.
        """
        stored.check_free(path, overwrite)
        stored.write(path, "LogWeights", {"blocks": self.blocks, "largest": self.largest}, {})

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> "LogWeights":
        """What :meth:`save` wrote.

        Raises:
            ValueError: if the file is missing, damaged, of another kind, or of a newer version.
        """
        tensors, _ = stored.read(path, "LogWeights")
        stored.check_tensors(path, tensors, _FILE)
        return cls.from_tensors(tensors, path, device)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], source: str | Path, device: torch.device | str) -> "LogWeights":
        """From ``blocks`` and ``largest`` of a file ``source`` that is named in errors.

        Raises:
            ValueError: if they do not fit.
        """
        blocks, largest = tensors["blocks"], tensors["largest"]
        rows, num_blocks, num_points = blocks.shape
        if rows != 8 or num_blocks < 1 or num_blocks & (num_blocks - 1) or largest.shape[1] != num_points:
            raise ValueError(
                f"{source} is damaged: expected shapes (8, a power of two, N) and (T, N), got {tuple(blocks.shape)} "
                f"and {tuple(largest.shape)}"
            )
        return cls._of(blocks.to(device), largest.to(device))

    @property
    def state(self) -> Tensor:
        """(8, N) float64: the state of all samples, see :func:`fastvae.ops.empty_log_weights`."""
        return whole(self.blocks)

    @property
    def num_points(self) -> int:
        """N."""
        return self.blocks.shape[2]

    @property
    def num_samples(self) -> Tensor:
        """(N,) samples so far, zero and bad weights included."""
        return self.blocks[0].sum(0).long()

    @property
    def num_zero(self) -> Tensor:
        """(N,) zero weights (log-weight -inf) among the samples."""
        return self.blocks[6].sum(0).long()

    @property
    def num_bad(self) -> Tensor:
        """(N,) log-weights that were nan or +inf."""
        return self.blocks[7].sum(0).long()

    @property
    def log_prob(self) -> Tensor:
        """(N,) nats: log of the mean weight. A lower bound of log p(x) in expectation; nan with bad weights."""
        return self._poison(log_mean(self.state))

    @property
    def elbo(self) -> Tensor:
        """(N,) nats: the mean log-weight; -inf with a zero weight."""
        n, mean, zeros = self.state[[0, 4, 6]]
        return self._poison(mean.masked_fill(zeros > 0, -torch.inf).masked_fill(n == 0, torch.nan))

    @property
    def variance(self) -> Tensor:
        """(N,) nats squared: the variance of the finite log-weights; nan below two of them."""
        n, m2, zeros, bad = self.state[[0, 5, 6, 7]]
        finite = n - zeros - bad
        return self._poison((m2 / (finite - 1)).masked_fill(finite < 2, torch.nan))

    @property
    def ess(self) -> Tensor:
        """(N,) effective sample size, ``(sum w)^2 / sum w^2``; 0 if all weights are zero."""
        return self._poison(effective_samples(self.state))

    @property
    def cv2(self) -> Tensor:
        """(N,) squared coefficient of variation of the weights, unbiased for the variance; nan below two samples."""
        return self._poison(relative(self.state))

    @property
    def largest_share(self) -> Tensor:
        """(N,) the share of the largest weight in the sum of all; nan if all weights are zero."""
        s1 = self.state[2]
        return self._poison((1 / s1).masked_fill(s1 == 0, torch.nan))

    @property
    def std_error(self) -> Tensor:
        """(N,) nats: standard error of :attr:`log_prob` by the delta method. Too small where not :attr:`trusted`."""
        return (self.cv2 / self.num_samples).sqrt()

    @property
    def curve(self) -> BoundCurve:
        """The bounds L_1 (the ELBO), ..., L_(M/2), L_M (:attr:`log_prob`) of the same samples."""
        return bound_curve(self.blocks)

    @property
    def jackknife(self) -> Jackknife:
        """:attr:`log_prob` corrected for its O(1/M) bias, and its error, from the blocks of samples."""
        return self.jackknife_where(self.trusted)

    def jackknife_where(self, trusted: Tensor) -> Jackknife:
        """:attr:`jackknife` for a known :attr:`trusted` (N,), the expensive part of it."""
        found = jackknife(self.blocks)
        return Jackknife(found.log_prob.masked_fill(~trusted, torch.nan), found.std_error)

    @property
    def khat(self) -> Tensor:
        """(N,) Pareto tail diagnostic, see :func:`fastvae.evaluation.pareto_khat`."""
        samples = self.num_samples
        khat = torch.full(samples.shape, torch.nan, dtype=torch.float64, device=samples.device)
        for n in samples.unique().tolist():  # datapoints may have seen different numbers of samples
            same = samples == n
            if n >= 1:
                largest = self.largest[:, same]
                khat[same] = pareto_khat(largest.topk(min(n, largest.shape[0]), dim=0).values, n)
        return self._poison(khat)

    @property
    def trusted(self) -> Tensor:
        """(N,) bool: whether error and bias estimates mean anything, see :func:`is_trusted`."""
        return is_trusted(self.ess, self.khat)

    @property
    def bias(self) -> Tensor:
        """(N,) nats: the O(1/M) bias of :attr:`log_prob`, ``-CV^2 / (2 M)``; nan (unknown) where not trusted."""
        return (-self.cv2 / (2 * self.num_samples)).masked_fill(~self.trusted, torch.nan)

    def mean(self) -> MeanLogProb:
        """The mean log-probability over datapoints in nats, its Monte-Carlo and its data error apart."""
        return mean_log_prob(self.log_prob, self.std_error, self.trusted)

    def _poison(self, values: Tensor) -> Tensor:
        return values.masked_fill(self.num_bad > 0, torch.nan)

    def __repr__(self) -> str:
        samples = sorted({int(n) for n in self.num_samples.unique()})
        return f"LogWeights(num_points={self.num_points}, num_samples={samples})"


def _top(a: Tensor, b: Tensor) -> Tensor:
    """The largest of both in the shape and dtype of ``a``."""
    return torch.cat([a, b.to(a.dtype)]).topk(a.shape[0], dim=0, sorted=False).values
