"""Draw: values from uniform numbers and the parameters of their distribution, x = g(u, f(x))."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae import ops

__all__ = ["Bernoulli", "Callback", "Categorical", "Draw", "Gaussian", "LogisticMixture", "as_draw"]

# Shapes: noise and values (..., C), parameters (..., C, P), any leading dimensions.


def _wide(params: Tensor) -> Tensor:
    """Half precision is too coarse for probabilities."""
    return params.float() if params.dtype in (torch.float16, torch.bfloat16) else params


class Draw:
    """How a value follows from a uniform number and P parameters: monotone in the number."""

    name: str
    num_params: int

    def prepare(self, uniform: Tensor) -> Tensor:
        """What can be computed from the uniform numbers before the first step."""
        return uniform

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        """Prepared noise (..., C), parameters (..., C, P) -> values (..., C)."""
        raise NotImplementedError(f"{type(self).__name__} does not define how to draw")

    def into(self, noise: Tensor, params: Tensor, out: Tensor) -> Callable[[], Any]:
        """A function without arguments that draws into ``out``."""
        return lambda: out.copy_(self.sample(noise, params))

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor | None:
        """Nats of each value, (..., C); None if it is not known."""
        return None


class Bernoulli(Draw):
    """One logit: x = 1 where u < sigmoid(logit), compared as logit(u) < logit."""

    name, num_params = "bernoulli", 1

    def prepare(self, uniform: Tensor) -> Tensor:
        return uniform.log() - torch.log1p(-uniform)

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        return (noise < params[..., 0]).to(params.dtype)

    def into(self, noise: Tensor, params: Tensor, out: Tensor) -> Callable[[], Any]:
        return partial(torch.lt, noise, params[..., 0], out=out)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        return -F.softplus((1.0 - 2.0 * x) * _wide(params)[..., 0])


class Categorical(Draw):
    """One logit per level: x is the number of levels whose cumulated probability is at most u."""

    name = "categorical"

    def __init__(self, num_levels: int) -> None:
        self.num_params = num_levels

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        cumulated = (
            _wide(params).softmax(-1).cumsum(-1)[..., :-1]
        )  # the last level needs no bound: it is 1 up to rounding
        return (cumulated <= noise[..., None]).sum(-1).to(cumulated.dtype)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        return _wide(params).log_softmax(-1).gather(-1, x.long()[..., None])[..., 0]


class Gaussian(Draw):
    """Mean and log-scale, or the mean alone with one log-scale for all values: x = mean + exp(log_scale) Phi^-1(u)."""

    name = "gaussian"

    def __init__(self, scale_owner: Any = None) -> None:
        self.num_params = 2 if scale_owner is None else 1
        self.scale_owner = scale_owner  # asked at every draw: its log-scale may be trained or replaced

    def prepare(self, uniform: Tensor) -> Tensor:
        return torch.special.ndtri(uniform)

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        params = _wide(params)
        return params[..., 0] + self._log_scale(params).exp() * noise

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        params = _wide(params)
        log_scale = self._log_scale(params)
        noise = (x - params[..., 0]) * (-log_scale).exp()
        return -0.5 * noise.square() - log_scale - 0.5 * math.log(2.0 * math.pi)

    def _log_scale(self, params: Tensor) -> Tensor:
        if self.scale_owner is None:
            return params[..., 1]
        return self.scale_owner.log_scale.detach().to(params)


class LogisticMixture(Draw):
    """K logits, means and log-scales of an image with one channel: x is the number of levels whose cumulated
    probability is at most u."""

    name = "logistic_mixture"

    def __init__(self, num_params: int, num_levels: int) -> None:
        self.num_params, self.num_levels = num_params, num_levels

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        logits, means, log_scales = _wide(params).unsqueeze(-2).chunk(3, -1)  # (..., C, 1, K) each
        top = self.num_levels - 1
        edges = (2.0 * torch.arange(top, dtype=means.dtype, device=means.device) + 1.0 - top) / top  # between levels
        below = ((edges[:, None] - means) * (-log_scales.clamp(-60.0, 60.0)).exp()).sigmoid()  # (..., C, L - 1, K)
        cumulated = (below * logits.softmax(-1)).sum(-1)
        return (cumulated <= noise[..., None]).sum(-1).to(cumulated.dtype)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        pixels = params.reshape(-1, self.num_params, 1, 1)
        return ops.logistic_mixture_log_prob(x.reshape(-1, 1, 1, 1), pixels, self.num_levels).view(x.shape)


class Callback(Draw):
    """The user's g(u, params); log-probabilities are not known."""

    name = "callable"

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], num_params: int) -> None:
        self._function, self.num_params = function, num_params

    def sample(self, noise: Tensor, params: Tensor) -> Tensor:
        return self._function(noise, params)


def as_draw(likelihood: Any, num_params: int) -> Draw:
    """The draw for a likelihood and the number of parameters per value that the model gives.

    Args:
        likelihood: "bernoulli", "categorical", "gaussian", an object with such a ``name`` (and ``num_levels`` or
            ``log_scale``) or with "logistic_mixture" (and ``num_params`` and ``num_levels``), or a callable
            g(u, params).
        num_params: P.

    Raises:
        TypeError, ValueError: if the likelihood is unknown or takes another number of parameters.
    """
    name = likelihood if isinstance(likelihood, str) else getattr(likelihood, "name", None)
    expected: int | None
    draw: Draw
    if name == "bernoulli":
        draw, expected = Bernoulli(), 1
    elif name == "categorical":
        expected = getattr(likelihood, "num_levels", None)
        draw = Categorical(num_params)
        if num_params < 2:
            raise ValueError("likelihood 'categorical' needs at least two logits per value, got 1 parameter per value")
    elif name == "gaussian":
        draw = Gaussian(likelihood if hasattr(likelihood, "log_scale") else None)
        expected = draw.num_params
    elif name == "logistic_mixture" and not isinstance(likelihood, str):
        expected = likelihood.num_params
        draw = LogisticMixture(num_params, likelihood.num_levels)
    elif name is None and callable(likelihood):
        draw, expected = Callback(likelihood, num_params), None
    else:
        raise ValueError(
            "likelihood must be 'bernoulli', 'categorical', 'gaussian', an object with such a name or with "
            f"'logistic_mixture', or a callable g(u, params), got {likelihood!r}"
        )
    if expected is not None and num_params != expected:
        raise ValueError(
            f"likelihood {name!r} takes {expected} parameter(s) per value, but the model gives {num_params}; "
            "choose another likelihood or number of output channels"
        )
    return draw
