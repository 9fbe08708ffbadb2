"""``weighted_elbo``: what is trained against posterior collapse. Not a bound on log p(x) but for beta = 1 alone."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from fastvae.distributions import kl_by_dimension
from fastvae.evaluation.arguments import callables, likelihood_of, noise_dtype

from .draws import Draws

__all__ = ["weighted_elbo"]


def weighted_elbo(
    model: Any,
    x: Tensor,
    num_samples: int = 1,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    num_groups: int | None = None,
) -> Tensor:
    r"""The ELBO with a weight on the KL and with free bits, to train against posterior collapse.

    .. math:: E_q[\log p(x | z)] - \beta \sum_g \max(\lambda, \overline{KL}_g)

    With :math:`\beta` the beta-VAE of Higgins et al. (2017); raised from 0 over the first epochs, the warm-up of Bowman
    et al. (2016). With :math:`\lambda` the free bits of Kingma et al., "Improved variational inference with inverse
    autoregressive flow" (2016), equation 15: a group of dimensions whose KL, averaged over the batch, is below
    :math:`\lambda` has no gradient from it, so there is nothing to gain by leaving it unused.

    Args:
        model: has ``proposal(x)``, ``likelihood(z)`` and ``prior()``.
        x: (N, ...) one batch; the bar is its mean.
        num_samples: of z for each datapoint.
        beta: from 0 on.
        free_bits: :math:`\lambda`, nats for each group, from 0 on.
        num_groups: equal groups of neighbouring dimensions. None: each dimension is one where q and r are diagonal
            Gaussians, all dimensions together otherwise, for then the KL does not split.

    Returns:
        (N,) nats, differentiable by reparameterisation. A group below the bar counts as :math:`\lambda` for each
        datapoint, so the mean over the batch is the objective.

    Raises:
        TypeError: if the proposal cannot be reparameterised.
        ValueError: for numbers out of range, or groups that the KL or the dimensions do not split into.

    Example:
        >>> from fastvae.models import VAE
        >>> weighted_elbo(VAE((1, 8, 8)), torch.zeros(3, 1, 8, 8), free_bits=0.1).shape
        torch.Size([3])
    """
    for name, value in (("beta", beta), ("free_bits", free_bits)):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {value}")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, got {num_samples!r}")
    encode, _ = callables(model, None, None)
    q, prior = encode(x), model.prior()
    ids = torch.arange(len(x), device=x.device)
    z, log_q = Draws(q, ids, None, noise_dtype(x, [model] if isinstance(model, torch.nn.Module) else [])).first(
        num_samples
    )
    kl = _grouped_kl(q, prior, z, log_q, num_groups)
    if free_bits > 0:
        kl = torch.where(kl.mean(0) > free_bits, kl, free_bits)
    return likelihood_of(model)(x, z).mean(0) - beta * kl.sum(-1)


def _grouped_kl(q: Any, prior: Any, z: Tensor, log_q: Tensor, num_groups: int | None) -> Tensor:
    """(N, groups) nats."""
    if num_groups != 1:
        terms = kl_by_dimension(q, prior)
        if terms is not None:
            return terms if num_groups is None else terms.unflatten(-1, (_groups(terms, num_groups), -1)).sum(-1)
        if num_groups is not None:
            raise ValueError(
                f"num_groups must be 1 or None, got {num_groups}: the KL between {type(q).__name__} and "
                f"{type(prior).__name__} does not split into dimensions"
            )
    try:
        return kl_divergence(q, prior)[:, None]
    except NotImplementedError:
        return (log_q - prior.log_prob(z)).mean(0)[:, None]


def _groups(terms: Tensor, num_groups: int) -> int:
    if not isinstance(num_groups, int) or num_groups < 1 or terms.shape[-1] % num_groups:
        raise ValueError(f"num_groups must divide the {terms.shape[-1]} dimensions of z, got {num_groups!r}")
    return num_groups
