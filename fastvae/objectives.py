"""Bounds on log p(x) to maximise: the ELBO and the IWAE bound. The value returned is the bound itself, in nats."""

import math
from typing import Any

from torch import Tensor
from torch.distributions import kl_divergence

__all__ = ["elbo", "iwae"]


def elbo(model: Any, x: Tensor, num_samples: int = 1, analytic_kl: bool | None = None) -> Tensor:
    r"""The evidence lower bound, :math:`E_q[\log p(x|z)] - KL(q(z|x) \| r(z))`, with M samples.

    Kingma and Welling (2014), equations 2 and 3: with the closed-form KL where there is one, else with the
    Monte-Carlo estimate :math:`\log q(z|x) - \log r(z)` of the same samples.

    Args:
        model: has ``proposal(x)``, ``likelihood(z)`` and ``prior()``; see
            :class:`fastvae.models.LatentVariableModel`.
        x: (N, ...) data in the units of the likelihood.
        num_samples: M, samples of z for each datapoint.
        analytic_kl: True demands the closed form, False the estimate, None takes the closed form if torch knows it.

    Returns:
        (N,) nats, differentiable by reparameterisation.

    Raises:
        ValueError: if ``num_samples`` is below 1, or ``analytic_kl`` is True and there is no closed form.

    Example:
        >>> import torch
        >>> from fastvae.models import VAE
        >>> elbo(VAE((1, 8, 8)), torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3])
    """
    q, z, log_q = _draw(model, x, num_samples)
    log_likelihood = _reconstruction(model, x, z)
    prior = model.prior()
    if analytic_kl is not False:
        try:
            return log_likelihood.mean(0) - kl_divergence(q, prior)
        except NotImplementedError:
            if analytic_kl:
                raise ValueError(
                    f"analytic_kl=True, but torch knows no closed form for {type(q).__name__} and "
                    f"{type(prior).__name__}; register one with torch.distributions.register_kl or pass None"
                ) from None
    return (log_likelihood + prior.log_prob(z) - log_q).mean(0)


def iwae(model: Any, x: Tensor, num_samples: int = 50) -> Tensor:
    r"""The importance-weighted bound :math:`E[\log \frac1K \sum_k p(x, z_k) / q(z_k | x)]` of Burda et al. (2016).

    Equation 8; K = 1 is the ELBO with a Monte-Carlo KL. Autograd of this value is the IWAE gradient (equation 14).

    Args:
        model: has ``proposal(x)``, ``likelihood(z)`` and ``prior()``.
        x: (N, ...) data in the units of the likelihood.
        num_samples: K, samples of z for each datapoint.

    Returns:
        (N,) nats, differentiable by reparameterisation.

    Raises:
        ValueError: if ``num_samples`` is below 1.

    Example:
        >>> import torch
        >>> from fastvae.models import VAE
        >>> iwae(VAE((1, 8, 8)), torch.zeros(3, 1, 8, 8), num_samples=5).shape
        torch.Size([3])
    """
    _, z, log_q = _draw(model, x, num_samples)
    log_w = _reconstruction(model, x, z) + model.prior().log_prob(z) - log_q
    return log_w.logsumexp(0) - math.log(num_samples)


def _draw(model: Any, x: Tensor, num_samples: int) -> tuple[Any, Tensor, Tensor]:
    if not isinstance(num_samples, int) or isinstance(num_samples, bool):
        raise TypeError(f"num_samples must be an integer, got {num_samples!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    q = model.proposal(x)
    if hasattr(q, "rsample_and_log_prob"):
        z, log_q = q.rsample_and_log_prob((num_samples,))
    else:
        z = q.rsample((num_samples,))
        log_q = q.log_prob(z)
    if log_q.shape != (num_samples, x.shape[0]):
        raise ValueError(
            f"the proposal's log_prob must have shape {(num_samples, x.shape[0])} (samples, datapoints), "
            f"got {tuple(log_q.shape)}; wrap it in torch.distributions.Independent"
        )
    return q, z, log_q


def _reconstruction(model: Any, x: Tensor, z: Tensor) -> Tensor:
    log_likelihood = model.likelihood(z).log_prob(x)
    if log_likelihood.shape != (z.shape[0], x.shape[0]):
        raise ValueError(
            f"the likelihood's log_prob must have shape {(z.shape[0], x.shape[0])} (samples, datapoints), "
            f"got {tuple(log_likelihood.shape)}; wrap it in torch.distributions.Independent"
        )
    return log_likelihood
