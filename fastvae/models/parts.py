"""Small parts the models share: fully connected nets, the encoder, checks of sizes."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvae.distributions import Likelihood, Prior, Proposal, as_prior, as_proposal

__all__ = [
    "MLP",
    "Encoder",
    "check_event_shape",
    "check_hidden_sizes",
    "check_images",
    "check_latent",
    "check_positive",
    "config_of",
    "image_size",
    "make_encoder",
    "make_prior",
    "mlp",
]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


class MLP(nn.Sequential):
    """Layers in sequence, whose last one can be left to who calls."""

    def hidden(self, x: Tensor) -> Tensor:
        """What enters the last layer."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def mlp(sizes: Sequence[int], activation: str) -> MLP:
    """Linear layers of the given sizes with an activation between them, none at the end."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), _ACTIVATIONS[activation]()]
    return MLP(*layers[:-1])


class Encoder(nn.Module):
    """Images (N, C, H, W) -> a proposal over z, batch (N,), event (d,).

    All its parameters come from one last layer, so a proposal costs one pass.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        event_shape: tuple[int, int, int],
        hidden_sizes: Sequence[int],
        proposal: Proposal,
        activation: str,
    ) -> None:
        super().__init__()
        self.scale = likelihood.scale  # a bound method: the family's parameters belong to the decoder
        self.event_shape = event_shape
        self.net = mlp([image_size(event_shape), *hidden_sizes, proposal.num_params], activation)
        self.proposal = proposal

    def forward(self, x: Tensor) -> Distribution:
        x = check_images(x, self.event_shape, cast(nn.Linear, self.net[0]).weight)
        return self.proposal(self.net(self.scale(x).flatten(1)))


def make_encoder(
    proposal: Any,
    likelihood: Likelihood,
    event_shape: tuple[int, int, int],
    hidden_sizes: Sequence[int],
    latent_size: int,
    activation: str,
) -> Callable[[Tensor], Distribution]:
    """The proposal as it is if it is an encoder of the caller's own, else an :class:`Encoder` of that family."""
    if callable(proposal) and not isinstance(proposal, Proposal):
        return proposal
    return Encoder(likelihood, event_shape, hidden_sizes, as_proposal(proposal, latent_size), activation)


def make_prior(
    prior: Any, likelihood: Likelihood, event_shape: tuple[int, int, int], latent_size: int
) -> Distribution | Callable[[], Distribution]:
    """The prior as it is if it is a distribution or makes one, else the family of that name."""
    if isinstance(prior, Distribution) or (callable(prior) and not isinstance(prior, Prior)):
        return prior
    top = 1.0 if likelihood.num_levels is None else likelihood.num_levels - 1.0
    return as_prior(prior, latent_size, event_shape, top)


def config_of(name: str, part: Any) -> dict[str, Any]:
    """The config of one of our priors or proposals.

    Raises:
        TypeError: for one that JSON cannot describe.
    """
    family = part.proposal if isinstance(part, Encoder) else part
    if not isinstance(family, Prior | Proposal):
        raise TypeError(
            f"{name} is a {type(part).__name__}, which config() cannot describe: build the model from a name or a "
            "config, or keep its state_dict yourself"
        )
    return family.config()


def check_images(x: Tensor, event_shape: tuple[int, int, int], weight: Tensor) -> Tensor:
    """Images (N, C, H, W) that a network with this first weight can take; integers in the dtype of the weight."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.ndim != 4 or tuple(x.shape[1:]) != event_shape:
        expected = ", ".join(map(str, event_shape))
        raise ValueError(f"x must have shape (N, {expected}), got {tuple(x.shape)}")
    return check_input("x", x, weight)


def check_input(name: str, x: Tensor, weight: Tensor) -> Tensor:
    """``x`` on the device of the weight, in its dtype unless autocast sees to that; integers are converted."""
    if x.device != weight.device:
        raise ValueError(f"{name} must be on the model's device, {weight.device}, got {x.device}; move one of them")
    if not x.is_floating_point():
        return x.to(weight.dtype)
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{name} must have the model's dtype, {weight.dtype}, got {x.dtype}; convert one of them")
    return x


def check_latent(z: Tensor, latent_size: int, weight: Tensor) -> Tensor:
    """z (..., d) that a network with this first weight can take."""
    if z.ndim == 0 or z.shape[-1] != latent_size:
        raise ValueError(f"z must have shape (..., {latent_size}), got {tuple(z.shape)}")
    return check_input("z", z, weight)


def check_event_shape(event_shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) as a tuple of positive numbers."""
    sizes = tuple(event_shape) if isinstance(event_shape, Sequence) else (event_shape,)
    if len(sizes) != 3 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"event_shape must be three positive integers (C, H, W), got {event_shape!r}")
    return sizes


def check_positive(**sizes: int) -> None:
    """Raise for what is no integer or below one, by the name of the argument."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_hidden_sizes(hidden_sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes of hidden layers as a tuple of positive numbers; none is fine."""
    if not isinstance(hidden_sizes, Sequence) or isinstance(hidden_sizes, str):
        raise TypeError(f"hidden_sizes must be a sequence of integers, got {hidden_sizes!r}")
    for size in hidden_sizes:
        check_positive(hidden_sizes=size)
    return tuple(hidden_sizes)


def image_size(event_shape: Sequence[int]) -> int:
    """How many values an image has."""
    return int(torch.Size(event_shape).numel())
