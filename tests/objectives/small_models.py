"""Models of a few numbers in float64: one whose log p(x) is known, one that is not linear, other people's proposals."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from fastvae.distributions import DiagonalGaussian, Gaussian
from fastvae.models import LatentVariableModel


class LinearGaussian:
    """x = W z + b + s e with orthogonal columns of W, so that the posterior is diagonal: pPCA in its own basis."""

    def __init__(self, size: int = 6, latent: int = 2, proposal_scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        basis, _ = torch.linalg.qr(torch.randn(size, latent, generator=generator, dtype=torch.float64))
        self.w = basis * torch.tensor([1.5, 0.7], dtype=torch.float64)
        self.b = torch.randn(size, generator=generator, dtype=torch.float64)
        self.log_scale = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
        self.proposal_scale = proposal_scale

    def marginal(self) -> MultivariateNormal:
        eye = torch.eye(self.w.shape[0], dtype=torch.float64)
        return MultivariateNormal(self.b, self.w @ self.w.T + (2 * self.log_scale).exp() * eye)

    def model(self) -> LatentVariableModel:
        def encoder(x: Tensor) -> DiagonalGaussian:
            precision = 1.0 + (self.w**2).sum(0) * (-2 * self.log_scale).exp()
            loc = (x.flatten(1) - self.b) @ self.w * (-2 * self.log_scale).exp() / precision
            return DiagonalGaussian(loc, -0.5 * precision.log() + math.log(self.proposal_scale))

        def decoder(z: Tensor) -> Gaussian:
            return Gaussian((z @ self.w.T + self.b)[..., None, None], self.log_scale)

        zeros = torch.zeros(self.w.shape[1], dtype=torch.float64)
        return LatentVariableModel(encoder, decoder, DiagonalGaussian(zeros, zeros))


class SmallVAE(nn.Module):
    """x (N, 5), z (N, 2), tanh networks, a learned prior; ``family`` makes the proposal of its mean and log-scale."""

    def __init__(self, family: str = "ours", shared: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.family = family
        self.encoder = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4))
        middle = self.encoder[2] if shared else nn.Linear(4, 4)
        self.decoder = nn.Sequential(
            nn.Linear(2, 4), nn.Tanh(), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 5)
        )
        self.prior_loc = nn.Parameter(torch.randn(2))
        self.double()

    def proposal(self, x: Tensor) -> Distribution:
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        if self.family == "ours":
            return DiagonalGaussian(loc, log_scale)
        if self.family == "torch":
            return Independent(Normal(loc, log_scale.exp()), 1)
        return Sinh(loc, log_scale)

    def prior(self) -> Distribution:
        return DiagonalGaussian(self.prior_loc, torch.zeros_like(self.prior_loc))

    def likelihood(self, z: Tensor) -> Distribution:
        return Independent(Normal(self.decoder(z), 0.7), 1)


class Sinh(Distribution):
    """A flow of one step, z = sinh(loc + scale noise), that samples by itself."""

    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        self.base = DiagonalGaussian(loc, log_scale)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def rsample_and_log_prob(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        u, log_q = self.base.rsample_and_log_prob(sample_shape)
        return u.sinh(), log_q - u.cosh().log().sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        u = value.asinh()
        return self.base.log_prob(u) - u.cosh().log().sum(-1)
