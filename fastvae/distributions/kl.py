"""The KL divergence of independent Gaussians, dimension by dimension."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, register_kl

from .diagonal_gaussian import DiagonalGaussian

__all__ = ["kl_by_dimension"]


def kl_by_dimension(p: Any, q: Any) -> Tensor | None:
    r"""The terms of :math:`KL(p \| q) = \sum_d KL(p_d \| q_d)` in nats, where both are diagonal Gaussians.

    Args:
        p, q: distributions with event (d,); :class:`DiagonalGaussian`, or torch's ``Independent`` of a ``Normal``.

    Returns:
        (batch, d) nats, or None if one of them is anything else, for which no such sum exists.

    Example:
        >>> p = DiagonalGaussian(torch.tensor([0.0, 2.0]), torch.zeros(2))
        >>> kl_by_dimension(p, DiagonalGaussian(torch.zeros(2), torch.zeros(2)))
        tensor([0., 2.])
    """
    first, second = _as_diagonal(p), _as_diagonal(q)
    if first is None or second is None:
        return None
    difference = ((first.loc - second.loc) * (-second.log_scale).exp()).square()
    log_ratio = first.log_scale - second.log_scale
    return 0.5 * (difference + torch.expm1(2.0 * log_ratio) - 2.0 * log_ratio)


def _as_diagonal(p: Any) -> DiagonalGaussian | None:
    if type(p) is Independent and type(p.base_dist) is Normal and len(p.event_shape) == 1:
        return DiagonalGaussian(p.base_dist.loc, p.base_dist.scale.log())
    return p if isinstance(p, DiagonalGaussian) else None


@register_kl(DiagonalGaussian, DiagonalGaussian)
def _kl(p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    terms = kl_by_dimension(p, q)
    assert terms is not None
    return terms.sum(-1)
