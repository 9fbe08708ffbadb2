"""How many latent dimensions carry information about the data."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["active_units"]


def active_units(model: Any, x: Tensor, threshold: float = 0.01, batch_size: int = 1000) -> int:
    r"""Latent dimensions whose posterior mean varies over the data, :math:`Var_x(E_q[z_d | x]) > 0.01`.

    Burda, Grosse, Salakhutdinov (2016), section 5.1 (their :math:`A_u`).

    Args:
        model: has ``proposal(x)`` with a ``mean`` (N, d).
        x: (N, ...) at least two datapoints, in the units of the likelihood.
        threshold: the least variance of an active dimension.
        batch_size: datapoints encoded at once.

    Raises:
        ValueError: for fewer than two datapoints.

    Example:
        >>> from fastvae.models import VAE
        >>> 0 <= active_units(VAE((1, 8, 8), latent_size=5), torch.zeros(10, 1, 8, 8)) <= 5
        True
    """
    if len(x) < 2:
        raise ValueError(f"x must hold at least two datapoints for a variance, got {len(x)}")
    with torch.no_grad():
        means = torch.cat([model.proposal(batch).mean for batch in x.split(batch_size)])
    return int((means.double().var(0) > threshold).sum())
