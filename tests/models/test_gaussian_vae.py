"""The Gaussian VAE with independent pixels: its linear case is pPCA, its scale has a closed form."""

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from fastvae import log_likelihood, objectives
from fastvae.commands.problem import Problem
from fastvae.data import Data, dequantize
from fastvae.distributions import FullGaussian, GaussianLikelihood
from fastvae.evaluation.draw import draw
from fastvae.models import VAE, LatentVariableModel

SHAPE = (1, 3, 4)


def ppca() -> tuple[LatentVariableModel, MultivariateNormal]:
    """x = W z + b + s e with a full covariance as proposal: the exact posterior; and the exact marginal."""
    linear, family = nn.Linear(3, 12).double(), GaussianLikelihood("shared").double()
    w, s = linear.weight, family.log_scale.exp()
    precision = torch.eye(3).double() + w.T @ w / s**2

    def encoder(x: Tensor) -> FullGaussian:
        loc = torch.linalg.solve(precision, ((x.flatten(1) - linear.bias) @ w / s**2).T).T
        return FullGaussian(loc, torch.linalg.cholesky(torch.linalg.inv(precision)).expand(len(x), 3, 3))

    model = LatentVariableModel(encoder, lambda z: family(linear(z).unflatten(-1, SHAPE)), prior=3).double()
    return model, MultivariateNormal(linear.bias, w @ w.T + s**2 * torch.eye(12).double())


def test_the_linear_case_is_ppca_and_its_exact_posterior_has_weights_of_no_variance() -> None:
    model, marginal = ppca()
    x = marginal.sample((5,)).view(5, *SHAPE)
    found = log_likelihood(x, model, num_samples=100)
    torch.testing.assert_close(found.log_prob, marginal.log_prob(x.flatten(1)), rtol=1e-10, atol=1e-10)
    assert found.std_error.max() < 1e-7
    exact = marginal.log_prob(x.flatten(1))
    torch.testing.assert_close(objectives.elbo(model, x, 4, analytic_kl=False), exact, rtol=1e-10, atol=1e-10)


def test_the_best_scale_is_the_root_mean_square_of_the_residuals() -> None:
    model = VAE(SHAPE, "gaussian", latent_size=3, hidden_sizes=(8,)).double()
    x = torch.rand(6, *SHAPE).double()
    z, _ = draw(model.proposal(x), 1, torch.arange(6), 0, 8, torch.float64)
    assert isinstance(z, Tensor)
    residuals = x - model.likelihood(z).mean
    with torch.no_grad():
        model.family.log_scale.copy_(residuals.square().mean().sqrt().log())
    objectives.elbo(model, x, 8, seed=1).mean().backward()
    assert model.family.log_scale.grad.abs() < 1e-9


def test_the_density_of_dequantised_levels_bounds_the_probability_of_the_levels() -> None:
    top = 5
    levels = torch.arange(top, dtype=torch.uint8).view(top, 1, 1, 1)
    problem = Problem(Data("five", "as it comes", top, levels, levels, levels), "gaussian")
    family = GaussianLikelihood(0.3)
    normal = Normal(torch.tensor(0.4).double(), 0.3)
    edges = torch.arange(top + 1).double() / top
    mass = normal.cdf(edges).diff()  # of each level's cell
    u = (torch.arange(4000).double() + 0.5) / 4000
    x = dequantize(levels.expand(4000, top, 1, 1, 1), top, u.view(-1, 1, 1, 1, 1).expand(4000, top, 1, 1, 1))
    density = family(torch.full((1, 1, 1, 1), 0.4).double()).log_prob(x.double())
    bound = density.mean(0) + problem.log_volume  # E over u, nats
    assert (bound < mass.log()).all()
    torch.testing.assert_close(bound, mass.log(), rtol=0, atol=0.2)
    assert 0.8 < bound.exp().sum() < 1.0, "a bound of probabilities that sum to no more than 1"


def test_a_fixed_scale_is_no_parameter_and_one_for_each_pixel_comes_from_the_net() -> None:
    fixed = VAE(SHAPE, {"name": "gaussian", "scale": 0.25}, latent_size=3, hidden_sizes=(8,))
    assert not any("log_scale" in name for name, _ in fixed.named_parameters())
    torch.testing.assert_close(fixed.likelihood(torch.zeros(3)).stddev, torch.full(SHAPE, 0.25))
    pixel = VAE(SHAPE, {"name": "gaussian", "scale": "pixel"}, latent_size=3, hidden_sizes=(8,))
    assert pixel.likelihood(torch.zeros(3)).stddev.unique().numel() > 1
