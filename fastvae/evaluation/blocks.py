"""Figures from the states of B blocks of samples: the bound curve and the jackknife cost no sample of their own.

Sample m belongs to block ``m mod B``, so that the blocks neither depend on chunk sizes nor on how many samples follow,
and have equal sizes (to one sample) at every moment. All states here are (8, ..., N), see ``ops.empty_log_weights``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvae import ops

__all__ = [
    "BoundCurve",
    "Jackknife",
    "bound_curve",
    "effective_samples",
    "jackknife",
    "levels",
    "log_mean",
    "relative",
    "whole",
]

_FEWEST_GROUPS = 8  # whose spread is an error estimate; below, the delta method within the groups is the better one


@dataclass(frozen=True)
class BoundCurve:
    """Importance-weighted bounds L_k for growing k, all from the same samples: averages over groups of k samples.

    The first one is the ELBO, the last one ``log_prob``. By Jensen's inequality no value is below the one before it.

    Attributes:
        num_samples: (G,) int64, the k: the mean size of the groups, rounded down, of the datapoint with the fewest
            samples. Groups of one run differ by one sample at most.
        values: (G, N) nats.
        std_error: (G, N) nats, their Monte-Carlo errors; nan where unknown.
    """

    num_samples: Tensor
    values: Tensor
    std_error: Tensor

    @property
    def mean(self) -> Tensor:
        """(G,) nats: the mean bound over the datapoints."""
        return self.values.mean(1)

    @property
    def mean_std_error(self) -> Tensor:
        """(G,) nats: the Monte-Carlo error of :attr:`mean`, without that of the choice of datapoints."""
        return self.std_error.square().sum(1).sqrt() / max(self.values.shape[1], 1)

    def to_dict(self) -> dict[str, list[Any]]:
        """The means as JSON can hold them: None for what is infinite or unknown."""
        figures = {"num_samples": self.num_samples, "log_prob": self.mean, "monte_carlo_error": self.mean_std_error}
        return {name: [v if math.isfinite(v) else None for v in values.tolist()] for name, values in figures.items()}

    def __str__(self) -> str:
        pairs = zip(self.mean.tolist(), self.num_samples.tolist(), strict=True)
        return ", ".join(f"{value:.2f} ({count})" for value, count in pairs)


@dataclass(frozen=True)
class Jackknife:
    """The estimate of log p(x) without its O(1/M) bias, and its standard error, from leaving out one block at a time.

    Attributes:
        log_prob: (N,) nats, no longer a lower bound; nan where the errors are not to be trusted.
        std_error: (N,) nats; nan below two blocks, or if one of them holds all the weight.
    """

    log_prob: Tensor
    std_error: Tensor

    @property
    def mean_std_error(self) -> float:
        """Nats: the Monte-Carlo error of the mean of ``log_prob`` over the datapoints."""
        return float(self.std_error.square().sum().sqrt()) / max(self.std_error.shape[0], 1)


def log_mean(state: Tensor) -> Tensor:
    """The log of the mean weight; nan without samples."""
    n, m, s1 = state[:3]
    return m + s1.log() - n.log()


def effective_samples(state: Tensor) -> Tensor:
    """``(sum w)^2 / sum w^2``; 0 if all weights are zero."""
    s1, s2 = state[2:4]
    return (s1.square() / s2).masked_fill(s1 == 0, 0.0)


def relative(state: Tensor) -> Tensor:
    """Squared coefficient of variation of the weights; nan below two samples."""
    n = state[0]
    cv2 = (n / effective_samples(state) - 1).clamp(min=0) * n / (n - 1)
    return cv2.masked_fill(n < 2, torch.nan)


def whole(blocks: Tensor) -> Tensor:
    """(8, B, N) -> the state of all blocks (8, N): what merging them two by two gives, in one step."""
    # sums over the last dimension run in the same order for any number of datapoints
    n, m, s1, s2, mean, m2, zeros, bad = blocks.transpose(1, 2).contiguous()  # (N, B)
    top = m.amax(1)
    scale = (m - top.masked_fill(top == -torch.inf, 0.0)[:, None]).exp()
    finite = n - zeros - bad
    total = (mean * finite).sum(1) / finite.sum(1).clamp(min=1)
    squares = (m2 + finite * (mean - total[:, None]).square()).sum(1)
    parts = n.sum(1), top, (s1 * scale).sum(1), (s2 * scale.square()).sum(1), total, squares, zeros.sum(1), bad.sum(1)
    return torch.stack(parts)


def levels(blocks: Tensor) -> Iterator[Tensor]:
    """(8, B, N) -> the states of B, B/2, ..., 1 groups, (8, G, N) each: residues of the sample number modulo G."""
    yield blocks
    while (groups := blocks.shape[1] // 2) >= 1:
        a, b = blocks[:, :groups].flatten(1), blocks[:, groups:].flatten(1)
        blocks = ops.merge_log_weights(a, b).view(blocks.shape[0], groups, -1)
        yield blocks


def bound_curve(blocks: Tensor) -> BoundCurve:
    """The curve of the blocks (8, B, N)."""
    samples = blocks[0].sum(0)  # (N,)
    counts, values, errors = [], [], []
    for states in levels(blocks):
        size = _group_size(states[0])
        if size >= 2:
            value, error = _level(states, samples)
            counts.append(size)
            values.append(value)
            errors.append(error)
    n, _, _, _, mean, m2, zeros, _ = states[:, 0]
    if _group_size(states[0]) >= 1:  # L_1 is the mean log-weight
        counts.insert(0, 1)
        values.insert(0, mean.masked_fill(zeros > 0, -torch.inf))
        errors.insert(0, (m2 / (n - 1) / n).sqrt().masked_fill((zeros > 0) | (n < 2), torch.nan))
    empty = samples.new_zeros(0, samples.shape[0])
    bad = blocks[7].sum(0) > 0
    return BoundCurve(
        torch.tensor(counts, dtype=torch.int64, device=blocks.device),
        (torch.stack(values) if values else empty).masked_fill(bad, torch.nan),
        (torch.stack(errors) if errors else empty).masked_fill(bad, torch.nan),
    )


def _group_size(counts: Tensor) -> int:
    """The mean number of samples in the groups (G, N) that have any, of the datapoint with the fewest."""
    if counts.shape[1] == 0:
        return 0
    return int((counts.sum(0) / (counts > 0).sum(0).clamp(min=1)).min())


def _level(states: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean bound (N,) of the groups (8, G, N) and its standard error."""
    used = states[0] > 0  # many merged states of few samples may leave groups without any
    bounds, share, groups = log_mean(states), states[0] / samples, used.sum(0)
    value = (share * bounds).masked_fill(~used, 0.0).sum(0)
    between = (share * (bounds - value)).masked_fill(~used, 0.0).square().sum(0) * groups / (groups - 1)
    within = (share.square() * relative(states) / states[0]).masked_fill(~used, 0.0).sum(0)
    return value, torch.where(groups >= _FEWEST_GROUPS, between, within).sqrt()


