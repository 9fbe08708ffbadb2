"""How many latent dimensions carry information about the data."""

from typing import Any

import torch
from torch import Tensor

from .arguments import modules_of, noise_dtype
from .draw import draw

__all__ = ["active_units"]

NUM_SAMPLES = 128


def active_units(model: Any, x: Tensor, threshold: float = 0.01, batch_size: int = 1000) -> int:
    r"""Latent dimensions whose posterior mean varies over the data, :math:`Var_x(E_q[z_d | x]) > 0.01`.

    Burda, Grosse, Salakhutdinov (2016), section 5 (their :math:`A_u`).

    Where the proposal has no mean in closed form (flows, several layers), the variance is the covariance of two means
    of :data:`NUM_SAMPLES` samples each, which their noise does not enlarge.

    Args:
        model: has ``proposal(x)`` with a ``mean`` (N, d), or samples.
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
    dtype = noise_dtype(x, modules_of(model))
    with torch.no_grad():
        pairs = [
            _means(model.proposal(x[ids]), ids, dtype)
            for ids in torch.arange(len(x), device=x.device).split(batch_size)
        ]
    one, two = (torch.cat(means).double() for means in zip(*pairs, strict=True))
    variance = ((one - one.mean(0)) * (two - two.mean(0))).sum(0) / (len(x) - 1)
    return int((variance > threshold).sum())


def _means(q: Any, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The mean of q (N, d) twice, or two estimates of it that do not depend on each other."""
    try:
        return q.mean, q.mean
    except (AttributeError, NotImplementedError):
        z, _ = draw(q, 0, ids, 0, 2 * NUM_SAMPLES, dtype)
    if not isinstance(z, Tensor):
        raise TypeError("active_units needs z as one tensor, got several layers")
    return z[:NUM_SAMPLES].mean(0), z[NUM_SAMPLES:].mean(0)
