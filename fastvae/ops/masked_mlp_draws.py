"""How values of an autoregressive network follow from noise and parameters, and the derivatives of that."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastvae.reference.masked_mlp import DRAWS

__all__ = ["Callback", "Function", "Named", "check_draw"]

# noise (..., n) and parameters (..., n, P) -> values (..., n)
Function = Callable[[Tensor, Tensor], Tensor]


def check_draw(draw: Any, num_params: int) -> None:
    """``draw`` must be a name that takes ``num_params`` parameters, or a callable."""
    if callable(draw):
        return
    if draw not in DRAWS:
        raise ValueError(f"draw must be one of {sorted(DRAWS)} or a callable g(noise, params), got {draw!r}")
    expected = DRAWS[draw][0]
    if num_params != expected if expected is not None else num_params < 2:
        wanted = expected if expected is not None else "at least 2"
        raise ValueError(f"draw {draw!r} takes {wanted} parameter(s) for each dimension, but there are {num_params}")


class Named:
    """A draw of the definitions, written into given memory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def into(self, noise: Tensor, params: Tensor, out: Tensor) -> None:
        if self.name == "affine":
            shift, log_scale = params.unbind()
            torch.addcmul(shift, log_scale.exp(), noise, out=out)
        else:
            out.copy_(DRAWS[self.name][1](noise, params))

    def partials(self, noise: Tensor, params: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.name == "affine":
            scale = params[1].exp()
            return scale, torch.stack([torch.ones_like(scale), scale * noise])
        if self.name == "affine_inverse":
            scale = (-params[1]).exp()
            return scale, torch.stack([-scale, (params[0] - noise) * scale])
        return None  # discrete values do not move with their parameters


class Callback:
    """The user's g(noise, params), one value at a time: differentiable where PyTorch differentiates it."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def values(self, noise: Tensor, params: Tensor) -> Tensor:
        """Noise (n, B) and parameters (P, n, B) -> values (n, B)."""
        return self.function(noise, params.movedim(0, -1))

    def into(self, noise: Tensor, params: Tensor, out: Tensor) -> None:
        out.copy_(self.values(noise, params))

    def partials(self, noise: Tensor, params: Tensor) -> tuple[Tensor, Tensor] | None:
        with torch.enable_grad():
            noise, params = noise.detach().requires_grad_(), params.detach().requires_grad_()
            values = self.values(noise, params)
            if not values.requires_grad:
                return None
            # a value depends on its own noise and parameters only, so the gradient of the sum has them all
            by_noise, by_params = torch.autograd.grad(values.sum(), (noise, params), allow_unused=True)
        zeros = (torch.zeros_like(t) if g is None else g for t, g in ((noise, by_noise), (params, by_params)))
        return tuple(zeros)  # type: ignore[return-value]
