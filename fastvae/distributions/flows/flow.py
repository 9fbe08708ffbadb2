"""``Flow``: noise of a known density, and the bijections that it goes through."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.distributions.transforms import Transform

from ..diagonal_gaussian import DiagonalGaussian
from .transform import check_transform, to_data, to_noise

__all__ = ["Flow"]


class Flow(Distribution):
    r"""The distribution of :math:`z = t_n(\dots t_1(u))`, :math:`\log p(z) = \log p(u) - \sum_i \log |\det J_i|`.

    Rezende and Mohamed: "Variational inference with normalizing flows" (2015), equation 13. Draws with their density
    take each transform once, from noise to data; the density of given points takes each the other way. Which of the
    two is cheap belongs to the transform and is said there.

    Args:
        base: the distribution of u, event (d,): a :class:`DiagonalGaussian`, or any other of torch or zuko. The batch
            of the flow is that of its base.
        transforms: noise to data, the first one next to the base: ours, those of ``torch.distributions`` and zuko's
            (whose own flows go from data to noise: pass ``transform.inv``).

    Raises:
        TypeError: if ``base`` is no distribution or a transform is none.
        ValueError: if the event of ``base`` is no vector.

    Example:
        >>> base = DiagonalGaussian(torch.zeros(8, 2), torch.zeros(8, 2))
        >>> q = Flow(base, [torch.distributions.transforms.TanhTransform()])
        >>> z, log_q = q.rsample_and_log_prob((5,))
        >>> z.shape, log_q.shape, bool(torch.allclose(q.log_prob(z), log_q, atol=1e-3))
        (torch.Size([5, 8, 2]), torch.Size([5, 8]), True)
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, base: Distribution, transforms: Sequence[Transform]) -> None:
        if not isinstance(base, Distribution):
            raise TypeError(f"base must be a torch.distributions.Distribution, got {type(base).__name__}")
        if len(base.event_shape) != 1:
            raise ValueError(
                f"base must have an event (d,), got {tuple(base.event_shape)}: wrap it in "
                "torch.distributions.Independent(base, 1) if the dimensions are in its batch"
            )
        for transform in transforms:
            check_transform(transform)
        self.base, self.transforms = _as_ours(base), tuple(transforms)
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch's is an attribute of the class
        return bool(self.base.has_rsample)

    @property
    def support(self) -> Any:
        return self.transforms[-1].codomain if self.transforms else constraints.real_vector

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers one draw takes, where ``from_noise`` exists."""
        return self.base.noise_size  # type: ignore[attr-defined]  # an AttributeError says that it does not

    @property
    def from_noise(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """``from_noise(noise)`` (..., noise_size) -> draws and their log-density; only if the base has it."""
        base = self.base.from_noise  # type: ignore[attr-defined]  # so hasattr tells
        return lambda noise: self._through(*base(noise))

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Reparameterised draws (sample, batch, d) and their log-density (sample, batch) in nats, in one pass."""
        shape = torch.Size(sample_shape)
        if hasattr(self.base, "rsample_and_log_prob"):
            return self._through(*self.base.rsample_and_log_prob(shape))
        noise = self.base.rsample(shape) if self.has_rsample else self.base.sample(shape)
        return self._through(noise, self.base.log_prob(noise))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError(f"the base, {type(self.base).__name__}, has no rsample")
        return self.rsample_and_log_prob(sample_shape)[0]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample_and_log_prob(sample_shape)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """``value`` (..., d) -> (...) nats."""
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value must end in {tuple(self.event_shape)}, got shape {tuple(value.shape)}")
        total: Any = 0.0
        for transform in reversed(self.transforms):
            value, log_det = to_noise(transform, value)
            total = total + log_det
        return self.base.log_prob(value) + total

    def _through(self, value: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        for transform in self.transforms:
            value, log_det = to_data(transform, value)
            log_prob = log_prob - log_det
        return value, log_prob


def _as_ours(base: Distribution) -> Distribution:
    """A diagonal normal as the class that makes draws from given noise."""
    if type(base) is Independent and type(base.base_dist) is Normal:
        return DiagonalGaussian(base.base_dist.loc, base.base_dist.scale.log())
    return base
