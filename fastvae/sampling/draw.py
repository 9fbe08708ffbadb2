"""Draw: values from uniform numbers and the parameters of their distribution, x = g(u, f(x))."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Bernoulli", "Callback", "Categorical", "Draw", "Gaussian", "scaled_logsumexp", "wide"]

# Shapes: noise and values (..., C), parameters (..., C, P), any leading dimensions; parameters that the channels of a
# pixel share ("joint") are (..., 1, P).
_INF = math.inf


def wide(params: Tensor) -> Tensor:
    """Half precision is too coarse for probabilities."""
    return params.float() if params.dtype in (torch.float16, torch.bfloat16) else params


class Draw:
    """How a value follows from a uniform number and P parameters: monotone in the number.

    Attributes:
        name: of the likelihood.
        num_params: P, of each value or, if ``joint``, of each pixel.
        joint: whether the channels of a pixel share their parameters and are drawn one after the other.
        num_levels: values are integers 0..num_levels-1; None: any number.
        temperature: 0 for the most probable value whatever u is, the limit of low temperatures.
    """

    name: str
    num_params: int
    joint: bool = False
    num_levels: int | None = None
    temperature: float = 1.0

    def at(self, temperature: float) -> Self:
        """The same likelihood, drawn from at another temperature."""
        changed = copy.copy(self)
        changed.temperature = temperature
        return changed

    def groups(self, channels: int) -> int:
        """How many sets of parameters a pixel has."""
        return 1 if self.joint else channels

    def prepare(self, uniform: Tensor) -> Tensor:
        """What can be computed from the uniform numbers before the first step."""
        return uniform

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        """Prepared noise (..., C), parameters (..., C, P) -> values (..., C)."""
        raise NotImplementedError(f"{type(self).__name__} does not define how to draw")

    def complete(self, noise: Tensor, params: Tensor, known: Tensor, values: Tensor) -> Tensor:
        """Like ``sample``, but ``values`` (..., C) where ``known`` (..., C)."""
        return torch.where(known, values, self.sample(noise, params).to(values.dtype))

    def again(self, noise: Tensor, params: Tensor, x: Tensor) -> Tensor:
        """Each value drawn given the earlier channels of ``x`` (..., C), if they take part."""
        return self.sample(noise, params)

    def into(self, noise: Tensor, params: Tensor, out: Tensor) -> Callable[[], Any]:
        """A function without arguments that draws into ``out``."""
        return lambda: out.copy_(self.sample(noise, params))

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor | None:
        """Nats of each value under the model, whatever the temperature, (..., C); None if they are not known."""
        return None

    def interval(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor] | None:
        """The values of u that give ``x`` (..., C): the ends as temperature * log-odds; None if x is continuous.

        Rounding of the parameters moves these by as much at any temperature.
        """
        return None

    def slack(self, uniform: Tensor, x: Tensor, params: Tensor) -> Tensor | None:
        """How far u is inside the interval that gives ``x``, or outside (negative): (..., C); None if continuous.

        The smaller of two distances: between u and the cdf, or by which the parameters would have to move.
        """
        ends = self.interval(x, params.double())
        if ends is None:
            return None
        low, high = ends
        u = uniform.double()
        place = self.temperature * torch.logit(u)
        by_params = torch.minimum(place - low, high - place)
        if self.temperature == 0:
            return by_params
        # an end at 0 or 1 is none
        above = torch.where(low == -_INF, _INF, u - (low / self.temperature).sigmoid())
        below = torch.where(high == _INF, _INF, (high / self.temperature).sigmoid() - u)
        by_noise = torch.minimum(above, below)
        return torch.where(by_params.abs() < by_noise.abs(), by_params, by_noise)


class Bernoulli(Draw):
    """One logit: x = 1 where u < sigmoid(logit / T), compared as T logit(u) < logit."""

    name, num_params, num_levels = "bernoulli", 1, 2

    def prepare(self, uniform: Tensor) -> Tensor:
        noise = uniform.log() - torch.log1p(-uniform)
        return noise if self.temperature == 1.0 else noise * self.temperature

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        return (noise < params[..., 0]).to(params.dtype)

    def into(self, noise: Tensor, params: Tensor, out: Tensor) -> Callable[[], Any]:
        return partial(torch.lt, noise, params[..., 0], out=out)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        return -F.softplus((1.0 - 2.0 * x) * wide(params)[..., 0])

    def interval(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        logits = params[..., 0]
        return torch.where(x > 0, -_INF, logits), torch.where(x > 0, logits, _INF)


class Categorical(Draw):
    """One logit per level, divided by the temperature: x is the number of levels whose cumulated probability is at
    most u.

    Attributes:
        top_k: draw from so many levels, those with the largest logits and any that equal the last of these.
    """

    name = "categorical"
    top_k: int | None = None

    def __init__(self, num_levels: int) -> None:
        self.num_params = self.num_levels = num_levels

    def among(self, top_k: int) -> Self:
        """The same likelihood, drawn from its most probable levels."""
        changed = copy.copy(self)
        changed.top_k = top_k
        return changed

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        logits = self._kept(wide(params))
        if self.temperature == 0:
            return logits.argmax(-1).to(logits.dtype)
        cumulated = (logits if self.temperature == 1.0 else logits / self.temperature).softmax(-1).cumsum(-1)
        # as a part of the last sum, which rounding can leave below u: no level of probability 0 is drawn
        return (cumulated[..., :-1] <= noise[..., None] * cumulated[..., -1:]).sum(-1).to(cumulated.dtype)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        return wide(params).log_softmax(-1).gather(-1, x.long()[..., None])[..., 0]

    def interval(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._kept(params)
        upto = _scaled_cumulation(logits, self.temperature)  # of levels 0..l
        since = _scaled_cumulation(logits.flip(-1), self.temperature).flip(-1)  # of levels l..L-1
        odds = F.pad(upto[..., :-1] - since[..., 1:], (1, 1), value=_INF)
        odds[..., 0] = -_INF
        level = x.long()[..., None]
        return odds.gather(-1, level)[..., 0], odds.gather(-1, level + 1)[..., 0]

    def slack(self, uniform: Tensor, x: Tensor, params: Tensor) -> Tensor | None:
        slack = super().slack(uniform, x, params)
        if self.top_k is None or self.top_k == self.num_levels or slack is None:
            return slack
        # other levels are kept if the last logit inside and the first one outside change places
        last, first = params.double().topk(self.top_k + 1).values[..., -2:].unbind(-1)
        candidate = params.double().gather(-1, x.long()[..., None])[..., 0] >= first
        return torch.where(candidate & (slack < 0), torch.maximum(slack, first - last), slack)

    def _kept(self, logits: Tensor) -> Tensor:
        if self.top_k is None:
            return logits
        return logits.masked_fill(logits < logits.topk(self.top_k).values[..., -1:], -_INF)


class Gaussian(Draw):
    """Mean and log-scale, or the mean alone with one log-scale for all: x = mean + T exp(log_scale) Phi^-1(u)."""

    name = "gaussian"

    def __init__(self, scale_owner: Any = None) -> None:
        self.num_params = 2 if scale_owner is None else 1
        self.scale_owner = scale_owner  # asked at every draw: its log-scale may be trained or replaced

    def prepare(self, uniform: Tensor) -> Tensor:
        noise = torch.special.ndtri(uniform)
        return noise if self.temperature == 1.0 else noise * self.temperature

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        params = wide(params)
        return params[..., 0] + self._log_scale(params).exp() * noise

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        params = wide(params)
        log_scale = self._log_scale(params)
        noise = (x - params[..., 0]) * (-log_scale).exp()
        return -0.5 * noise.square() - log_scale - 0.5 * math.log(2.0 * math.pi)

    def _log_scale(self, params: Tensor) -> Tensor:
        if self.scale_owner is None:
            return params[..., 1]
        return self.scale_owner.log_scale.detach().to(params)


class Callback(Draw):
    """The user's g(u, params); log-probabilities are not known."""

    name = "callable"

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], num_params: int) -> None:
        self._function, self.num_params = function, num_params

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        return self._function(noise, params)


def scaled_logsumexp(values: Tensor, temperature: float) -> Tensor:
    """T log sum exp(values / T) over the last axis; the maximum for T = 0."""
    return values.amax(-1) if temperature == 0 else temperature * (values / temperature).logsumexp(-1)


def _scaled_cumulation(values: Tensor, temperature: float) -> Tensor:
    """T log of the cumulated sum of exp(values / T) along the last axis."""
    if temperature == 0:
        return values.cummax(-1).values
    return temperature * (values / temperature).logcumsumexp(-1)
