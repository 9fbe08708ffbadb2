"""Two stochastic layers as one distribution over their concatenation."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .diagonal_gaussian import DiagonalGaussian

__all__ = ["Chained"]


class Chained(Distribution):
    r""":math:`p(a) p(b | a)` over z = (a, b), or (b, a): a is drawn first.

    One vector holds both layers, so every bound, estimator and evaluation takes it like any other z.

    Args:
        first: p(a), event (d_a,), with ``rsample_and_log_prob`` (and ``from_noise`` for addressed samples), or with
            ``sample`` and ``log_prob`` alone for a prior.
        conditional: a (..., d_a) -> p(b | a), a :class:`DiagonalGaussian` over (d_b,).
        size: d_b.
        reverse: whether z is (b, a): for a prior that goes down from the last layer of z.

    Example:
        >>> first = DiagonalGaussian(torch.zeros(8, 3), torch.zeros(3))
        >>> q = Chained(first, lambda a: DiagonalGaussian(a[..., :2], torch.zeros(2)), size=2)
        >>> z, log_q = q.rsample_and_log_prob((5,))
        >>> z.shape, bool(torch.allclose(q.log_prob(z), log_q, atol=1e-4))
        (torch.Size([5, 8, 5]), True)
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, first: Any, conditional: Callable[[Tensor], DiagonalGaussian], size: int, *, reverse: bool = False
    ) -> None:
        self.first, self.conditional, self.size, self.reverse = first, conditional, size, reverse
        super().__init__(first.batch_shape, torch.Size([first.event_shape[0] + size]), validate_args=False)

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers one draw takes."""
        return self.first.noise_size + self.size

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``noise`` (..., noise_size) -> draws (..., d) and their log-density (...) in nats."""
        of_first, of_second = noise.split([self.first.noise_size, self.size], dim=-1)
        a, log_first = self.first.from_noise(of_first)
        b, log_second = self.conditional(a).from_noise(of_second)
        return self._joined(a, b), log_first + log_second

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Reparameterised draws (sample, batch, d) and their log-density (sample, batch) in nats, in one pass."""
        a, log_first = self.first.rsample_and_log_prob(sample_shape)
        b, log_second = self.conditional(a).rsample_and_log_prob()
        return self._joined(a, b), log_first + log_second

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample_and_log_prob(sample_shape)[0]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():  # a prior's first part may have no rsample, as mixtures
            a = self.first.sample(sample_shape)
            return self._joined(a, self.conditional(a).sample())

    def log_prob(self, value: Tensor) -> Tensor:
        """``value`` (..., d) -> (...) nats."""
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value must end in {tuple(self.event_shape)}, got shape {tuple(value.shape)}")
        sizes = [self.event_shape[0] - self.size, self.size]
        if self.reverse:
            b, a = value.split(sizes[::-1], dim=-1)
        else:
            a, b = value.split(sizes, dim=-1)
        return self.first.log_prob(a) + self.conditional(a).log_prob(b)

    def _joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([b, a] if self.reverse else [a, b], dim=-1)
