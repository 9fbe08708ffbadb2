"""The definition of the streaming state of importance weights: what is kept, how samples enter, how two states join."""

import torch
from torch import Tensor

__all__ = ["STATE_ROWS", "empty_log_weights", "merge_log_weights", "update_log_weights"]

STATE_ROWS = 8  # count, max, sum, sum of squares, mean, M2, number of zero weights, number of bad weights


def empty_log_weights(num_points: int, device: torch.device | str | None = None) -> Tensor:
    """The state before the first sample: (8, ``num_points``) float64."""
    state = torch.zeros(STATE_ROWS, num_points, dtype=torch.float64, device=device)
    state[1] = -torch.inf
    return state


def update_log_weights(state: Tensor, log_w: Tensor) -> Tensor:
    """The state after the samples ``log_w`` (K, N): the merge of ``state`` (8, N) with the summary of ``log_w``."""
    return merge_log_weights(state, _summary(log_w.detach().double()))


def merge_log_weights(a: Tensor, b: Tensor) -> Tensor:
    """The state of the samples of both: (8, N) float64; commutative, and associative up to rounding."""
    n_a, m_a, s1_a, s2_a, mean_a, m2_a, zeros_a, bad_a = a
    n_b, m_b, s1_b, s2_b, mean_b, m2_b, zeros_b, bad_b = b
    m = torch.maximum(m_a, m_b)
    origin = _origin(m)
    scale_a, scale_b = (m_a - origin).exp(), (m_b - origin).exp()
    finite_a, finite_b = n_a - zeros_a - bad_a, n_b - zeros_b - bad_b
    finite = (finite_a + finite_b).clamp(min=1)
    delta = mean_b - mean_a
    return torch.stack(
        [
            n_a + n_b,
            m,
            s1_a * scale_a + s1_b * scale_b,
            s2_a * scale_a.square() + s2_b * scale_b.square(),
            (mean_a * finite_a + mean_b * finite_b) / finite,
            m2_a + m2_b + delta.square() * (finite_a * finite_b / finite),  # Chan, Golub, LeVeque (1979)
            zeros_a + zeros_b,
            bad_a + bad_b,
        ]
    )


def _summary(log_w: Tensor) -> Tensor:
    """The state of the samples (K, N) float64 alone."""
    num_samples, num_points = log_w.shape
    if num_samples == 0:
        return empty_log_weights(num_points, log_w.device)
    bad = log_w.isnan() | (log_w == torch.inf)
    zero = log_w == -torch.inf
    l = log_w.masked_fill(bad, -torch.inf)
    m = l.amax(0)
    w = (l - _origin(m)).exp()
    missing = bad | zero
    finite = (~missing).sum(0).clamp(min=1)
    mean = l.masked_fill(missing, 0.0).sum(0) / finite
    m2 = (l - mean).masked_fill(missing, 0.0).square().sum(0)
    count = torch.full_like(m, num_samples)
    return torch.stack([count, m, w.sum(0), w.square().sum(0), mean, m2, zero.sum(0), bad.sum(0)])


def _origin(m: Tensor) -> Tensor:
    """What to subtract before exp: the maximum, or 0 where every weight is zero (-inf - -inf would be nan)."""
    return m.masked_fill(m == -torch.inf, 0.0)