def jackknife(blocks: Tensor) -> Jackknife:
    """Delete-one-block jackknife of the log of the mean weight, from the blocks (8, B, N).

    With blocks of unequal sizes: Busing, Meijer, van der Leeden, "Delete-m jackknife for unequal m" (1999).
    """
    n, m, s1 = blocks[:3]  # (B, N)
    estimate, total, used = log_mean(whole(blocks)), n.sum(0), n > 0
    share, number = n / total, used.sum(0)
    without = _others(m + s1.log()) - (total - n).log()
    corrected = number * estimate - ((1 - share) * without).masked_fill(~used, 0.0).sum(0)
    pseudo = without + (estimate - without) / share
    terms = share / (1 - share) * (pseudo - corrected).square()
    error = (terms.masked_fill(~used, 0.0).sum(0) / number).sqrt()
    unknown = (number < 2) | ~corrected.isfinite() | (blocks[7].sum(0) > 0)
    return Jackknife(corrected.masked_fill(unknown, torch.nan), error.masked_fill(unknown, torch.nan))


def _others(log_sums: Tensor) -> Tensor:
    """(B, N) -> the log of the sum over all blocks but one. Never a difference of sums: what is left may be tiny."""
    nothing = log_sums.new_full((1, log_sums.shape[1]), -torch.inf)
    before = torch.cat([nothing, log_sums[:-1]]).logcumsumexp(0)
    after = torch.cat([nothing, log_sums[1:].flip(0)]).logcumsumexp(0).flip(0)
    return torch.logaddexp(before, after)
