"""Mixture of discretised logistics: images with many levels from few parameters per pixel (PixelCNN++)."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastvae import ops

from .likelihood import ImageDistribution, Likelihood, check_finite, check_levels, is_checked

__all__ = ["LogisticMixture", "LogisticMixtureLikelihood"]


class LogisticMixture(ImageDistribution):
    r"""Pixels with integer values in 0..L-1, each from a mixture of K logistics cut into bins.

    Salimans et al. (2017): all channels of a pixel share the component; with three channels green follows red and blue
    follows both, by coefficients that are the tanh of parameters. See :func:`fastvae.ops.logistic_mixture_log_prob`.

    Args:
        params: (..., P, H, W): K logits, then for each channel K means, K log-scales and, with three channels, K
            coefficients. P is 3 K for one channel and 10 K for three. Means and scales are those of levels scaled to
            [-1, 1].
        num_components: K.
        num_levels: L.

    Raises:
        ValueError: if P is neither 3 K nor 10 K, or a number is too small.

    Example:
        >>> images = LogisticMixture(torch.zeros(4, 2 * 10, 8, 8), num_components=2).sample()
        >>> images.shape, bool(((images >= 0) & (images <= 255)).all())
        (torch.Size([4, 3, 8, 8]), True)
    """

    def __init__(self, params: Tensor, num_components: int, num_levels: int = 256) -> None:
        _check_numbers(num_components, num_levels)
        if params.ndim < 3 or params.shape[-3] not in (3 * num_components, 10 * num_components):
            raise ValueError(
                f"params must have shape (..., P, H, W) with P = {3 * num_components} for one channel or "
                f"{10 * num_components} for three, got {tuple(params.shape)}"
            )
        channels = 1 if params.shape[-3] == 3 * num_components else 3
        super().__init__(params.shape[:-3] + torch.Size((channels, *params.shape[-2:])))
        self.params, self.num_components, self.num_levels = params, num_components, num_levels

    @property
    def mean(self) -> Tensor:
        """Exact for one channel. Of three the later ones follow the means of the earlier given the component: what is
        left out is that rounding and the cut at the first and last level are not linear."""
        logits, means, log_scales, coefficients = self._parts()
        top = self.num_levels - 1
        edges = (2.0 * torch.arange(top, dtype=means.dtype, device=means.device) + 1.0 - top) / top  # between levels
        found: list[Tensor] = []
        for channel in range(self.event_shape[0]):
            centre, scale = _centre(means, coefficients, found, top), _scale(log_scales, channel)
            # the mean is the sum over l of P(x > l), one after the other: memory does not grow with L
            level = torch.zeros_like(centre)
            for edge in edges:
                level += ((centre - edge) / scale).sigmoid()
            found.append(level)
        weights = logits.softmax(-3)
        return torch.stack([(weights * level).sum(-3) for level in found], -3).to(self.params.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """``x`` (..., C, H, W) with integer values in 0..L-1, any dtype -> (...) nats."""
        self._check_shape(x)
        if not is_checked():
            check_levels(LogisticMixtureLikelihood.name, x, self.num_levels)
        return self._log_prob(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        return ops.logistic_mixture_log_prob(x, self.params, self.num_levels)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Levels, as floating point: what the networks take. A component is drawn, then channel after channel."""
        check_finite("params", self.params)
        with torch.no_grad():
            *lead, channels, height, width = self._extended_shape(torch.Size(sample_shape))
            logits, *maps = self._parts()
            top = self.num_levels - 1
            weights = logits.softmax(-3).movedim(-3, -1).expand(*lead, height, width, -1)
            component = torch.multinomial(weights.reshape(-1, self.num_components), 1).view(*lead, 1, 1, height, width)
            means, log_scales, coefficients = (_pick(values, component) for values in maps)
            found: list[Tensor] = []
            for channel in range(channels):
                uniform = torch.rand_like(means.select(-4, channel)).clamp_(min=torch.finfo(means.dtype).tiny)
                noise = uniform.log() - torch.log1p(-uniform)
                centre = _centre(means, coefficients, found, top)
                value = centre + noise * _scale(log_scales, channel)
                found.append(((value + 1.0) * (0.5 * top)).round().clamp(0, top))
            return torch.cat(found, -3).to(self.params.dtype)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (..., K, H, W); means, log-scales and coefficients (..., C, K, H, W); at least float32."""
        params = self.params.float() if self.params.dtype in (torch.float16, torch.bfloat16) else self.params
        logits, means, log_scales, coefficients = ops.logistic_mixture_parts(params, self.event_shape[0])
        return logits, means, log_scales, means if coefficients is None else coefficients


class LogisticMixtureLikelihood(Likelihood):
    """Images with ``num_levels`` levels, one channel or three: 3 K or 10 K parameters per pixel, however many levels.

    Args:
        num_components: K.
        num_levels: L, 256 for 8 bits.

    Raises:
        ValueError: if a number is too small.
    """

    name = "logistic_mixture"

    def __init__(self, num_components: int = 10, num_levels: int = 256) -> None:
        super().__init__()
        _check_numbers(num_components, num_levels)
        self.num_components = num_components
        self.num_levels: int = num_levels
        self.num_params = 3 * num_components  # of a grey value; the channels of a colour share some

    def num_maps(self, channels: int) -> int:
        if channels not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels for {self.name}, got {channels}")
        return self.num_components * (3 if channels == 1 else 10)

    def forward(self, params: Tensor) -> LogisticMixture:
        return LogisticMixture(params, self.num_components, self.num_levels)

    def check(self, x: Tensor) -> None:
        check_levels(self.name, x, self.num_levels)

    def marginal_params(self, x: Tensor) -> Tensor:
        """Each component has the mean and variance of a K-th of the data, ordered by brightness."""
        scaled, size = self.scale(x), len(x)
        order = scaled.mean(1, keepdim=True).argsort(0)
        scaled = scaled.gather(0, order.expand_as(scaled))
        starts = [min(k * size // self.num_components, size - 1) for k in range(self.num_components)]
        groups = [scaled[a : max(a + 1, b)] for a, b in pairwise([*starts, size])]
        means = torch.stack([group.mean(0) for group in groups], 1)  # (C, K, H, W)
        # a logistic has the variance s^2 pi^2 / 3; an eighth of a bin smooths values that never change
        deviations = torch.stack([group.std(0, correction=0) for group in groups], 1)
        log_scales = (deviations * (math.sqrt(3.0) / math.pi)).clamp(min=0.25 / (self.num_levels - 1)).log()
        values = [means, log_scales] if len(means) == 1 else [means, log_scales, torch.zeros_like(means)]
        return torch.cat((torch.zeros_like(means[0]), torch.stack(values, 1).flatten(0, 2)))

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "num_components": self.num_components, "num_levels": self.num_levels}

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}, num_levels={self.num_levels}"


def _check_numbers(num_components: int, num_levels: int) -> None:
    if num_components < 1:
        raise ValueError(f"num_components must be at least 1, got {num_components}")
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}")


def _pick(values: Tensor, component: Tensor) -> Tensor:
    """(..., C, K, H, W) at ``component`` (..., 1, 1, H, W) -> (..., C, 1, H, W)."""
    lead = component.shape[:-4]
    values = values.expand(*lead, *values.shape[-4:])
    return values.gather(-3, component.expand(*lead, values.shape[-4], -1, -1, -1))


def _centre(means: Tensor, coefficients: Tensor, before: list[Tensor], top: int) -> Tensor:
    """The means (..., K, H, W) of the channel that follows the levels ``before`` (..., K, H, W) of the earlier ones."""
    channel = len(before)
    centre = means.select(-4, channel)
    for index, level in enumerate(before, start=channel * (channel - 1) // 2):
        centre = centre + coefficients.select(-4, index).tanh() * (2.0 * level - top) / top
    return centre


def _scale(log_scales: Tensor, channel: int) -> Tensor:
    return log_scales.select(-4, channel).clamp(-60.0, 60.0).exp()  # as the probabilities take them
