"""Reparameterised samples of a proposal and their log-density, from torch's generators or from addressed noise."""

from typing import Any

import torch
from torch import Tensor

from fastvae.evaluation.draw import draw, is_addressed

__all__ = ["Draws", "score"]


class Draws:
    """The samples of one bound.

    Args:
        q: the proposal, batch (N,).
        ids: (N,) int64, numbers of the datapoints.
        seed: of noise with addresses; None for torch's generators.
        dtype: of the noise that ``q.from_noise`` takes.

    Raises:
        TypeError: if ``q`` has no samples to differentiate.
    """

    def __init__(self, q: Any, ids: Tensor, seed: int | None, dtype: torch.dtype) -> None:
        self.q, self.ids, self.seed, self.dtype = q, ids, seed, dtype
        self.addressed = is_addressed(q)
        if not (hasattr(q, "rsample_and_log_prob") or getattr(q, "has_rsample", hasattr(q, "rsample"))):
            raise TypeError(
                "proposal(x) must have rsample and log_prob, or rsample_and_log_prob: the gradient goes through the "
                f"samples, and {type(q).__name__} has none to differentiate"
            )

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` samples z (count, N, ...) and log q(z) (count, N)."""
        if self.seed is not None:
            return self.some(0, count)
        if hasattr(self.q, "rsample_and_log_prob"):
            z, log_q = self.q.rsample_and_log_prob((count,))
        else:
            z = self.q.rsample((count,))
            log_q = self.q.log_prob(z)
        want = (count, self.ids.shape[0])
        if log_q.shape != want:
            raise ValueError(
                f"the proposal's log_prob must have shape {want} (samples, datapoints), got {tuple(log_q.shape)}; "
                "wrap it in torch.distributions.Independent"
            )
        return z, log_q

    def with_seed(self) -> "Draws":
        """The same with a seed, if need be one from torch's generator: noise that can be drawn again, in parts."""
        seed = int(torch.randint(2**63 - 1, ())) if self.seed is None else self.seed
        return Draws(self.q, self.ids, seed, self.dtype)

    def some(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """The samples ``first .. first + count``, the same ones whenever they are asked for."""
        if self.seed is None:
            raise ValueError("samples by number need a seed")
        z, log_q = draw(self.q, self.seed, self.ids, first, count, self.dtype)
        if not isinstance(z, Tensor):
            raise TypeError(
                "proposals of several layers (z is a tuple) train with all samples at once and torch's noise: leave "
                "max_bytes and seed out"
            )
        return z, log_q


def score(q: Any, z: Tensor) -> Tensor:
    """d log q(z) / d z with the shape of ``z`` (K, N, ...), q's parameters constant.

    Raises:
        TypeError: if ``q`` has no ``log_prob``.
    """
    if not hasattr(q, "log_prob"):
        raise TypeError(
            "this estimator needs proposal(x).log_prob(z), the density at a given z; "
            f"{type(q).__name__} has none: use the plain one"
        )
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(q.log_prob(z).sum(), z)[0]
