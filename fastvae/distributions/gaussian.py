"""Gaussian likelihood of continuous images."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastvae import ops

from .likelihood import ImageDistribution, Likelihood, check_finite, is_checked, support_error

__all__ = ["Gaussian", "GaussianLikelihood"]


class Gaussian(ImageDistribution):
    """Independent Gaussian values; ``log_prob`` is a density in nats per image, in the units of the data.

    Args:
        mean: (..., C, H, W).
        log_scale: logarithms of the standard deviations, broadcast to ``mean``.

    Example:
        >>> Gaussian(torch.zeros(1, 1, 2, 2), torch.tensor(0.0)).log_prob(torch.zeros(1, 1, 2, 2))
        tensor([-3.6758])
    """

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        super().__init__(mean.shape)
        self.loc, self.log_scale = mean, log_scale

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (2.0 * self.log_scale).exp().expand_as(self.loc)

    def log_prob(self, x: Tensor) -> Tensor:
        """``x`` (..., C, H, W), floating point -> (...) nats."""
        self._check_shape(x)
        if not is_checked():
            _check_continuous(x)
        return self._log_prob(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        return ops.gaussian_log_prob(x, self.loc, self.log_scale)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        check_finite("mean", self.loc)
        check_finite("log_scale", self.log_scale)
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            return self.loc + self.log_scale.exp() * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)


class GaussianLikelihood(Likelihood):
    r"""Continuous images, :math:`N(x; g(z), s^2 I)` or with a scale for every value.

    Args:
        scale: ``"shared"`` learns one s for all values, ``"pixel"`` takes a second channel of parameters as the
            log-scale of each value, a positive number fixes s. In the units of the data; the learned s starts at 0.2,
            which suits data in (0, 1) as :func:`fastvae.data.dequantize` makes them.
        dtype: of the log-scale, torch's default if None.

    Raises:
        TypeError, ValueError: if ``scale`` is none of these.
    """

    name = "gaussian"
    num_levels = None

    def __init__(self, scale: str | float = "shared", dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if isinstance(scale, str):
            if scale not in ("shared", "pixel"):
                raise ValueError(f"scale must be 'shared', 'pixel' or a positive number, got {scale!r}")
        elif not isinstance(scale, int | float) or isinstance(scale, bool):
            raise TypeError(f"scale must be 'shared', 'pixel' or a positive number, got {scale!r}")
        elif not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        self.scale_mode = scale
        self.num_params = 2 if scale == "pixel" else 1
        start = torch.tensor(math.log(scale) if isinstance(scale, float | int) else math.log(0.2), dtype=dtype)
        if scale == "shared":
            self.log_scale = nn.Parameter(start)
        elif scale != "pixel":
            self.register_buffer("log_scale", start)

    def forward(self, params: Tensor) -> Gaussian:
        values = self.split(params)
        if self.scale_mode == "pixel":
            return Gaussian(values.select(-3, 0), values.select(-3, 1))
        return Gaussian(values.select(-3, 0), self.log_scale)

    def check(self, x: Tensor) -> None:
        _check_continuous(x)

    def marginal_params(self, x: Tensor) -> Tensor:
        mean = x.mean(0)
        if self.scale_mode != "pixel":
            return mean
        return torch.stack([mean, x.std(0).clamp(min=0.02).log()], dim=1).flatten(0, 1)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "scale": self.scale_mode}

    def extra_repr(self) -> str:
        return f"scale={self.scale_mode!r}"


def _check_continuous(x: Tensor) -> None:
    fix = "dequantise integer levels first (fastvae.data.dequantize)"
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point for a gaussian likelihood, got {x.dtype}; {fix}")
    support_error("gaussian", x, torch.isfinite(x), "finite", "look for nan in the data")
