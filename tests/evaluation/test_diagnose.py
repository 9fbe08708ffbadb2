"""``diagnose``: every figure against a closed form, and the same for proposals that have none."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from fastvae.distributions import Bernoulli, DiagonalGaussian, Flow, FullGaussian, kl_by_dimension
from fastvae.evaluation import active_units, diagnose
from fastvae.models import VAE, HierarchicalVAE, LatentVariableModel

SHAPE = (1, 2, 2)


def points(count: int) -> Tensor:
    return torch.randint(0, 2, (count, *SHAPE), generator=torch.Generator().manual_seed(0)).float()


def model_of(proposal: Any, latent_size: int = 2) -> LatentVariableModel:
    return LatentVariableModel(
        proposal, lambda z: Bernoulli(z.sum(-1)[..., None, None, None].expand(*z.shape[:-1], *SHAPE)), latent_size
    )


def gaussian(x: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(x.flatten(1)[:, :2] * 2.0, torch.tensor([-0.5, 0.2]))


def test_the_kl_of_diagonal_gaussians_is_the_closed_form_and_sums_to_the_rate() -> None:
    x = points(20)
    found = diagnose(model_of(gaussian), x)
    prior = DiagonalGaussian(torch.zeros(2), torch.zeros(2))
    assert found.exact_dimensions
    assert found.rate_error == 0.0
    assert found.rate == pytest.approx(float(kl_divergence(gaussian(x), prior).mean()), rel=1e-6)
    assert float(found.kl_per_dimension.sum()) == pytest.approx(found.rate, rel=1e-6)
    assert found.elbo == -(found.rate + found.distortion)
    assert found.active_units == active_units(model_of(gaussian), x) == 2
    torch_own = Independent(Normal(torch.tensor([[1.0, 2.0]]), torch.tensor([0.5, 2.0])), 1)
    same = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    terms = kl_by_dimension(torch_own, same)
    assert terms is not None
    torch.testing.assert_close(terms.sum(-1), kl_divergence(torch_own, same))


def test_the_distortion_is_the_expected_likelihood_within_its_error() -> None:
    x, model = points(20), model_of(gaussian)
    found, more = diagnose(model, x), diagnose(model, x, num_samples=20_000, seed=1)
    assert more.distortion_error < found.distortion_error
    assert abs(found.distortion - more.distortion) < 4 * found.distortion_error


def test_mutual_information_is_log_n_for_separate_codes_and_zero_for_collapsed_ones() -> None:
    x = (torch.arange(16)[:, None] >> torch.arange(4) & 1).view(16, *SHAPE).float()  # all there are
    apart = diagnose(model_of(lambda x: DiagonalGaussian(100.0 * x.flatten(1), torch.zeros(4)), 4), x)
    assert apart.mutual_information == pytest.approx(math.log(16), abs=1e-6)
    collapsed = diagnose(model_of(lambda x: DiagonalGaussian(torch.zeros(len(x), 2), torch.zeros(2))), x)
    for value in (collapsed.mutual_information, collapsed.rate, collapsed.marginal_kl):
        assert value == pytest.approx(0.0, abs=1e-6)
    assert collapsed.active_units == 0


def test_mutual_information_of_two_codes_is_that_of_a_numerical_integral() -> None:
    """Two unit Gaussians at -1 and 1: I = H(mixture) - H(q)."""
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, *SHAPE)
    model = model_of(lambda x: DiagonalGaussian(2.0 * x.flatten(1)[:, :1] - 1.0, torch.zeros(1)), 1)
    found = diagnose(model, x, num_samples=20_000, num_pair_samples=20_000)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    mixture = 0.5 * (torch.exp(-0.5 * (z - 1) ** 2) + torch.exp(-0.5 * (z + 1) ** 2)) / math.sqrt(2 * math.pi)
    entropy = -float(torch.trapezoid(torch.xlogy(mixture, mixture), z))
    truth = entropy - 0.5 * math.log(2 * math.pi * math.e)
    assert abs(found.mutual_information - truth) < 4 * found.mutual_information_error
    assert found.mutual_information_error < 0.01


def test_a_flow_that_is_the_gaussian_gives_the_gaussians_figures() -> None:
    x = points(20)
    exact = diagnose(model_of(gaussian), x)
    found = diagnose(model_of(lambda x: Flow(gaussian(x), [])), x, num_samples=5000)
    assert not found.exact_dimensions
    assert found.rate_error > 0.0
    assert abs(found.rate - exact.rate) < 4 * found.rate_error
    torch.testing.assert_close(found.kl_per_dimension, exact.kl_per_dimension, atol=0.02, rtol=0.0)
    assert abs(found.mutual_information - exact.mutual_information) < 0.3


def test_few_samples_do_not_bias_the_kl_of_a_dimension_that_is_not_used() -> None:
    x = points(2).expand(2, *SHAPE).repeat(500, 1, 1, 1)
    found = diagnose(
        model_of(lambda x: Flow(DiagonalGaussian(torch.zeros(len(x), 2), torch.zeros(2)), [])), x, num_samples=16
    )
    assert found.kl_per_dimension.abs().max() < 0.01  # without the correction: 0.06


def test_the_marginals_of_a_full_covariance_are_exact() -> None:
    tril = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    found = diagnose(model_of(lambda x: FullGaussian(torch.zeros(len(x), 2), tril)), points(5))
    torch.testing.assert_close(found.kl_per_dimension, torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0.0)
    assert found.rate == pytest.approx(-math.log(0.6), rel=1e-5)
    assert found.rate_error == 0.0


@pytest.mark.parametrize("proposal", ["planar", "coupling", "iaf", "autoregressive"])
@pytest.mark.parametrize("prior", ["normal", {"name": "vamp", "num_components": 4}], ids=["normal", "vamp"])
def test_every_proposal_and_prior_can_be_diagnosed(proposal: str, prior: Any) -> None:
    torch.manual_seed(0)
    model = VAE(SHAPE, latent_size=3, hidden_sizes=(8,), proposal=proposal, prior=prior)
    before = torch.get_rng_state()
    found = diagnose(model, points(12), num_samples=16, batch_size=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < found.mutual_information + 0.1 < math.log(12) + 0.1
    assert found.kl_per_dimension.shape == (3,)
    assert json.loads(json.dumps(found.to_dict()))["latent_size"] == 3


def test_two_stochastic_layers_are_one_z() -> None:
    model = HierarchicalVAE(SHAPE, latent_sizes=(3, 2), hidden_sizes=((8,), (8,)))
    found = diagnose(model, points(12), num_samples=16)
    assert found.latent_size == 5
    assert "active units" in repr(found)
    assert "of 5" in repr(found)


def test_bad_input_is_refused() -> None:
    model = model_of(gaussian)
    with pytest.raises(ValueError, match="at least two datapoints"):
        diagnose(model, points(1))
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        diagnose(model, points(3), num_samples=1)
    with pytest.raises(ValueError, match="num_pair_samples must be at most num_samples, 3, got 4"):
        diagnose(model, points(3), num_samples=3)
    with pytest.raises(TypeError, match=r"lacks proposal|proposal\(x\), prior\(\) and likelihood"):
        diagnose(object(), points(3))
