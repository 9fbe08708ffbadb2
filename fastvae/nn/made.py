"""``MADE``: an autoregressive network of masked linear layers, sampled for the price of one pass."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastvae.ops.masked_mlp import sample_masked_mlp, solve_masked_mlp
from fastvae.ops.masked_mlp_plan import plan_masked_mlp

from .masked_linear import MaskedLinear

__all__ = ["MADE"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class MADE(nn.Module):
    r"""Parameters of every dimension from the ones before it, :math:`f_i(x_{<i}, c)`, all by one parallel pass.

    Hidden units have degrees: a unit of degree d sees what the first d dimensions in the order give, and dimension
    number r sees units of degrees up to r. A condition enters every layer by an unmasked path, so it reaches the first
    dimension too. Germain et al.: "MADE: masked autoencoder for distribution estimation" (2015), equations 12 to 14.

    The other direction, values that fit their own parameters, is :meth:`solve`: sampling a MADE, inverting a masked
    autoregressive flow, drawing from an autoregressive Gaussian.

    Args:
        features: D.
        hidden_features: units of every hidden layer; may be empty.
        num_params: P, parameters of each dimension: 1 logit, 2 for mean and log-scale, L logits of levels.
        order: a permutation of 0..D-1, the dimensions in the order in which they are generated; by default as they
            are.
        context_features: C, the size of the condition; 0 for none.
        activation: "relu", "elu", "gelu", "leaky_relu", "sigmoid", "silu", "softplus" or "tanh".
        residual: whether the second and later hidden layers add their input; all must have one size.
        seed: an integer to draw the degrees at random, as the paper does; None for degrees that take turns.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        x (..., D) and context (..., C), whose leading dimensions broadcast to those of x, to (..., D, P).

    Raises:
        TypeError, ValueError: for arguments that make no sense.

    Example:
        >>> made = MADE(5, [32, 32], num_params=2)
        >>> made(torch.randn(8, 5)).shape
        torch.Size([8, 5, 2])
        >>> noise = torch.randn(8, 5)
        >>> x, params = made.solve(noise)
        >>> bool(torch.allclose(x, params[..., 0] + params[..., 1].exp() * noise))
        True
        >>> bool(torch.allclose(made(x), params, atol=1e-6))
        True
    """

    order: Tensor

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int],
        *,
        num_params: int = 1,
        order: Sequence[int] | Tensor | None = None,
        context_features: int = 0,
        activation: str = "relu",
        residual: bool = False,
        seed: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        hidden = _check_sizes(features, hidden_features, num_params, context_features)
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}")
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"residual needs hidden layers of one size, got {hidden}")
        self.features, self.hidden_features, self.num_params = features, hidden, num_params
        self.context_features, self.activation, self.residual = context_features, activation, residual
        self.register_buffer("order", check_order(order, features), persistent=False)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        masks = self._masks(seed)
        sizes = [(mask.shape[1], mask.shape[0]) for mask in masks]
        layers = [MaskedLinear(*size, **made, mask=mask) for size, mask in zip(sizes, masks, strict=True)]
        self.layers = nn.ModuleList(layers)
        self.activate = _ACTIVATIONS[activation]()
        # the layers have biases already
        conditioned = sizes if context_features else []
        self.conditions = nn.ModuleList(nn.Linear(context_features, size, False, **made) for _, size in conditioned)
        self.plan = plan_masked_mlp(self._program(), masks, features, num_params)
        self.to(layers[-1].weight.device)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x must have shape (..., {self.features}), got {tuple(x.shape)}")
        self.check_context(context)
        h = x
        for number, layer in enumerate(self.layers):
            y = layer(h)
            if context is not None:
                y = y + self.conditions[number](context)
            if number + 1 == len(self.layers):
                h = y
            elif self.residual and number:
                h = h + self.activate(y)
            else:
                h = self.activate(y)
        return h.unflatten(-1, (self.features, self.num_params))

    def solve(
        self,
        noise: Tensor,
        context: Tensor | None = None,
        draw: str | Callable[[Tensor, Tensor], Tensor] = "affine",
    ) -> tuple[Tensor, Tensor]:
        """The values x with ``x = draw(noise, self(x, context))`` and their parameters, each unit computed once.

        Differentiable with respect to noise, context and the weights; see :func:`fastvae.ops.solve_masked_mlp`.

        Args:
            noise: (..., D), normal for "affine", uniform in (0, 1) for "bernoulli" and "categorical".
            context: (..., C), broadcast to the leading dimensions of noise.
            draw: "affine" (mean and log-scale), "affine_inverse", "bernoulli" (a logit), "categorical" (logits of
                levels), or g(noise, params) with params (..., n, P).

        Returns:
            x (..., D) and its parameters (..., D, P).
        """
        self.check_context(context)
        return solve_masked_mlp(noise, self.plan, *self._weights_and_terms(context), draw)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        context: Tensor | None = None,
        draw: str = "affine",
        first_id: int = 0,
    ) -> Tensor:
        """Draw values (B, D) from noise addressed by (seed, first_id + b, dimension).

        Row b is the same whatever batch it is drawn in, up to rounding.

        Args:
            num_samples: B.
            seed: an integer in [0, 2^64).
            context: (C,) or (B, C).
            draw: as for :meth:`solve`, by name.
            first_id: the number of the first row.
        """
        self.check_context(context)
        return sample_masked_mlp(
            num_samples, self.plan, *self._weights_and_terms(context), draw, seed=seed, first_id=first_id
        )

    def _weights_and_terms(self, context: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        layers = [cast(MaskedLinear, layer) for layer in self.layers]
        terms: list[Tensor] = [layer.bias for layer in layers]
        if context is not None:
            terms = [term + linear(context) for term, linear in zip(terms, self.conditions, strict=True)]
        return [layer.weight for layer in layers], terms

    def _apply(self, function: Any, recurse: bool = True) -> "MADE":
        super()._apply(function, recurse)
        self.plan = self.plan.to(self.order.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.features}, {self.hidden_features}, num_params={self.num_params}, residual={self.residual}"

    def check_context(self, context: Tensor | None) -> None:
        """Raise a ValueError for a context that the network does not take, or for none where it needs one."""
        if self.context_features and context is None:
            raise ValueError(f"context is missing: the network needs one of shape (..., {self.context_features})")
        if context is not None and (not self.context_features or context.shape[-1:] != (self.context_features,)):
            expected = f"have shape (..., {self.context_features})" if self.context_features else "be None"
            raise ValueError(f"context must {expected}, got shape {tuple(context.shape)}")

    def _masks(self, seed: int | None) -> list[Tensor]:
        """One for each layer, the last included."""
        # degree 0 sees the condition only, the last dimension is seen by none
        first, end = 0 if self.context_features or self.features == 1 else 1, self.features
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        known = torch.empty(self.features, dtype=torch.long)
        known[self.order.cpu()] = torch.arange(1, end + 1)  # dimension number r is seen from degree r + 1 on
        ranks = known - 1
        masks = []
        for number, size in enumerate(self.hidden_features):
            if generator is None:
                degrees = first + torch.arange(size) % (end - first)
            elif not (self.residual and number):  # a unit that adds its input has its degree
                low = min(int(known.min()), end - 1) if number else first
                degrees = torch.randint(low, end, (size,), generator=generator)
            masks.append(degrees[:, None] >= known)
            known = degrees
        masks.append((ranks[:, None] >= known).repeat_interleave(self.num_params, 0))
        return masks

    def _program(self) -> str:
        text: list[str] = []
        last = 0
        for number in range(len(self.hidden_features)):
            text += [f"linear {last} {number} {number}", f"{self.activation} {len(text) + 1}"]
            if self.residual and number:
                text.append(f"add {last} {len(text)}")
            last = len(text)
        number = len(self.hidden_features)
        return "; ".join([*text, f"linear {last} {number} {number}"])


def check_order(order: Sequence[int] | Tensor | None, features: int) -> Tensor:
    """A permutation of 0..D-1 as an int64 tensor."""
    if order is None:
        return torch.arange(features)
    found = torch.as_tensor(order).cpu()
    if found.is_floating_point() or found.ndim != 1 or not torch.equal(found.sort().values, torch.arange(features)):
        raise ValueError(f"order must be a permutation of 0..{features - 1}, got {order}")
    return found.long()


def _check_sizes(
    features: int, hidden_features: Sequence[int], num_params: int, context_features: int
) -> tuple[int, ...]:
    hidden = tuple(hidden_features)
    named = [("features", features, 1), ("num_params", num_params, 1), ("context_features", context_features, 0)]
    for name, value, least in [*named, *(("hidden_features", size, 1) for size in hidden)]:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be {'a positive' if least else 'zero or a positive'} integer, got {value!r}")
    return hidden
