"""The Pareto tail diagnostic of importance sampling: how heavy is the tail of the weights?"""

import torch
from torch import Tensor

__all__ = ["pareto_khat", "tail_length"]

_POINTS_AT_ONCE = 512  # datapoints fitted together: 45 candidate fits x 255 weights x 512 x 8 bytes = 47 MB


def tail_length(num_samples: int, most: int) -> int:
    """How many of the largest weights form the tail: ``min(0.2 M, 3 sqrt(M))`` (Vehtari et al.), at most ``most``."""
    return int(min(0.2 * num_samples, 3 * num_samples**0.5, most))


def pareto_khat(largest: Tensor, num_samples: int) -> Tensor:
    r"""Shape of the generalised Pareto distribution that the largest importance weights follow.

    Zhang and Stephens (2009) with the weak prior of Vehtari, Simpson, Gelman, Yao, Gabry: "Pareto smoothed importance
    sampling" (2015-2024). Below 0.5 the weights have a finite variance, and the standard error can be trusted; up to
    0.7 the estimate still converges, with a larger error than shown; above, it is dominated by weights that were not
    drawn. It diagnoses: nothing is smoothed.

    Args:
        largest: (T, N) the T largest log-weights of each datapoint, in any order.
        num_samples: M, how many samples they are the largest of.

    Returns:
        (N,) float64. -inf where the weights of the tail are all the same, so that there is no tail; nan where it
        cannot be fitted: fewer than 5 weights in the tail (M below 25), too many zero weights, nan or +inf.

    Raises:
        TypeError: if ``largest`` is not floating point.
        ValueError: if ``largest`` is not (T, N) or ``num_samples`` is smaller than T.

    Example:
        >>> noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
        >>> light, heavy = noise.abs().log(), noise.square()  # weights |e| and exp(e^2): E[exp(e^2)] is infinite
        >>> [bool(pareto_khat(l.topk(256, dim=0).values, 4000) > 0.7) for l in (light, heavy)]
        [False, True]
    """
    if not largest.is_floating_point():
        raise TypeError(f"largest must be floating point, got {largest.dtype}")
    if largest.ndim != 2:
        raise ValueError(f"largest must have shape (T, N), got {tuple(largest.shape)}")
    if num_samples < largest.shape[0]:
        raise ValueError(f"num_samples must be at least the {largest.shape[0]} rows of largest, got {num_samples}")
    length = tail_length(num_samples, largest.shape[0] - 1)
    if length < 5:
        return torch.full((largest.shape[1],), torch.nan, dtype=torch.float64, device=largest.device)
    ordered = largest.double().sort(dim=0, descending=True).values
    parts = ordered.split(_POINTS_AT_ONCE, dim=1) if largest.shape[1] else [ordered]
    return torch.cat([_fit(part[: length + 1].flip(0), length) for part in parts])


def _fit(log_w: Tensor, length: int) -> Tensor:
    """``log_w`` (length + 1, n) ascending; the first row is the cutoff -> k-hat (n,)."""
    w = (log_w - log_w[-1:]).exp()  # relative to the largest
    excess = w[1:] - w[:1]
    # float32 log-weights of 100 nats differ by 1e-5 from rounding alone: that is no tail
    flat = log_w[-1] - log_w[0] <= 1e-6 * log_w[-1].abs().clamp(min=1e-6)
    k = _generalised_pareto_shape(excess)
    k = (k * length + 10 * 0.5) / (length + 10)  # the weak prior: ten observations of 0.5
    k = k.masked_fill(flat, -torch.inf)
    broken = log_w.isnan().any(0) | (log_w == torch.inf).any(0) | (excess[(length - 1) // 4] <= 0) & ~flat
    return k.masked_fill(broken, torch.nan)


def _generalised_pareto_shape(x: Tensor) -> Tensor:
    """Zhang and Stephens, "A new and efficient estimation method for the generalized Pareto distribution" (2009).

    ``x`` (n, N) ascending, positive -> shape k (N,), positive for heavy tails.
    """
    n = x.shape[0]
    candidates = 30 + int(n**0.5)
    j = torch.arange(1, candidates + 1, dtype=x.dtype, device=x.device)[:, None]
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - (candidates / (j - 0.5)).sqrt()) / (3 * quartile)  # (candidates, N)
    k = torch.log1p(-theta[:, None] * x).mean(1)
    profile = n * ((-theta / k).log() - k - 1)  # log-likelihood of each candidate
    theta_hat = (theta * profile.softmax(0)).sum(0)
    return torch.log1p(-theta_hat * x).mean(0)
