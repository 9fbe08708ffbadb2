"""log_likelihood against exact answers: linear Gaussian models, enumerable z, quadrature."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

import fastvae
from fastvae.distributions import DiagonalGaussian
from fastvae.evaluation import LogLikelihood
from fastvae.models import VAE

F64 = torch.float64


def normal(mean: Tensor, scale: Tensor | float) -> Independent:
    return Independent(Normal(mean, scale * torch.ones_like(mean)), 1)


class LinearGaussian:
    """Probabilistic PCA with orthogonal loadings: x = W z + s e, so p(x) and the diagonal p(z | x) are known."""

    def __init__(self, data_size: int, latent_size: int, noise: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(0)
        directions = torch.linalg.qr(torch.randn(data_size, latent_size, generator=generator, dtype=F64)).Q
        lengths = torch.linspace(0.5, 3.0, latent_size, dtype=F64)
        self.loadings, self.noise = directions * lengths, noise
        self.precision = 1 + lengths.square() / noise**2
        self.prior = normal(torch.zeros(latent_size, dtype=F64), 1.0)
        variance = torch.full((data_size,), noise**2, dtype=F64)
        self.marginal = LowRankMultivariateNormal(torch.zeros(data_size, dtype=F64), self.loadings, variance)
        self.x = self._draw(4, generator)

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(count, self.loadings.shape[1], generator=generator, dtype=F64)
        noise = torch.randn(count, self.loadings.shape[0], generator=generator, dtype=F64)
        return z @ self.loadings.T + self.noise * noise

    def posterior(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        mean = x @ self.loadings / self.noise**2 / self.precision
        return mean, (scale * self.precision.rsqrt()).expand_as(mean)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        return normal(z @ self.loadings.T, self.noise).log_prob(x) + self.prior.log_prob(z)


PROPOSALS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "ours": lambda mean, scale: DiagonalGaussian(mean, scale.log()),
    "Independent": lambda mean, scale: Independent(Normal(mean, scale), 1),
    "Normal": Normal,
    "MultivariateNormal": lambda mean, scale: MultivariateNormal(mean, torch.diag_embed(scale.square())),
}


@pytest.mark.parametrize("kind", PROPOSALS)
def test_with_the_exact_posterior_every_weight_is_log_p(kind: str) -> None:
    model = LinearGaussian(784, 50)
    result = fastvae.log_likelihood(
        model.x, proposal=lambda x: PROPOSALS[kind](*model.posterior(x)), log_joint=model.log_joint, num_samples=300
    )
    torch.testing.assert_close(result.log_prob, model.marginal.log_prob(model.x), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(result.ess, torch.full((4,), 300.0, dtype=F64))
    assert result.std_error.max().item() < 1e-6
    assert result.trusted.all()


def test_with_the_exact_posterior_every_weight_agrees_to_the_last_digits() -> None:
    """256 samples: the tail that the state keeps is all of them."""
    model = LinearGaussian(784, 50)
    result = fastvae.log_likelihood(
        model.x,
        proposal=lambda x: PROPOSALS["ours"](*model.posterior(x)),
        log_joint=model.log_joint,
        num_samples=256,
    )
    weights = result.weights.largest
    assert weights.shape == (256, 4)
    assert (weights - weights[0]).abs().max().item() < 9e-13
    assert (weights - model.marginal.log_prob(model.x)).abs().max().item() < 5e-12  # of -650, by two ways
    assert (result.ess - 256).abs().max().item() < 1e-9
    assert max(result.std_error.max().item(), result.jackknife.std_error.max().item()) < 1e-6


@pytest.mark.parametrize("kind", PROPOSALS)
def test_a_scaled_posterior_has_the_closed_form_error(kind: str) -> None:
    model, c = LinearGaussian(784, 50), 1.1
    result = fastvae.log_likelihood(
        model.x,
        proposal=lambda x: PROPOSALS[kind](*model.posterior(x, c)),
        log_joint=model.log_joint,
        num_samples=5000,
        seed=3,
    )
    mean_square = (c / math.sqrt(2 - 1 / c**2)) ** 50  # E[(p/q)^2], so ESS/M = 0.4655 and the error is 0.01515
    assert result.ess.mean().item() / 5000 == pytest.approx(1 / mean_square, rel=0.05)
    assert result.std_error.mean().item() == pytest.approx(math.sqrt((mean_square - 1) / 5000), rel=0.05)
    assert result.bias.mean().item() == pytest.approx(-(mean_square - 1) / 10_000, rel=0.1)
    assert result.jackknife.std_error.mean().item() == pytest.approx(math.sqrt((mean_square - 1) / 5000), rel=0.3)
    assert ((result.log_prob - model.marginal.log_prob(model.x)).abs() < 4 * result.std_error).all()
    assert result.trusted.all()
    assert (result.log_prob > result.elbo).all()


def test_a_proposal_that_is_too_narrow_is_reported_not_trusted() -> None:
    model = LinearGaussian(40, 10)
    result = fastvae.log_likelihood(
        model.x, proposal=lambda x: Normal(*model.posterior(x, 0.5)), log_joint=model.log_joint, num_samples=5000
    )
    assert (result.khat > 0.7).all()
    assert not result.trusted.any()
    assert result.bias.isnan().all()
    assert "unknown   bias of 4 datapoints" in repr(result)


def test_the_mean_weight_is_unbiased_over_replicates() -> None:
    model, replicates = LinearGaussian(20, 5), 400
    x = model.x[:1].expand(replicates, -1)  # one datapoint under 400 numbers: 400 independent estimates
    result = fastvae.log_likelihood(
        x, proposal=lambda x: Normal(*model.posterior(x, 1.2)), log_joint=model.log_joint, num_samples=20
    )
    ratio = (result.log_prob - model.marginal.log_prob(x)).exp()
    assert abs(ratio.mean().item() - 1) < 4 * ratio.std().item() / math.sqrt(replicates)
    assert (result.log_prob - model.marginal.log_prob(x)).mean().item() < 0  # its log is not: Jensen


def test_more_samples_raise_the_bound_towards_log_p() -> None:
    model = LinearGaussian(20, 5)
    x = model.x[:1].expand(400, -1)
    exact = model.marginal.log_prob(model.x[:1]).item()
    means = []
    for num_samples in (1, 8, 64):
        result = fastvae.log_likelihood(
            x, proposal=lambda x: Normal(*model.posterior(x, 1.5)), log_joint=model.log_joint, num_samples=num_samples
        )
        means.append(result.mean().value)
    assert means[0] < means[1] - 0.1 < means[2] < exact + 0.05


def test_discrete_latents_agree_with_enumeration() -> None:
    torch.manual_seed(0)
    loadings, x = torch.randn(10, 12, dtype=F64), torch.bernoulli(torch.full((3, 12), 0.5, dtype=F64))
    prior = Independent(Bernoulli(torch.full((10,), 0.3, dtype=F64)), 1)

    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        return Independent(Bernoulli(logits=z @ loadings), 1).log_prob(x) + prior.log_prob(z)

    every_z = (torch.arange(1024)[:, None] >> torch.arange(10) & 1).to(F64)[:, None].expand(-1, 3, -1)
    exact = log_joint(x, every_z).logsumexp(0)
    result = fastvae.log_likelihood(
        x,
        proposal=lambda x: Independent(Bernoulli(torch.full((len(x), 10), 0.5, dtype=F64)), 1),
        log_joint=log_joint,
        num_samples=20_000,
    )
    assert ((result.log_prob - exact).abs() < 4 * result.std_error).all()
    assert result.std_error.max().item() < 0.1


@pytest.mark.parametrize(("latent_size", "points"), [(1, 4001), (2, 321)])
def test_a_nonlinear_decoder_agrees_with_quadrature(latent_size: int, points: int) -> None:
    torch.manual_seed(1)
    decoder = torch.nn.Sequential(torch.nn.Linear(latent_size, 20), torch.nn.Tanh(), torch.nn.Linear(20, 30)).double()
    x = torch.bernoulli(torch.full((3, 30), 0.5, dtype=F64))
    prior = normal(torch.zeros(latent_size, dtype=F64), 1.0)

    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        return fastvae.ops.bernoulli_log_prob(x, decoder(z), event_dims=1) + prior.log_prob(z)

    line = torch.linspace(-10, 10, points, dtype=F64)
    grid = torch.cartesian_prod(*[line] * latent_size).view(-1, 1, latent_size)
    with torch.no_grad():
        each = torch.cat([log_joint(x, z.expand(-1, 3, -1)) for z in grid.split(20_000)])
    exact = each.logsumexp(0) + latent_size * math.log(20 / (points - 1))
    result = fastvae.log_likelihood(
        x,
        proposal=lambda x: normal(torch.zeros(len(x), latent_size, dtype=F64), 1.5),
        log_joint=log_joint,
        num_samples=20_000,
    )
    assert ((result.log_prob - exact).abs() < 4 * result.std_error).all()
    assert ((result.jackknife.log_prob - exact).abs() < 4 * result.jackknife.std_error).all()
    assert result.std_error.max().item() < 0.02
    assert not any(parameter.grad is not None for parameter in decoder.parameters())


def test_a_model_of_ours_gives_the_textbook_estimate_in_any_precision() -> None:
    torch.manual_seed(0)
    model = VAE((1, 4, 4), "bernoulli", latent_size=3, hidden_sizes=(8,)).double()
    x = torch.bernoulli(torch.full((5, 1, 4, 4), 0.5, dtype=F64))
    result = fastvae.log_likelihood(x, model, num_samples=50, seed=7)
    q = model.proposal(x)
    noise = fastvae.ops.normal(7, torch.arange(5), torch.arange(50), 3, dtype=F64).transpose(0, 1)
    z = q.loc + q.stddev * noise
    p = model.likelihood(z).logits.sigmoid()
    log_p_x = (x * p.log() + (1 - x) * (1 - p).log()).sum((-1, -2, -3))
    log_w = log_p_x + model.prior().log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(result.log_prob, log_w.logsumexp(0) - math.log(50), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.elbo, log_w.mean(0), rtol=1e-12, atol=0)
    single = fastvae.log_likelihood(x.byte(), model.float(), num_samples=50, seed=7)
    torch.testing.assert_close(single.log_prob, result.log_prob, rtol=1e-5, atol=0)


def test_bits_per_dimension_are_asked_for_explicitly() -> None:
    model = LinearGaussian(20, 5)
    result = fastvae.log_likelihood(
        model.x, proposal=lambda x: Normal(*model.posterior(x)), log_joint=model.log_joint, num_samples=200
    )
    bits = result.bits_per_dim()
    assert bits.value == pytest.approx(-result.log_prob.mean().item() / 20 / math.log(2))
    assert bits.data_error == pytest.approx(result.mean().data_error / 20 / math.log(2))
    lines = repr(result).splitlines()
    assert lines[0] == "LogLikelihood of 4 datapoints, 200 samples each, in nats"
    assert f"{result.mean().value:.4f}" in lines[1]


@pytest.mark.parametrize("num_samples", [1, 2])
def test_few_samples_work_and_claim_nothing(num_samples: int) -> None:
    model = LinearGaussian(20, 5)
    result = fastvae.log_likelihood(
        model.x, proposal=lambda x: Normal(*model.posterior(x, 1.2)), log_joint=model.log_joint, num_samples=num_samples
    )
    assert result.log_prob.isfinite().all()
    assert not result.trusted.any()
    if num_samples == 1:
        torch.testing.assert_close(result.log_prob, result.elbo)


def test_no_datapoints_are_no_error() -> None:
    model = LinearGaussian(20, 5)
    result = fastvae.log_likelihood(
        model.x[:0], proposal=lambda x: Normal(*model.posterior(x)), log_joint=model.log_joint, num_samples=5
    )
    assert isinstance(result, LogLikelihood)
    assert result.log_prob.shape == (0,)
    assert repr(result) == "LogLikelihood(no datapoints)"


def test_importing_and_running_leave_inputs_alone() -> None:
    model = LinearGaussian(20, 5)
    before = model.x.clone()
    fastvae.log_likelihood(
        model.x, proposal=lambda x: Normal(*model.posterior(x)), log_joint=model.log_joint, num_samples=5
    )
    assert torch.equal(model.x, before)
