"""The PixelVAE: a VAE whose decoder is a PixelCNN that sees z in every layer."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from fastvae.distributions import Autoregressive, Likelihood, as_likelihood

from .gated_pixelcnn import GatedPixelCNN
from .latent_variable_model import LatentVariableModel
from .parts import (
    check_event_shape,
    check_hidden_sizes,
    check_latent,
    check_positive,
    config_of,
    make_encoder,
    make_prior,
    mlp,
)
from .pixelcnn import PixelCNN

__all__ = ["PixelVAE"]


class PixelDecoder(nn.Module):
    """z (..., d) -> p(x | z): maps (F, H, W) from z by an unmasked net, then the PixelCNN conditioned on them."""

    def __init__(self, to_maps: nn.Sequential, pixelcnn: PixelCNN | GatedPixelCNN) -> None:
        super().__init__()
        self.to_maps, self.pixelcnn = to_maps, pixelcnn

    def maps(self, z: Tensor) -> Tensor:
        """(..., d) -> (..., F, H, W), in the range of the hidden activations."""
        first = cast(nn.Linear, self.to_maps[0])
        z = check_latent(z, first.in_features, first.weight)
        size = (self.pixelcnn.options["condition_channels"], *self.pixelcnn.event_shape[1:])
        return self.to_maps(z).unflatten(-1, size).relu()

    def forward(self, z: Tensor) -> Autoregressive:
        net = self.pixelcnn
        return Autoregressive(net, net.family, self.maps(z), net.event_shape)


class PixelVAE(LatentVariableModel):
    """Gulrajani et al. (2017), one level: p(x | z) is a PixelCNN, z enters every layer by an unmasked path.

    ``model(x, z)`` gives the parameters of every value, so :func:`fastvae.compile_sampler` takes the model as it is,
    with ``condition=z``.

    Args:
        event_shape: (C, H, W).
        likelihood: a family, its name, or its config.
        latent_size: d.
        hidden_sizes: hidden layers of the encoder; the net from z to the maps mirrors them.
        map_channels: F, channels of the maps that carry z to every layer.
        channels, num_blocks, first_kernel_size, kernel_size: of the :class:`PixelCNN`. Its field of view,
            first_kernel_size + num_blocks * (kernel_size - 1) pixels across, leaves the structure beyond it to z.
        activation: of the fully connected nets.
        gated: whether the decoder is a :class:`GatedPixelCNN`, which has no blind spot.
        prior, proposal: as for :class:`VAE`.

    Raises:
        ValueError: for a shape, a size or a name that makes no sense.

    Example:
        >>> import torch
        >>> model = PixelVAE((1, 8, 8), "bernoulli", latent_size=4, channels=8, num_blocks=1)
        >>> model.likelihood(torch.zeros(5, 3, 4)).log_prob(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([5, 3])
    """

    decoder: PixelDecoder

    def __init__(
        self,
        event_shape: Sequence[int],
        likelihood: Likelihood | str | dict[str, Any] = "bernoulli",
        latent_size: int = 32,
        hidden_sizes: Sequence[int] = (200,),
        map_channels: int = 8,
        channels: int = 32,
        num_blocks: int = 2,
        first_kernel_size: int = 5,
        kernel_size: int = 3,
        activation: str = "elu",
        gated: bool = False,
        prior: Any = "normal",
        proposal: Any = "diagonal",
    ) -> None:
        shape = check_event_shape(event_shape)
        check_positive(latent_size=latent_size, map_channels=map_channels)
        hidden_sizes = check_hidden_sizes(hidden_sizes)
        family = as_likelihood(likelihood)
        stack = GatedPixelCNN if gated else PixelCNN
        pixelcnn = stack(shape, family, channels, num_blocks, first_kernel_size, kernel_size, map_channels)
        maps = mlp([latent_size, *reversed(hidden_sizes), map_channels * shape[1] * shape[2]], activation)
        super().__init__(
            make_encoder(proposal, family, shape, hidden_sizes, latent_size, activation),
            PixelDecoder(maps, pixelcnn),
            prior=make_prior(prior, family, shape, latent_size),
        )
        self.event_shape, self.latent_size, self.condition_shape = shape, latent_size, (latent_size,)
        self.hidden_sizes, self.activation, self.gated = hidden_sizes, activation, gated

    @property
    def family(self) -> Likelihood:
        """The family of the likelihood."""
        return self.decoder.pixelcnn.family

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Teacher-forced parameters: ``x`` (N, C, H, W), ``z`` (N, d) -> (N, P, H, W)."""
        if z.shape != (x.shape[0], self.latent_size):
            raise ValueError(f"z must have shape ({x.shape[0]}, {self.latent_size}), got {tuple(z.shape)}")
        return self.decoder.pixelcnn(x, self.decoder.maps(z))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        stack = dict(self.decoder.pixelcnn.options)
        return {
            "event_shape": list(self.event_shape),
            "likelihood": self.family.config(),
            "latent_size": self.latent_size,
            "hidden_sizes": list(self.hidden_sizes),
            "map_channels": stack.pop("condition_channels"),
            **stack,
            "activation": self.activation,
            "gated": self.gated,
            "prior": config_of("prior", self._prior),
            "proposal": config_of("proposal", self.encoder),
        }
