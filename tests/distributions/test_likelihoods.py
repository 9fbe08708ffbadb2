"""Likelihoods are normalised, exact at the edges, and refuse data outside their support."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal

from fastvae.distributions import (
    Bernoulli,
    BernoulliLikelihood,
    Categorical,
    CategoricalLikelihood,
    Gaussian,
    GaussianLikelihood,
    as_likelihood,
    checked_data,
    likelihood,
)


def every_image(num_levels: int, shape: tuple[int, int, int]) -> torch.Tensor:
    size = math.prod(shape)
    return torch.tensor(list(itertools.product(range(num_levels), repeat=size)), dtype=torch.float64).view(-1, *shape)


def test_bernoulli_sums_to_one_over_its_support() -> None:
    logits = 5 * torch.randn(1, 2, 2, 2, dtype=torch.float64)
    total = Bernoulli(logits).log_prob(every_image(2, (2, 2, 2))).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_levels", [2, 3, 7])
def test_categorical_sums_to_one_over_its_support(num_levels: int) -> None:
    logits = 5 * torch.randn(1, 1, num_levels, 2, 2, dtype=torch.float64)
    total = Categorical(logits).log_prob(every_image(num_levels, (1, 2, 2))).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.float64), rtol=1e-12, atol=0)


def test_gaussian_density_has_the_constant_of_the_data_size() -> None:
    mean, log_scale = torch.randn(4, 1, 5, 3, dtype=torch.float64), torch.randn(4, 1, 5, 3, dtype=torch.float64)
    x = torch.randn(4, 1, 5, 3, dtype=torch.float64)
    want = Independent(Normal(mean, log_scale.exp()), 3).log_prob(x)
    torch.testing.assert_close(Gaussian(mean, log_scale).log_prob(x), want)
    shared = torch.tensor(-1.3, dtype=torch.float64)
    want = Independent(Normal(mean, shared.exp()), 3).log_prob(x)
    torch.testing.assert_close(Gaussian(mean, shared).log_prob(x), want)


def test_bernoulli_keeps_extreme_logits() -> None:
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4]).view(1, 1, 2, 2)
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(Bernoulli(logits).log_prob(x), torch.tensor([-1e4]))


@settings(deadline=None, max_examples=30)
@given(samples=st.integers(0, 3), batch=st.integers(0, 3), channels=st.integers(1, 3), side=st.integers(1, 4))
def test_log_prob_broadcasts_samples_against_datapoints(samples: int, batch: int, channels: int, side: int) -> None:
    shape = (channels, side, side)
    x = torch.randint(0, 2, (batch, *shape))
    params = torch.randn(samples, batch, 2 * channels, side, side)
    distribution = CategoricalLikelihood(2)(params)
    together = distribution.log_prob(x)
    assert together.shape == (samples, batch)
    logits = params.view(samples, batch, channels, 2, side, side)
    binary = Bernoulli(logits[:, :, :, 1] - logits[:, :, :, 0]).log_prob(x.float())
    torch.testing.assert_close(together, binary, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "x", "says"),
    [
        (BernoulliLikelihood(), torch.full((1, 1, 2, 2), 0.5), "must be 0 or 1 .* got values such as 0.5; binarise"),
        (BernoulliLikelihood(), torch.full((1, 1, 2, 2), 255), "got values such as 255"),
        (CategoricalLikelihood(4), torch.full((1, 1, 2, 2), 4), r"integer in 0\.\.3 .* got values such as 4"),
        (CategoricalLikelihood(4), torch.full((1, 1, 2, 2), 0.25), "got values such as 0.25; pass integer levels"),
        (CategoricalLikelihood(4), torch.full((1, 1, 2, 2), float("nan")), "got values such as nan"),
    ],
)
def test_data_outside_the_support_is_an_error_that_names_a_value(family, x: torch.Tensor, says: str) -> None:
    params = torch.zeros(1, family.num_params, 2, 2)
    with pytest.raises(ValueError, match=says):
        family(params).log_prob(x)
    with pytest.raises(ValueError, match=says):
        family.check(x)


@pytest.mark.parametrize("name", ["categorical", "logistic_mixture"])
def test_bytes_have_256_levels(name: str) -> None:
    family = likelihood(name, num_levels=256)
    x = torch.tensor([0, 5, 254, 255]).view(1, 1, 2, 2)
    params = torch.randn(1, family.num_maps(1), 2, 2)
    torch.testing.assert_close(family(params).log_prob(x.byte()), family(params).log_prob(x))


def test_shapes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 1, 2, 2\).*got \(3, 1, 2, 3\)"):
        Bernoulli(torch.zeros(3, 1, 2, 2)).log_prob(torch.zeros(3, 1, 2, 3))
    with pytest.raises(ValueError, match=r"broadcasts with \(3,\), got \(2, 1, 2, 2\)"):
        Bernoulli(torch.zeros(3, 1, 2, 2)).log_prob(torch.zeros(2, 1, 2, 2))
    with pytest.raises(ValueError, match="multiple of 17 channels"):
        CategoricalLikelihood(17)(torch.zeros(3, 16, 2, 2))


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "gaussian", "logistic_mixture"])
def test_families_are_rebuilt_from_their_config(name: str) -> None:
    family = likelihood(name, **({"num_levels": 17} if name == "categorical" else {}))
    again = as_likelihood(family.config())
    assert type(again) is type(family)
    assert again.config() == family.config()
    assert as_likelihood(family) is family


def test_unknown_families_are_errors() -> None:
    with pytest.raises(ValueError, match=r"one of .*'bernoulli'.* got 'poisson'"):
        likelihood("poisson")
    with pytest.raises(TypeError, match="got 3"):
        as_likelihood(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be positive and finite, got 0"):
        GaussianLikelihood(0.0)


def test_samples_follow_the_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 5, 2, 1)
    draws = Categorical(logits).sample((20000,))
    assert draws.shape == (20000, 1, 1, 2, 1)
    for level in range(5):
        frequency = (draws == level).double().mean(0)[0, 0]
        want = logits.softmax(2)[0, 0, level].double()
        assert ((frequency - want).abs() < 5 * (want * (1 - want) / 20000).sqrt()).all()
    torch.testing.assert_close(Categorical(logits).mean, draws.mean(0), rtol=0, atol=0.06)


def test_marginal_parameters_give_the_frequencies_of_the_data() -> None:
    x = torch.randint(0, 4, (500, 2, 3, 3))
    params = CategoricalLikelihood(4).marginal_params(x)
    probs = CategoricalLikelihood(4)(params).logits.softmax(-3)
    torch.testing.assert_close(probs[:, 2], (x == 2).float().mean(0), rtol=0, atol=5e-3)
    binary = (x > 1).float()
    params = BernoulliLikelihood().marginal_params(binary)
    torch.testing.assert_close(params.sigmoid(), binary.mean(0), rtol=0, atol=5e-3)
    torch.testing.assert_close(GaussianLikelihood().marginal_params(binary), binary.mean(0))


def test_scaling_maps_the_support_to_minus_one_and_one() -> None:
    assert CategoricalLikelihood(17).scale(torch.tensor([0, 8, 16])).tolist() == [-1.0, 0.0, 1.0]
    assert BernoulliLikelihood().scale(torch.tensor([0.0, 1.0])).tolist() == [-1.0, 1.0]
    assert GaussianLikelihood().scale(torch.tensor([0.0, 1.0], dtype=torch.float64)).dtype == torch.float64


def test_gaussian_data_must_be_finite_numbers_of_any_size() -> None:
    gaussian = Gaussian(torch.zeros(1, 1, 2, 2), torch.tensor(0.0))
    assert torch.isfinite(gaussian.log_prob(torch.full((1, 1, 2, 2), -3.0))), "its own samples may leave [0, 1]"
    with pytest.raises(ValueError, match="must be finite for a gaussian likelihood, got values such as nan"):
        gaussian.log_prob(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(TypeError, match=r"must be floating point .* got torch.uint8; dequantise"):
        gaussian.log_prob(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("family", [BernoulliLikelihood(), CategoricalLikelihood(3), GaussianLikelihood("pixel")])
def test_broken_parameters_are_not_sampled_from(family) -> None:
    params = torch.zeros(1, family.num_params, 2, 2)
    params[..., 0, 0] = torch.nan
    with pytest.raises(ValueError, match="must be finite, got nan or infinity: check the model's weights"):
        family(params).sample()


def test_data_can_be_declared_as_checked() -> None:
    grey = torch.full((1, 1, 2, 2), 0.5)
    with checked_data():
        assert Bernoulli(torch.zeros(1, 1, 2, 2)).log_prob(grey).shape == (1,)
    with pytest.raises(ValueError, match="must be 0 or 1"):
        Bernoulli(torch.zeros(1, 1, 2, 2)).log_prob(grey)
