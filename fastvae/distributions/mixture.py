"""Mixtures: of Gaussians, or of anything else with a batch of components."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .diagonal_gaussian import DiagonalGaussian

__all__ = ["Mixture"]


class Mixture(Distribution):
    r""":math:`\sum_k \pi_k p_k(z)`, the logarithm without overflow.

    For components that are :class:`DiagonalGaussian` the exponents of all come from one matrix product, in float64:
    nothing of shape (..., K, d) exists. Draws are not reparameterised.

    Args:
        components: batch (K,), event (d,).
        log_weights: (K,) logarithms of the weights, normalised here; equal weights by default.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> mixture = Mixture(DiagonalGaussian(torch.tensor([[-3.0], [3.0]]), torch.zeros(2, 1)))
        >>> mixture.log_prob(torch.tensor([[3.0], [-3.0]])).exp() * (2 * math.pi) ** 0.5
        tensor([0.5000, 0.5000])
        >>> mixture.sample((4,)).shape
        torch.Size([4, 1])
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector

    def __init__(self, components: Distribution, log_weights: Tensor | None = None) -> None:
        if len(components.batch_shape) != 1 or len(components.event_shape) != 1:
            raise ValueError(
                f"components must have a batch (K,) and an event (d,), got {tuple(components.batch_shape)} and "
                f"{tuple(components.event_shape)}"
            )
        count = components.batch_shape[0]
        if log_weights is not None and log_weights.shape != (count,):
            raise ValueError(f"log_weights must have shape ({count},), got {tuple(log_weights.shape)}")
        self.components = components
        self.log_weights = None if log_weights is None else log_weights.log_softmax(0)
        super().__init__(torch.Size(), components.event_shape, validate_args=False)

    @property
    def num_components(self) -> int:
        """K."""
        return self.components.batch_shape[0]

    @property
    def mean(self) -> Tensor:
        means = self.components.mean
        return means.mean(0) if self.log_weights is None else self.log_weights.exp() @ means

    def log_prob(self, value: Tensor) -> Tensor:
        """``value`` (..., d) -> (...) nats."""
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value must end in {tuple(self.event_shape)}, got shape {tuple(value.shape)}")
        if type(self.components) is DiagonalGaussian:
            each = _gaussians(self.components, value)
        else:
            each = self.components.log_prob(value.unsqueeze(-2))  # (..., K)
        if self.log_weights is None:
            return (each.logsumexp(-1) - math.log(self.num_components)).to(value.dtype)
        return (each + self.log_weights).logsumexp(-1).to(value.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            if type(self.components) is not DiagonalGaussian:
                drawn = self.components.sample(shape)  # (..., K, d)
                chosen = self._choose(shape, drawn.device)[..., None, None].expand(*shape, 1, *self.event_shape)
                return drawn.gather(-2, chosen).squeeze(-2)
            chosen = self._choose(shape, self.components.loc.device)
            loc, log_scale = self.components.loc[chosen], self.components.log_scale[chosen]
            return DiagonalGaussian(loc, log_scale).sample()

    def _choose(self, shape: torch.Size, device: torch.device) -> Tensor:
        if self.log_weights is None:
            return torch.randint(self.num_components, shape, device=device)
        return torch.multinomial(self.log_weights.exp(), shape.numel(), replacement=True).view(shape)


def _gaussians(components: DiagonalGaussian, value: Tensor) -> Tensor:
    """(..., d) -> log-densities (..., K), by z^2 a + z b + c: wide, for the squares cancel."""
    with torch.autocast(value.device.type, enabled=False):
        loc, log_scale, z = components.loc.double(), components.log_scale.double(), value.double()
        precision = (-2.0 * log_scale).exp()
        constant = (0.5 * loc.square() * precision + log_scale).sum(-1) + 0.5 * loc.shape[-1] * math.log(2.0 * math.pi)
        factors = torch.cat([-0.5 * precision, loc * precision], -1)  # (K, 2 d)
        return torch.cat([z.square(), z], -1) @ factors.T - constant
