"""The Gaussian with a diagonal covariance: the usual proposal and prior of a VAE."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import _standard_normal

__all__ = ["DiagonalGaussian"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class DiagonalGaussian(Distribution):
    r"""Independent Gaussians over the last dimension, :math:`\prod_d N(z_d; \mu_d, e^{2 \lambda_d})`.

    Args:
        loc: (..., d) means.
        log_scale: (..., d) logarithms of the standard deviations, broadcast with ``loc``.

    Raises:
        ValueError: if the shapes do not broadcast or have no dimension.

    Example:
        >>> q = DiagonalGaussian(torch.zeros(8, 2), torch.zeros(8, 2))
        >>> z, log_q = q.rsample_and_log_prob((5,))
        >>> z.shape, log_q.shape
        (torch.Size([5, 8, 2]), torch.Size([5, 8]))
    """

    arg_constraints: ClassVar = {"loc": constraints.real_vector, "log_scale": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None) -> None:
        try:
            self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        except RuntimeError:
            raise ValueError(
                f"loc and log_scale must broadcast, got {tuple(loc.shape)} and {tuple(log_scale.shape)}"
            ) from None
        if self.loc.ndim == 0:
            raise ValueError("loc and log_scale must have an event dimension, got scalars")
        # NaN parameters are reported where they matter, in the value: checking here would read the device every call
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=False)

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers one draw takes."""
        return self.event_shape[0]

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.log_scale.exp()

    @property
    def variance(self) -> Tensor:
        return (2.0 * self.log_scale).exp()

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalGaussian":
        shape = torch.Size(batch_shape) + self.event_shape
        return DiagonalGaussian(self.loc.expand(shape), self.log_scale.expand(shape))

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws and their log-density from standard normal noise.

        Args:
            noise: (..., d), leading dimensions before the batch are sample dimensions.

        Returns:
            ``z`` with the shape of ``noise``, and log q(z) in nats without the last dimension.
        """
        z = torch.addcmul(self.loc, self.log_scale.exp(), noise)
        # exact: no subtraction of z and loc, so the noise's own digits survive
        log_q = -0.5 * noise.square().sum(-1) - self.log_scale.sum(-1) - self.noise_size * _HALF_LOG_TWO_PI
        return z, log_q

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Reparameterised draws (sample, batch, d) and their log-density (sample, batch) in nats, in one pass."""
        noise = _standard_normal(self._extended_shape(torch.Size(sample_shape)), self.loc.dtype, self.loc.device)
        return self.from_noise(noise)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample_and_log_prob(sample_shape)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value must end in {tuple(self.event_shape)}, got shape {tuple(value.shape)}")
        noise = (value - self.loc) * (-self.log_scale).exp()
        return -0.5 * noise.square().sum(-1) - self.log_scale.sum(-1) - self.noise_size * _HALF_LOG_TWO_PI

    def entropy(self) -> Tensor:
        return self.log_scale.sum(-1) + self.noise_size * (0.5 + _HALF_LOG_TWO_PI)
