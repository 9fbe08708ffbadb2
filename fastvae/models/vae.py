"""The VAE with fully connected networks and independent values given z."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastvae.distributions import ImageDistribution, Likelihood, as_likelihood, likelihood_of_linear

from .latent_variable_model import LatentVariableModel
from .parts import (
    MLP,
    check_event_shape,
    check_hidden_sizes,
    check_latent,
    check_positive,
    config_of,
    make_encoder,
    make_prior,
    mlp,
)

__all__ = ["VAE"]


class ImageDecoder(nn.Module):
    """z (..., d) -> the likelihood of an image: hidden layers, one linear layer to the parameters, the family."""

    def __init__(self, net: nn.Sequential, family: Likelihood, event_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.net, self.family = net, family
        self.event_shape = event_shape
        channels, height, width = event_shape
        self.params_shape = (family.num_maps(channels), height, width)

    def forward(self, z: Tensor) -> ImageDistribution:
        first = cast(nn.Linear, self.net[0])
        z = check_latent(z, first.in_features, first.weight)
        last = self._last_layer()
        if last is None:
            return self.family(self.net(z).unflatten(-1, self.params_shape))
        h = cast(MLP, self.net).hidden(z)
        return likelihood_of_linear(self.family, h, last.weight, last.bias, self.event_shape)

    def start_at_marginals(self, x: Tensor) -> None:
        """Set the last bias to the parameters of the pixel-wise marginals of ``x`` (N, C, H, W)."""
        last = cast(nn.Linear, self.net[-1])
        with torch.no_grad():
            last.bias.copy_(self.family.marginal_params(x).flatten())

    def _last_layer(self) -> nn.Linear | None:
        """The last layer, if nothing but its weights stands between what enters it and its output: then it may run as
        one operator with the likelihood."""
        if type(self.net) is not MLP or torch.compiler.is_compiling():
            return None
        last, own = self.net[-1], vars(self.net)
        whole_net_is_replaced = ("forward" in own) != ("hidden" in own)
        if type(last) is not nn.Linear or "forward" in vars(last) or whole_net_is_replaced:
            return None
        return None if _is_watched(self.net) or _is_watched(last) else last


def image_decoder(
    family: Likelihood,
    event_shape: tuple[int, int, int],
    hidden_sizes: Sequence[int],
    latent_size: int,
    activation: str,
) -> ImageDecoder:
    """The decoder whose hidden layers mirror those of an encoder."""
    params = family.num_maps(event_shape[0]) * event_shape[1] * event_shape[2]
    return ImageDecoder(mlp([latent_size, *reversed(hidden_sizes), params], activation), family, event_shape)


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks or a compiler stand between the module and its caller."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or module._compiled_call_impl is not None


class VAE(LatentVariableModel):
    r"""Kingma and Welling's variational autoencoder (2014) for images, with fully connected networks.

    :math:`p(x, z) = p(x | g(z)) r(z)` and :math:`q(z | x)`; by default :math:`r(z) = N(z; 0, I)` and
    :math:`q(z | x) = N(z; \mu(x), \mathrm{diag}\, \sigma(x)^2)`. Trained with :func:`fastvae.objectives.elbo` it is the
    VAE, with :func:`fastvae.objectives.iwae` the IWAE of Burda et al. (2016).

    Args:
        event_shape: (C, H, W) of the images.
        likelihood: a family, its name, or its config: ``"bernoulli"``, ``{"name": "categorical", "num_levels": 17}``.
        latent_size: d.
        hidden_sizes: hidden layers of the encoder; the decoder mirrors them.
        activation: ``"tanh"``, ``"relu"``, ``"elu"`` or ``"silu"``.
        prior: ``"normal"``, ``"mixture"``, ``"vamp"``, ``"autoregressive"`` or a config with options
            (:func:`fastvae.distributions.as_prior`); or a distribution over (d,) of torch, or a module that makes one
            when it is called, as flows of zuko do.
        proposal: ``"diagonal"``, ``"full"``, ``"planar"``, ``"coupling"``, ``"iaf"``, ``"autoregressive"`` or a config
            (:func:`fastvae.distributions.as_proposal`), at the end of the encoder; or an encoder of your own,
            x -> distribution.

    Raises:
        ValueError: for a shape, a size or a name that makes no sense.

    Example:
        >>> model = VAE((1, 8, 8), "bernoulli", latent_size=5, hidden_sizes=(16,))
        >>> model.likelihood(torch.zeros(3, 5)).sample().shape
        torch.Size([3, 1, 8, 8])
    """

    decoder: ImageDecoder

    def __init__(
        self,
        event_shape: Sequence[int],
        likelihood: Likelihood | str | dict[str, Any] = "bernoulli",
        latent_size: int = 50,
        hidden_sizes: Sequence[int] = (200, 200),
        activation: str = "tanh",
        prior: Any = "normal",
        proposal: Any = "diagonal",
    ) -> None:
        shape = check_event_shape(event_shape)
        check_positive(latent_size=latent_size)
        hidden_sizes = check_hidden_sizes(hidden_sizes)
        family = as_likelihood(likelihood)
        super().__init__(
            make_encoder(proposal, family, shape, hidden_sizes, latent_size, activation),
            image_decoder(family, shape, hidden_sizes, latent_size, activation),
            prior=make_prior(prior, family, shape, latent_size),
        )
        self.event_shape, self.latent_size = shape, latent_size
        self.hidden_sizes, self.activation = hidden_sizes, activation

    @property
    def family(self) -> Likelihood:
        """The family of the likelihood."""
        return self.decoder.family

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {
            "event_shape": list(self.event_shape),
            "likelihood": self.family.config(),
            "latent_size": self.latent_size,
            "hidden_sizes": list(self.hidden_sizes),
            "activation": self.activation,
            "prior": config_of("prior", self._prior),
            "proposal": config_of("proposal", self.encoder),
        }

    def start_at_marginals(self, x: Tensor) -> None:
        """Set the decoder's last bias so that training starts at the pixel-wise marginals of ``x`` (N, C, H, W).

        For binary data the logit of the mean (Burda et al. 2016); for levels the log of their smoothed frequencies;
        for continuous data the mean.
        """
        self.decoder.start_at_marginals(x)
