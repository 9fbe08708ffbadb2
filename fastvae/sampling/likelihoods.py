"""Which draw a likelihood is, and how a call may change it: temperature, the most probable levels, the mode."""

import math
from typing import Any

from .draw import Bernoulli, Callback, Categorical, Draw, Gaussian
from .draw_mixture import LogisticMixture
from .inputs import require_integer

__all__ = ["adjusted", "as_draw"]


def as_draw(likelihood: Any, num_maps: int, channels: int) -> Draw:
    """The draw for a likelihood and the number of parameters per pixel that the model gives.

    Args:
        likelihood: "bernoulli", "categorical", "gaussian", an object with such a ``name`` (and ``num_levels`` or
            ``log_scale``) or with "logistic_mixture" (and ``num_components`` and ``num_levels``), or a callable
            g(u, params).
        num_maps: C * P, or those of a pixel together for "logistic_mixture".
        channels: C.

    Raises:
        TypeError, ValueError: if the likelihood is unknown or takes another number of parameters.
    """
    name = likelihood if isinstance(likelihood, str) else getattr(likelihood, "name", None)
    if name == "logistic_mixture" and not isinstance(likelihood, str):
        return _logistic_mixture(likelihood, num_maps, channels)
    num_params, rest = divmod(num_maps, channels)
    if rest or not num_params:
        raise ValueError(f"the model must give a multiple of {channels} parameters per pixel, got {num_maps}")
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


def _logistic_mixture(likelihood: Any, num_maps: int, channels: int) -> Draw:
    if channels not in (1, 3):
        raise ValueError(f"likelihood 'logistic_mixture' takes images of 1 or 3 channels, got {channels}")
    expected = likelihood.num_components * (3 if channels == 1 else 10)
    if num_maps != expected:
        raise ValueError(
            f"likelihood 'logistic_mixture' takes {expected} parameter(s) per pixel of {channels} channel(s), but the "
            f"model gives {num_maps}; choose another number of components or output channels"
        )
    return LogisticMixture(num_maps, likelihood.num_levels, channels)


def adjusted(draw: Draw, temperature: float = 1.0, top_k: int | None = None, greedy: bool = False) -> Draw:
    """The draw of a call.

    Raises:
        TypeError, ValueError: for arguments that make no sense together or for this likelihood.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature must be a number, got {temperature!r}")
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}; greedy=True is the limit of 0")
    if not isinstance(greedy, bool):
        raise TypeError(f"greedy must be a bool, got {greedy!r}")
    if greedy and (temperature != 1.0 or top_k is not None):
        raise ValueError("greedy takes the most probable value: give no temperature and no top_k with it")
    if (greedy or temperature != 1.0) and isinstance(draw, Callback):
        what = "greedy" if greedy else "temperature"
        raise ValueError(f"{what} is not defined for a likelihood that is a callable: apply it inside g(u, params)")
    if top_k is not None:
        if not isinstance(draw, Categorical):
            raise ValueError(f"top_k is for the likelihood 'categorical', this model's is {draw.name!r}")
        require_integer("top_k", top_k, 1, draw.num_params + 1)
        draw = draw.among(top_k)
    if greedy:
        return draw.at(0.0)
    return draw if temperature == 1.0 else draw.at(float(temperature))
