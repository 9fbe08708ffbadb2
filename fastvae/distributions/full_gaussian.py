"""The Gaussian with a full covariance."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, register_kl
from torch.distributions.utils import _standard_normal

from .diagonal_gaussian import DiagonalGaussian

__all__ = ["FullGaussian"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class FullGaussian(MultivariateNormal):
    r""":math:`N(z; \mu, L L^\top)`: torch's ``MultivariateNormal`` with draws from given noise and their density.

    Args:
        loc: (..., d) means.
        scale_tril: (..., d, d) lower triangular with a positive diagonal, L.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> q = FullGaussian(torch.zeros(8, 2), torch.eye(2).expand(8, 2, 2))
        >>> z, log_q = q.rsample_and_log_prob((5,))
        >>> z.shape, log_q.shape
        (torch.Size([5, 8, 2]), torch.Size([5, 8]))
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        if loc.ndim == 0 or scale_tril.shape[-2:] != (loc.shape[-1],) * 2:
            raise ValueError(
                f"loc and scale_tril must have shapes (..., d) and (..., d, d), got {tuple(loc.shape)} and "
                f"{tuple(scale_tril.shape)}"
            )
        # NaN parameters are reported where they matter, in the value
        super().__init__(loc, scale_tril=scale_tril, validate_args=False)

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers one draw takes."""
        return self.event_shape[0]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FullGaussian":
        shape = torch.Size(batch_shape)
        return FullGaussian(
            self.loc.expand(shape + self.event_shape), self.scale_tril.expand(*shape, *self.scale_tril.shape[-2:])
        )

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws and their log-density from standard normal noise (..., d), sample dimensions before the batch."""
        z = self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        log_scale = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return z, -0.5 * noise.square().sum(-1) - log_scale - self.noise_size * _HALF_LOG_TWO_PI

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Reparameterised draws (sample, batch, d) and their log-density (sample, batch) in nats, in one pass."""
        noise = _standard_normal(self._extended_shape(torch.Size(sample_shape)), self.loc.dtype, self.loc.device)
        return self.from_noise(noise)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample_and_log_prob(sample_shape)[0]


@register_kl(FullGaussian, DiagonalGaussian)
def _kl(p: FullGaussian, q: DiagonalGaussian) -> Tensor:
    inverse = (-q.log_scale).exp()
    tril = p._unbroadcasted_scale_tril * inverse.unsqueeze(-1)
    log_det = 2.0 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    squares = tril.square().sum((-2, -1)) + ((p.loc - q.loc) * inverse).square().sum(-1)
    return 0.5 * (squares - p.event_shape[0] - log_det)
