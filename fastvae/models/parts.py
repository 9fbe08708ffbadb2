"""Small parts the models share: fully connected nets, the Gaussian encoder, checks of sizes."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastvae.distributions import DiagonalGaussian, Likelihood

__all__ = ["GaussianEncoder", "check_event_shape", "check_positive", "image_size", "mlp"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


def mlp(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers of the given sizes with an activation between them, none at the end."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}")
    check_positive(sizes=min(sizes))
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class GaussianEncoder(nn.Module):
    """Images (N, C, H, W) -> a diagonal Gaussian over z, batch (N,), event (d,).

    The mean and the log-scale come from one last layer, so a proposal costs one pass.
    """

    def __init__(
        self,
        family: Likelihood,
        event_shape: tuple[int, int, int],
        hidden_sizes: Sequence[int],
        latent_size: int,
        activation: str,
    ) -> None:
        super().__init__()
        self.scale = family.scale  # a bound method: the family's parameters belong to the decoder
        self.event_shape = event_shape
        self.net = mlp([image_size(event_shape), *hidden_sizes, 2 * latent_size], activation)

    def forward(self, x: Tensor) -> DiagonalGaussian:
        if x.ndim != 4 or tuple(x.shape[1:]) != self.event_shape:
            expected = ", ".join(map(str, self.event_shape))
            raise ValueError(f"x must have shape (N, {expected}), got {tuple(x.shape)}")
        loc, log_scale = self.net(self.scale(x).flatten(1)).chunk(2, dim=-1)
        return DiagonalGaussian(loc, log_scale)


def check_event_shape(event_shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) as a tuple of positive numbers."""
    if len(event_shape) != 3 or any(int(size) != size or size < 1 for size in event_shape):
        raise ValueError(f"event_shape must be three positive numbers (C, H, W), got {tuple(event_shape)}")
    channels, height, width = (int(size) for size in event_shape)
    return channels, height, width


def check_positive(**sizes: int) -> None:
    """Raise for a size below one, by the name of the argument."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def image_size(event_shape: Sequence[int]) -> int:
    """How many values an image has."""
    return int(torch.Size(event_shape).numel())
