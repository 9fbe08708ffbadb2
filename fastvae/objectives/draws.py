"""Reparameterised samples of a proposal and their log-density, from torch's generators or from addressed noise.

Here z is always one tensor (K, N, ...), which gradients are taken in and hooks stand on. The layers of a hierarchical
proposal, a tuple of tensors, are parts of it.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from fastvae.evaluation.draw import Latent, draw, is_addressed

__all__ = ["Draws"]


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
        self._layers: list[torch.Size] | None = None  # their shapes for one z, where it is a tuple
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
        return self._joined(z), log_q

    def with_seed(self) -> "Draws":
        """The same with a seed, if need be one from torch's generator: noise that can be drawn again, in parts."""
        made = copy(self)
        made.seed = int(torch.randint(2**63 - 1, ())) if self.seed is None else self.seed
        return made

    def some(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """The samples ``first .. first + count``, the same ones whenever they are asked for."""
        if self.seed is None:
            raise ValueError("samples by number need a seed")
        z, log_q = draw(self.q, self.seed, self.ids, first, count, self.dtype)
        return self._joined(z), log_q

    def split(self, z: Tensor) -> Latent:
        """What the proposal draws, from ``z`` (K, N, ...) as it is here: the layers where it draws several."""
        if self._layers is None:
            return z
        parts = z.split([shape.numel() for shape in self._layers], dim=-1)
        return tuple(part.unflatten(-1, shape) for part, shape in zip(parts, self._layers, strict=True))

    def with_split(self, log_prob: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """``log_prob(x, z)`` of what the proposal draws, as a function of z as it is here."""
        return lambda x, z: log_prob(x, self.split(z))

    def score(self, z: Tensor) -> Tensor:
        """d log q(z) / d z with the shape of ``z`` (K, N, ...), q's parameters constant.

        Raises:
            TypeError: if the proposal has no ``log_prob``.
        """
        if not hasattr(self.q, "log_prob"):
            raise TypeError(
                "this estimator needs proposal(x).log_prob(z), the density at a given z; "
                f"{type(self.q).__name__} has none: use the plain one"
            )
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(self.q.log_prob(self.split(z)).sum(), z)[0]

    def _joined(self, z: Latent) -> Tensor:
        if isinstance(z, Tensor):
            return z
        self._layers = [layer.shape[2:] for layer in z]
        return torch.cat([layer.reshape(*layer.shape[:2], layer.shape[2:].numel()) for layer in z], dim=-1)
