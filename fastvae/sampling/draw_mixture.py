"""Draws of a mixture of discretised logistics: grey levels, or the three channels of a colour one after the other."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae import ops

from .draw import Draw, scaled_logsumexp, wide

__all__ = ["LogisticMixture"]

_INF = math.inf
_LARGEST = 60.0  # beyond it a log-scale changes no digit of a probability, but its inverse would overflow

# Shapes: K components; weights, centres and scales (..., K), values and noise (..., C), parameters (..., 1, P).


class LogisticMixture(Draw):
    r"""K logits and, for each channel, means, log-scales and (three channels) coefficients of the earlier channels.

    x is the number of levels whose cumulated probability is at most u. The channels of a pixel are drawn one after the
    other, each with the weights of the components given the channels before, so no component is ever drawn. A
    temperature T divides the logits and multiplies the scales; at T = 0 x is the level at the centre of the heaviest
    component. Weights are kept as T log w, which has a limit at 0.
    """

    name = "logistic_mixture"
    joint = True
    num_levels: int

    def __init__(self, num_params: int, num_levels: int, channels: int = 1) -> None:
        self.num_params, self.num_levels, self._channels = num_params, num_levels, channels

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        return self._drawn(noise, params, None, None)

    def complete(self, noise: Tensor, params: Tensor, known: Tensor, values: Tensor) -> Tensor:
        return torch.where(known, values, self._drawn(noise, params, known, values).to(values.dtype))

    def again(self, noise: Tensor, params: Tensor, x: Tensor) -> Tensor:
        return self._drawn(noise, params, torch.ones_like(x, dtype=torch.bool), x)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        if self._channels == 1:
            pixels = params.reshape(-1, self.num_params, 1, 1)
            return ops.logistic_mixture_log_prob(x.reshape(-1, 1, 1, 1), pixels, self.num_levels).view(x.shape)
        model, nats = self.at(1.0), []
        x = x.to(wide(params).dtype)
        logits, means, log_scales, coefficients = self._parts(params)
        log_weights = logits.log_softmax(-1)
        for channel in range(self._channels):
            centres = self._centres(means, coefficients, x[..., :channel])
            joint = log_weights + model._mass(x[..., channel], centres, log_scales[..., channel, :])
            nats.append(joint.logsumexp(-1))
            log_weights = joint - nats[-1][..., None]
        return torch.stack(nats, -1)

    def interval(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        weights, means, log_scales, coefficients = self._parts(params)
        x = x.to(params.dtype)
        lows, highs = [], []
        for channel in range(self._channels):
            level, scales = x[..., channel], log_scales[..., channel, :]
            centres = self._centres(means, coefficients, x[..., :channel])
            low, high = (self._odds(weights, self._edge(level - shift), centres, scales) for shift in (1.0, 0.0))
            lows.append(torch.where(level <= 0, -_INF, low))
            highs.append(torch.where(level >= self.num_levels - 1, _INF, high))
            weights = weights + self._mass(level, centres, scales)
        return torch.stack(lows, -1), torch.stack(highs, -1)

    def _drawn(self, noise: Tensor, params: Tensor, known: Tensor | None, values: Tensor | None) -> Tensor:
        """Values (..., C), later channels given ``values`` where those are known and what was drawn elsewhere."""
        weights, means, log_scales, coefficients = self._parts(params)
        drawn: list[Tensor] = []
        used: list[Tensor] = []
        for channel in range(self._channels):
            scales = log_scales[..., channel, :]
            centres = self._centres(means, coefficients, torch.stack(used, -1) if used else None)
            level = self._level(noise[..., channel], weights, centres, scales)
            drawn.append(level)
            if channel + 1 == self._channels:
                break
            if known is not None and values is not None:
                level = torch.where(known[..., channel], values[..., channel].to(level.dtype), level)
            used.append(level)
            weights = weights + self._mass(level, centres, scales)
        return torch.stack(drawn, -1)

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Logits (..., K); means, log-scales and coefficients (..., C, K), the last of them between -1 and 1."""
        maps = wide(params)[..., 0, :, None, None]
        logits, means, log_scales, coefficients = ops.logistic_mixture_parts(maps, self._channels)
        logits, means, log_scales = (part[..., 0, 0] for part in (logits, means, log_scales))
        return logits, means, log_scales, None if coefficients is None else coefficients[..., 0, 0].tanh()

    def _centres(self, means: Tensor, coefficients: Tensor | None, before: Tensor | None) -> Tensor:
        """(..., K) of the channel that follows the levels ``before`` (..., c) of the earlier ones."""
        channel = 0 if before is None else before.shape[-1]
        centres = means[..., channel, :]
        if coefficients is None or before is None or not channel:
            return centres
        first = channel * (channel - 1) // 2  # the order of the coefficients: green on red; blue on red, blue on green
        scaled = (2.0 * before - (self.num_levels - 1)) / (self.num_levels - 1)
        return centres + (coefficients[..., first : first + channel, :] * scaled[..., None]).sum(-2)

    def _edge(self, level: Tensor) -> Tensor:
        """Where ``level`` ends and the next begins, in [-1, 1]."""
        top = self.num_levels - 1
        return (2.0 * level + 1.0 - top) / top

    def _level(self, noise: Tensor, weights: Tensor, centres: Tensor, log_scales: Tensor) -> Tensor:
        """(...): by bisection, as all cumulated probabilities of 256 levels are 30 times the work."""
        top = self.num_levels - 1
        if self.temperature == 0:
            centre = centres.gather(-1, weights.argmax(-1, keepdim=True))[..., 0]
            return ((centre + 1.0) * (0.5 * top)).round().clamp(0, top)
        mixture = (weights / self.temperature).softmax(-1)
        inverse = self._inverse(log_scales)
        low = torch.zeros_like(centres[..., 0])
        high = torch.full_like(low, top)
        for _ in range(top.bit_length()):
            middle = ((low + high) / 2.0).floor()
            below = (((self._edge(middle)[..., None] - centres) * inverse).sigmoid() * mixture).sum(-1)
            above = (below <= noise) & (low < high)
            low, high = torch.where(above, middle + 1.0, low), torch.where(above, high, middle)
        return low

    def _odds(self, weights: Tensor, edge: Tensor, centres: Tensor, log_scales: Tensor) -> Tensor:
        """T times the log-odds of the cdf at ``edge`` (...)."""
        distance = (edge[..., None] - centres) * (-log_scales.clamp(-_LARGEST, _LARGEST)).exp()
        below, above = (weights + self._log_sigmoid(sign * distance) for sign in (1.0, -1.0))
        return scaled_logsumexp(below, self.temperature) - scaled_logsumexp(above, self.temperature)

    def _log_sigmoid(self, distance: Tensor) -> Tensor:
        """T log sigmoid(distance / T)."""
        if self.temperature == 0:
            return distance.clamp(max=0.0)
        return self.temperature * F.logsigmoid(distance / self.temperature)

    def _mass(self, level: Tensor, centres: Tensor, log_scales: Tensor) -> Tensor:
        """T times the log-probability of ``level`` (...) under each component, (..., K)."""
        if self.temperature == 0:
            low, high = self._edge(level - 1.0), self._edge(level)
            low, high = torch.where(level <= 0, -_INF, low), torch.where(level >= self.num_levels - 1, _INF, high)
            outside = (low[..., None] - centres).clamp(min=0) + (centres - high[..., None]).clamp(min=0)
            return -outside * (-log_scales.clamp(-_LARGEST, _LARGEST)).exp()
        # one component each, so that the probability of a level has one definition
        log_scales = log_scales + math.log(self.temperature)
        single = torch.stack([torch.zeros_like(centres), centres, log_scales.expand_as(centres)], -1)
        x = level[..., None].expand(centres.shape).reshape(-1, 1, 1, 1)
        nats = ops.logistic_mixture_log_prob(x, single.reshape(-1, 3, 1, 1), self.num_levels)
        return self.temperature * nats.view(centres.shape)

    def _inverse(self, log_scales: Tensor) -> Tensor:
        return (-(log_scales + math.log(self.temperature)).clamp(-_LARGEST, _LARGEST)).exp()
