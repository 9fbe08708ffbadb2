"""Posterior collapse, measured: rate, distortion, mutual information, KL of each dimension, active units."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from tqdm import tqdm

from fastvae.distributions import kl_by_dimension

from .active_units import active_units
from .arguments import callables, check_device, evaluation_mode, likelihood_of, modules_of, noise_dtype
from .diagnosis import Diagnosis
from .draw import draw

__all__ = ["diagnose"]

_PRIOR_SAMPLES = 10_000  # for the moments of a prior that does not tell them
_ROWS = 1000  # z that the decoder takes at once
_PAIR_VALUES = 2**22  # numbers in one block of the densities of all pairs


def diagnose(
    model: Any,
    data: Tensor,
    num_samples: int = 64,
    num_pair_samples: int = 4,
    *,
    seed: int = 0,
    batch_size: int = 100,
    progress: bool = False,
) -> Diagnosis:
    r"""How much a model says through z, and where.

    With :math:`q(z) = \frac1N \sum_n q(z | x_n)` over the N datapoints given,

    - rate :math:`R = \frac1N \sum_n KL(q(z | x_n) \| r(z))` and distortion
      :math:`D = -\frac1N \sum_n E_q \log p(x_n | z)`, the ELBO being :math:`-(R + D)`: Alemi et al., "Fixing a broken
      ELBO" (2018). The KL in closed form where torch knows it, else the mean of :math:`\log q(z|x) - \log r(z)`.
    - mutual information :math:`I_q(x; z) = \frac1N \sum_n E_{q(z | x_n)} [\log q(z | x_n) - \log q(z)]`: Hoffman and
      Johnson, "ELBO surgery" (2016), where it is the index-code mutual information and
      :math:`R = I + KL(q(z) \| r(z))`. The sum over all N is exact, the expectation has ``num_pair_samples`` samples,
      so for these N datapoints the estimate has no bias. It is no more than log N: of the distribution that they come
      from it is an underestimate in expectation, a severe one where it comes near log N. It costs
      N^2 ``num_pair_samples`` densities.
    - KL of each dimension: for diagonal Gaussians :math:`\frac1N \sum_n KL(q(z_d | x_n) \| r(z_d))`, which sums to R.
      Other distributions have no such sum: then it is the KL between Gaussians with the means and variances of
      :math:`q(z_d | x_n)` and :math:`r(z_d)`, estimated from the samples where they are not known (with the bias of
      first order removed, so a dimension that is not used may show a value a little below 0).
    - active units: :func:`active_units`.

    Args:
        model: has ``proposal(x)``, ``likelihood(z)`` and ``prior()``; z has an event (d,).
        data: (N, ...) at least two datapoints, in the units of the likelihood.
        num_samples: of z for each datapoint, at least 2.
        num_pair_samples: of them for the mutual information, from 2 to ``num_samples``.
        seed: of the samples, which depend on it alone.
        batch_size: datapoints at once.
        progress: bars on standard error.

    Raises:
        TypeError: if the model lacks one of the three, or z is not one tensor.
        ValueError: for fewer than two datapoints, or numbers out of range.

    Example:
        >>> from fastvae.models import VAE
        >>> found = diagnose(VAE((1, 8, 8), latent_size=5), torch.zeros(10, 1, 8, 8))
        >>> found.latent_size, found.exact_dimensions, bool(found.mutual_information < math.log(10))
        (5, True, True)
    """
    _check(data, num_samples, num_pair_samples, batch_size)
    callables(model, None, None)
    modules = modules_of(model)
    check_device(data, modules)
    with torch.no_grad(), evaluation_mode(modules):
        sums = _Sums(model, data, (num_samples, num_pair_samples), seed, noise_dtype(data, modules))
        batches = torch.arange(len(data), device=data.device).split(batch_size)
        parts = [sums(ids) for ids in tqdm(batches, desc="rate and distortion", disable=not progress)]
        *of_samples, dimensions = zip(*parts, strict=True)
        rate, distortion, z, log_q = (torch.cat(values, dim=1) for values in of_samples)
        own = _information(model, data, z, log_q, batch_size, progress)
        units = active_units(model, data, batch_size=batch_size)
    mean_rate, rate_error = _mean_and_error(rate)
    mean_distortion, distortion_error = _mean_and_error(distortion)
    information, information_error = _mean_and_error(own)
    return Diagnosis(
        num_points=len(data),
        num_samples=num_samples,
        rate=mean_rate,
        rate_error=rate_error,
        distortion=mean_distortion,
        distortion_error=distortion_error,
        mutual_information=information,
        mutual_information_error=information_error,
        kl_per_dimension=torch.cat(dimensions).mean(0),
        active_units=units,
        exact_dimensions=sums.exact,
    )


class _Sums:
    """What one batch of datapoints contributes."""

    def __init__(self, model: Any, data: Tensor, counts: tuple[int, int], seed: int, dtype: torch.dtype) -> None:
        self.model, self.data, self.counts, self.seed, self.dtype = model, data, counts, seed, dtype
        self.prior, self.likelihood = model.prior(), likelihood_of(model)
        self.exact = True  # until a batch tells otherwise
        self.prior_moments: tuple[Tensor, Tensor] | None = None

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rate (K or 1, n), distortion (K, n), some z (k, n, d) with log q (k, n), KL of dimensions (n, d)."""
        x, (count, kept) = self.data[ids], self.counts
        q = self.model.proposal(x)
        z, log_q = draw(q, self.seed, ids, 0, count, self.dtype)
        if not isinstance(z, Tensor) or z.ndim != 3:
            raise TypeError("diagnose needs z as one tensor with an event (d,), got another shape or several layers")
        try:
            rate = kl_divergence(q, self.prior)[None]
        except NotImplementedError:
            rate = log_q - self.prior.log_prob(z)
        dimensions = kl_by_dimension(q, self.prior)
        if dimensions is None:
            self.exact = False
            dimensions = self._of_moments(q, z)
        log_prob = torch.cat([self.likelihood(x, some) for some in z.split(max(1, _ROWS // len(ids)))])
        return rate.double(), -log_prob.double(), z[:kept], log_q[:kept].double(), dimensions.double()

    def _of_moments(self, q: Any, z: Tensor) -> Tensor:
        """(n, d) KL of Gaussians with the moments of q and of the prior."""
        if self.prior_moments is None:
            self.prior_moments = _moments(self.prior) or _sampled_moments(self.prior, z)
        loc, variance = (moment.double() for moment in self.prior_moments)
        known = _moments(q)
        mean, own = known or (z.double().mean(0), z.double().var(0))
        mean, own = mean.double(), own.double()
        kl = 0.5 * ((own + (mean - loc).square()) / variance - 1.0 - (own / variance).log())
        if known is None:  # of the squared mean and of the logarithm
            kl = kl - 0.5 * (own / variance / len(z) + 1.0 / (len(z) - 1))
        return kl


def _moments(p: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and variance, if the distribution tells both."""
    try:
        return p.mean, p.variance
    except (AttributeError, NotImplementedError):
        return None


def _sampled_moments(prior: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng([like.device] if like.device.type == "cuda" else []):
        torch.manual_seed(0)
        z = prior.sample((_PRIOR_SAMPLES,)).double()
    return z.mean(0), z.var(0)


def _information(model: Any, data: Tensor, z: Tensor, log_q: Tensor, batch_size: int, progress: bool) -> Tensor:
    """log q(z | own x) - log q(z), (K, N), for z (K, N, d) and its own log-density (K, N)."""
    count, points, size = z.shape
    rows = z.reshape(count * points, 1, size)
    owner = torch.arange(points, device=z.device).repeat(count)
    total = torch.full((count * points,), -torch.inf, dtype=torch.float64, device=z.device)
    batches = torch.arange(points, device=z.device).split(batch_size)
    for ids in tqdm(batches, desc="mutual information", disable=not progress):
        q = model.proposal(data[ids])
        for some in torch.arange(len(rows), device=z.device).split(max(1, _PAIR_VALUES // (len(ids) * size))):
            log_prob = q.log_prob(rows[some].expand(-1, len(ids), -1)).double()
            mine = owner[some, None] == ids
            # the density that was drawn is more exact than one of the inverse
            log_prob = torch.where(mine, log_q.flatten()[some, None], log_prob)
            total[some] = torch.logaddexp(total[some], log_prob.logsumexp(1))
    return log_q - total.view(count, points) + math.log(points)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of (K, N) and its error from the samples; 0 for K = 1, which is no estimate."""
    if len(values) == 1:
        return float(values.mean()), 0.0
    return float(values.mean()), math.sqrt(float(values.var(0).sum()) / len(values)) / values.shape[1]


def _check(data: Any, num_samples: int, num_pair_samples: int, batch_size: int) -> None:
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a tensor, got {type(data).__name__}")
    if data.ndim < 1 or len(data) < 2:
        raise ValueError(f"data must hold at least two datapoints (N, ...), got shape {tuple(data.shape)}")
    for name, value, least in (
        ("num_samples", num_samples, 2),
        ("num_pair_samples", num_pair_samples, 2),
        ("batch_size", batch_size, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if num_pair_samples > num_samples:
        raise ValueError(f"num_pair_samples must be at most num_samples, {num_samples}, got {num_pair_samples}")
