"""The bounds against models whose log p(x) is known in closed form."""

import math

import pytest
import torch
from small_models import LinearGaussian
from torch import Tensor
from torch.distributions import Independent, Normal

from fastvae.distributions import DiagonalGaussian
from fastvae.models import VAE, LatentVariableModel
from fastvae.objectives import elbo, iwae


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 6, 1, 1, dtype=torch.float64)


def test_both_bounds_are_exact_at_the_exact_posterior(x: Tensor) -> None:
    linear = LinearGaussian()
    want = linear.marginal().log_prob(x.flatten(1))
    torch.testing.assert_close(iwae(linear.model(), x, num_samples=3), want)
    torch.testing.assert_close(elbo(linear.model(), x, num_samples=3, analytic_kl=False), want)


def test_the_elbo_is_below_by_the_kl_to_the_posterior(x: Tensor) -> None:
    torch.manual_seed(0)
    wide, exact = LinearGaussian(proposal_scale=1.5), LinearGaussian()
    gap = exact.marginal().log_prob(x.flatten(1)) - elbo(wide.model(), x, num_samples=200000)
    q = wide.model().proposal(x)
    kl = torch.distributions.kl_divergence(q, exact.model().proposal(x))
    torch.testing.assert_close(gap, kl, rtol=0, atol=0.04)  # five standard errors


def test_the_iwae_bound_grows_with_the_number_of_samples(x: Tensor) -> None:
    torch.manual_seed(0)
    linear = LinearGaussian(proposal_scale=1.5)
    bounds = [iwae(linear.model(), x.repeat(4000, 1, 1, 1), num_samples=k).mean().item() for k in (1, 5, 50)]
    truth = linear.marginal().log_prob(x.flatten(1)).mean().item()
    assert bounds[0] < bounds[1] < bounds[2] < truth + 0.01


def test_one_sample_of_both_bounds_is_the_same_number(x: Tensor) -> None:
    model = LinearGaussian(proposal_scale=0.8).model()
    torch.manual_seed(3)
    first = iwae(model, x, num_samples=1)
    torch.manual_seed(3)
    torch.testing.assert_close(first, elbo(model, x, num_samples=1, analytic_kl=False))


def test_the_value_is_the_bound_and_its_gradient_the_weighted_one(x: Tensor) -> None:
    linear = LinearGaussian(proposal_scale=1.3)
    model = linear.model()
    torch.manual_seed(1)
    (got,) = torch.autograd.grad(iwae(model, x, num_samples=7).sum(), linear.log_scale)
    torch.manual_seed(1)
    z, log_q = model.proposal(x).rsample_and_log_prob((7,))
    log_w = model.likelihood(z).log_prob(x) + model.prior().log_prob(z) - log_q
    torch.testing.assert_close(log_w.logsumexp(0) - math.log(7), model_bound(model, x))
    (want,) = torch.autograd.grad((log_w.softmax(0).detach() * log_w).sum(), linear.log_scale)
    torch.testing.assert_close(got, want)


def model_bound(model: LatentVariableModel, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return iwae(model, x, num_samples=7)


def test_the_learned_scale_is_optimal_where_the_closed_form_says(x: Tensor) -> None:
    """At the exact posterior, d ELBO / d log s = 0 exactly where s^2 = E |x - W z - b|^2 / D."""
    linear = LinearGaussian()
    model = linear.model()
    q = model.proposal(x)
    with torch.no_grad():
        residual = (x.flatten(1) - q.mean @ linear.w.T - linear.b).square().sum(-1)
        spread = (q.variance * (linear.w**2).sum(0)).sum(-1)
        optimum = ((residual + spread) / 6).mean()
    loc, log_scale = q.loc.detach(), q.log_scale.detach()
    fixed = LatentVariableModel(lambda _: DiagonalGaussian(loc, log_scale), model.decoder, model.prior())
    with torch.no_grad():
        linear.log_scale.copy_(0.5 * optimum.log())
    torch.manual_seed(0)
    value = elbo(fixed, x, num_samples=100000).mean()
    (slope,) = torch.autograd.grad(value, linear.log_scale)
    assert abs(slope.item()) < 0.03  # Monte-Carlo error of about 0.01; one per cent off in s gives 0.12


def test_torch_distributions_serve_as_they_are(x: Tensor) -> None:
    linear = LinearGaussian()
    ours = linear.model()

    def encoder(x: Tensor) -> Independent:
        q = ours.proposal(x)
        return Independent(Normal(q.loc, q.log_scale.exp()), 1)

    zeros = torch.zeros(2, dtype=torch.float64)
    model = LatentVariableModel(encoder, ours.decoder, Independent(Normal(zeros, zeros.exp()), 1))
    torch.testing.assert_close(iwae(model, x, 4), linear.marginal().log_prob(x.flatten(1)))
    assert elbo(model, x, analytic_kl=True).shape == (5,)


def test_bad_arguments_say_what_is_wrong(x: Tensor) -> None:
    model = LinearGaussian().model()
    for bound in (elbo, iwae):
        with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
            bound(model, x, num_samples=0)
    not_independent = LatentVariableModel(lambda x: Normal(torch.zeros(5, 2), 1.0), model.decoder, 2)
    with pytest.raises(ValueError, match=r"must have shape \(3, 5\).*got \(3, 5, 2\); wrap it in .*Independent"):
        iwae(not_independent, x, num_samples=3)
    with pytest.raises(TypeError, match="encoder must be callable, got int"):
        LatentVariableModel(3, model.decoder, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prior must be a Distribution, a callable or a size, got str"):
        LatentVariableModel(model.encoder, model.decoder, "normal")  # type: ignore[arg-type]


def test_a_demanded_closed_form_that_does_not_exist_is_an_error(x: Tensor) -> None:
    model = LinearGaussian().model()
    other = LatentVariableModel(
        model.encoder,
        model.decoder,
        torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(2), 1.0), 1),
    )
    assert elbo(other, x).shape == (5,)
    with pytest.raises(ValueError, match="no closed form for DiagonalGaussian and Independent"):
        elbo(other, x, analytic_kl=True)


def test_a_vae_is_trained_by_both_bounds() -> None:
    torch.manual_seed(0)
    data = (torch.rand(64, 1, 4, 4) < torch.linspace(0.05, 0.95, 16).view(1, 4, 4)).float()
    for bound, options in ((elbo, {}), (iwae, {"num_samples": 5})):
        model = VAE((1, 4, 4), latent_size=2, hidden_sizes=(16,))
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        before = bound(model, data, **options).mean().item()
        for _ in range(60):
            optimiser.zero_grad()
            (-bound(model, data, **options).mean()).backward()
            optimiser.step()
        assert bound(model, data, **options).mean().item() > before + 2.0


@pytest.mark.parametrize("bound", [elbo, iwae])
def test_a_fraction_of_a_sample_is_an_error(bound, x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"num_samples must be an integer, got 1\.5"):
        bound(LinearGaussian().model(), x, num_samples=1.5)
