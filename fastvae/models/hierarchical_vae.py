"""The VAE with two stochastic layers, as in the second table of the IWAE paper."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from fastvae.distributions import (
    Chained,
    DiagonalGaussian,
    Likelihood,
    Prior,
    Proposal,
    VampPrior,
    as_likelihood,
    as_prior,
    as_proposal,
)

from .latent_variable_model import LatentVariableModel
from .parts import Encoder, check_event_shape, check_hidden_sizes, check_positive, config_of, mlp
from .vae import ImageDecoder, image_decoder

__all__ = ["HierarchicalVAE"]


class GaussianNet(nn.Module):
    """One layer given another, (..., d_in) -> a diagonal Gaussian over (..., d_out)."""

    def __init__(self, sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        self.net = mlp([*sizes[:-1], 2 * sizes[-1]], activation)

    def forward(self, z: Tensor) -> DiagonalGaussian:
        loc, log_scale = self.net(z).chunk(2, dim=-1)
        return DiagonalGaussian(loc, log_scale)


class UpwardProposal(nn.Module):
    """x -> q(z1 | x) q(z2 | z1) over (z1, z2)."""

    def __init__(self, lower: Encoder, upper: GaussianNet, size: int) -> None:
        super().__init__()
        self.lower, self.upper, self.size = lower, upper, size

    def forward(self, x: Tensor) -> Chained:
        return Chained(self.lower(x), self.upper, self.size)


class DownwardPrior(nn.Module):
    """r(z2) p(z1 | z2) over (z1, z2)."""

    def __init__(self, top: Prior, lower: GaussianNet, size: int) -> None:
        super().__init__()
        self.top, self.lower, self.size = top, lower, size

    def forward(self) -> Chained:
        return Chained(self.top(), self.lower, self.size, reverse=True)


class LowerDecoder(nn.Module):
    """(z1, z2) -> p(x | z1)."""

    def __init__(self, image: ImageDecoder, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.image, self.sizes = image, sizes

    def forward(self, z: Tensor) -> Distribution:
        if z.ndim == 0 or z.shape[-1] != sum(self.sizes):
            raise ValueError(f"z must have shape (..., {sum(self.sizes)}), got {tuple(z.shape)}")
        return self.image(z[..., : self.sizes[0]])


class HierarchicalVAE(LatentVariableModel):
    r"""Burda, Grosse, Salakhutdinov (2016), section 5 and table 1: two stochastic layers.

    :math:`p(x | z_1) p(z_1 | z_2) r(z_2)` and :math:`q(z_1 | x) q(z_2 | z_1)`, all Gaussians diagonal and
    :math:`r = N(0, I)` in the paper; r and :math:`q(z_1 | x)` may be others. Both layers are one vector z = (z1, z2),
    so every bound, estimator and evaluation works as with one layer.

    Args:
        event_shape: (C, H, W).
        likelihood: a family, its name, or its config.
        latent_sizes: of z1, next to the image, and z2; (100, 50) in the paper.
        hidden_sizes: between image and z1, and between z1 and z2: ((200, 200), (100, 100)) in the paper.
        activation: ``"tanh"``, ``"relu"``, ``"elu"`` or ``"silu"``.
        prior: r(z2), as for :class:`VAE`; no VampPrior, whose components, :math:`q(z_2 | u)`, have no density in closed
            form here.
        proposal: the family of q(z1 | x), as for :class:`VAE`.

    Raises:
        ValueError: for a VampPrior, a shape, a size or a name that makes no sense.

    Example:
        >>> import torch
        >>> model = HierarchicalVAE((1, 8, 8), latent_sizes=(6, 3), hidden_sizes=((16,), (8,)))
        >>> model.likelihood(model.prior().sample((4,))).log_prob(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4])
    """

    encoder: UpwardProposal
    decoder: LowerDecoder
    _prior: DownwardPrior

    def __init__(
        self,
        event_shape: Sequence[int],
        likelihood: Likelihood | str | dict[str, Any] = "bernoulli",
        latent_sizes: Sequence[int] = (100, 50),
        hidden_sizes: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        activation: str = "tanh",
        prior: Prior | str | dict[str, Any] = "normal",
        proposal: Proposal | str | dict[str, Any] = "diagonal",
    ) -> None:
        shape = check_event_shape(event_shape)
        for name, sizes in (("latent_sizes", latent_sizes), ("hidden_sizes", hidden_sizes)):
            if len(sizes) != 2:
                raise ValueError(f"{name} must be two, for two stochastic layers, got {sizes!r}")
        first, second = latent_sizes
        check_positive(latent_sizes=first)
        check_positive(latent_sizes=second)
        below, above = (check_hidden_sizes(sizes) for sizes in hidden_sizes)
        family = as_likelihood(likelihood)
        lower = Encoder(family, shape, below, as_proposal(proposal, first), activation)
        top = as_prior(prior, second, shape)
        if isinstance(top, VampPrior):
            raise ValueError("prior must be normal, mixture or autoregressive for two stochastic layers, got vamp")
        upper = GaussianNet([first, *above, second], activation)
        down = GaussianNet([second, *reversed(above), first], activation)
        image = image_decoder(family, shape, below, first, activation)
        super().__init__(
            UpwardProposal(lower, upper, second),
            LowerDecoder(image, (first, second)),
            DownwardPrior(top, down, first),
        )
        self.event_shape, self.latent_size = shape, first + second
        self.latent_sizes, self.hidden_sizes, self.activation = (first, second), (below, above), activation

    @property
    def family(self) -> Likelihood:
        """The family of the likelihood."""
        return self.decoder.image.family

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {
            "event_shape": list(self.event_shape),
            "likelihood": self.family.config(),
            "latent_sizes": list(self.latent_sizes),
            "hidden_sizes": [list(sizes) for sizes in self.hidden_sizes],
            "activation": self.activation,
            "prior": config_of("prior", self._prior.top),
            "proposal": config_of("proposal", self.encoder.lower),
        }

    def start_at_marginals(self, x: Tensor) -> None:
        """As :meth:`VAE.start_at_marginals`."""
        self.decoder.image.start_at_marginals(x)
