"""Temperature, the most probable levels and the mode: of every likelihood, by every path, with their certificates."""

from typing import Any

import pytest
import torch
from networks_in_the_wild import MaskedWeight, plain, randomized
from scipy import stats
from torch import nn

from fastvae import compile_sampler
from fastvae.distributions import LogisticMixtureLikelihood
from fastvae.sampling import CertificateError, Sampler
from fastvae.sampling.certify import certify
from fastvae.sampling.likelihoods import adjusted, as_draw

NUM_SAMPLES = 20_000
MIXTURE = LogisticMixtureLikelihood(num_components=2, num_levels=7)
# likelihood, channels, channels of the network's output, its gain: a scale that grows with the values would explode
CASES = {
    "bernoulli": ("bernoulli", 2, 2, 2.0),
    "categorical": ("categorical", 2, 10, 0.8),
    "gaussian": ("gaussian", 2, 4, 0.5),
    "grey mixture": (MIXTURE, 1, 6, 1.0),
    "colour mixture": (MIXTURE, 3, 20, 1.0),
}


def sampler_of(case: str, rows: int = 5, columns: int = 6) -> Sampler:
    likelihood, channels, maps, gain = CASES[case]
    return compile_sampler(randomized(plain(channels, params=maps, first=3)[:-1], gain).append(
        randomized(nn.Conv2d(8, maps, 1), gain, seed=3)), (channels, rows, columns), likelihood)  # fmt: skip


def constant(logits: list[float], likelihood: Any, channels: int = 1) -> Sampler:
    """Every pixel has the same parameters."""
    model = MaskedWeight("A", channels, len(logits), 3, padding=1).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor(logits))
    return compile_sampler(model, (channels, 1, 1), likelihood)


def log_prob_of_the_model(sampler: Sampler, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        params = sampler.model(images)
    channels = images.shape[1]
    if sampler._engine.draw.joint:
        return MIXTURE(params).log_prob(images)
    params = params.unflatten(1, (channels, -1))
    if params.shape[2] == 1:
        found = torch.distributions.Bernoulli(logits=params[:, :, 0]).log_prob(images)
    elif params.shape[2] == 2:
        found = torch.distributions.Normal(params[:, :, 0], params[:, :, 1].exp()).log_prob(images)
    else:
        found = torch.distributions.Categorical(logits=params.movedim(2, -1)).log_prob(images)
    return found.flatten(1).sum(1)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.6}, {"temperature": 1.7}, {"greedy": True}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_planned_samples_are_naive_ones_with_their_certificate(case: str, how: dict[str, Any]) -> None:
    sampler = sampler_of(case)
    ours, naive = sampler(6, seed=2, verify=True, **how), sampler.naive(6, seed=2, **how)
    torch.testing.assert_close(ours.samples, naive.samples, rtol=1e-11, atol=1e-11 if case == "gaussian" else 0)
    assert (ours.certificate.mismatches, ours.certificate.values) == (0, ours.samples.numel())
    assert ours.samples.unique().numel() > (1 if case == "bernoulli" or "greedy" in how else 2)
    torch.testing.assert_close(ours.log_prob, log_prob_of_the_model(sampler, ours.samples))
    torch.testing.assert_close(ours.log_prob, naive.log_prob)
    assert torch.equal(sampler(6, seed=2).samples, sampler.naive(6, seed=2).samples) or case == "gaussian"  # no trace


@pytest.mark.parametrize("case", CASES)
def test_low_temperatures_approach_the_greedy_image(case: str) -> None:
    sampler = sampler_of(case)
    greedy = sampler(3, greedy=True)
    assert torch.equal(greedy.samples[0], greedy.samples[1])  # whatever the noise
    cold = sampler(3, temperature=1e-9, verify=True)
    torch.testing.assert_close(cold.samples, greedy.samples, rtol=1e-6, atol=1e-6)
    assert cold.certificate.ok
    torch.testing.assert_close(cold.log_prob, greedy.log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_logits_are_divided_by_the_temperature(temperature: float) -> None:
    logits = [0.3, -1.0, 1.2, 0.0]
    for likelihood, given in (("bernoulli", logits[2:3]), ("categorical", logits)):
        draws = constant(given, likelihood)(NUM_SAMPLES, temperature=temperature).samples.flatten().long().bincount()
        full = torch.tensor([0.0, *given]) if likelihood == "bernoulli" else torch.tensor(given)
        wanted = (full / temperature).softmax(0).double()
        assert stats.chisquare(draws.numpy(), (wanted / wanted.sum() * NUM_SAMPLES).numpy()).pvalue > 1e-4


def test_scales_are_multiplied_by_the_temperature() -> None:
    x = constant([3.0, -1.0], "gaussian")(NUM_SAMPLES, temperature=0.25).samples.flatten()
    assert stats.kstest(((x - 3.0) / (0.25 * 0.36787944)).numpy(), "norm").pvalue > 1e-4
    temperature, params = 0.5, torch.tensor([0.4, -0.4, -0.6, 0.5, -1.0, -2.0]).double()
    x = constant(params.tolist(), MIXTURE)(NUM_SAMPLES, temperature=temperature).samples.flatten().long()
    logits, means, log_scales = params.chunk(3)
    cooled = torch.cat([logits / temperature, means, log_scales + torch.tensor(temperature).log()])[:, None, None]
    wanted = MIXTURE(cooled).log_prob(torch.arange(7.0).view(7, 1, 1, 1)).exp()
    kept = wanted * NUM_SAMPLES > 5
    counts = torch.cat([x.bincount(minlength=7)[kept], x.bincount(minlength=7)[~kept].sum()[None]]).double()
    wanted = torch.cat([wanted[kept], wanted[~kept].sum()[None] + 1e-9])
    assert stats.chisquare(counts.numpy(), (wanted / wanted.sum() * NUM_SAMPLES).numpy()).pvalue > 1e-4


def test_only_the_most_probable_levels_are_drawn() -> None:
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, -2.0])
    out = constant(logits.tolist(), "categorical")(NUM_SAMPLES, top_k=3, temperature=1.5, verify=True)
    counts = out.samples.flatten().long().bincount(minlength=5)
    assert counts[1] == counts[4] == 0
    wanted = (logits / 1.5)[[0, 2, 3]].softmax(0).double()
    assert stats.chisquare(counts[[0, 2, 3]].numpy(), (wanted / wanted.sum() * NUM_SAMPLES).numpy()).pvalue > 1e-4
    assert out.certificate.mismatches == 0
    sampler = sampler_of("categorical")
    ours, naive = sampler(6, top_k=2, verify=True), sampler.naive(6, top_k=2)
    assert torch.equal(ours.samples, naive.samples)
    assert torch.equal(sampler(6, top_k=1).samples, sampler(6, greedy=True).samples)
    assert torch.equal(sampler(6, top_k=5).samples, sampler(6).samples)
    torch.testing.assert_close(ours.log_prob, log_prob_of_the_model(sampler, ours.samples))


def test_u_next_to_one_never_draws_a_level_of_probability_zero() -> None:
    draw = adjusted(as_draw("categorical", 300, 1), top_k=7)
    params = torch.randn(2000, 1, 300, generator=torch.Generator().manual_seed(0))
    for u in (1.0 - 2.0**-24, 2.0**-30):
        drawn = draw.sample(torch.full((2000, 1), u), params).long()
        assert bool((params.gather(-1, drawn[..., None]) >= params.topk(7).values[..., -1:]).all())


@pytest.mark.parametrize("how", [{"temperature": 0.5}, {"greedy": True}, {"top_k": 2}], ids=str)
def test_another_setting_than_that_of_the_samples_is_caught(how: dict[str, Any]) -> None:
    sampler = sampler_of("categorical")
    noise = torch.rand(6, 2, 5, 6, dtype=torch.float64)
    out = sampler(6, noise=noise, **how)
    right = adjusted(sampler._engine.draw, **how)
    assert certify(sampler.model, right, out.samples, noise).ok
    wrong = certify(sampler.model, sampler._engine.draw, out.samples, noise)
    assert wrong.unexplained > 20
    assert "NOT EXACT" in str(CertificateError(wrong))


@pytest.mark.parametrize("how", [{"temperature": 1e-6}, {"greedy": True}, {"top_k": 1}], ids=str)
def test_rounding_that_decides_a_tie_is_explained(how: dict[str, Any]) -> None:
    draw = adjusted(as_draw("categorical", 3, 1), **how)
    model = MaskedWeight("A", 1, 3, 3, padding=1)
    with torch.no_grad():
        model.weight.zero_()
        for difference, explained in ((1e-6, True), (1e-2, False)):
            model.bias.copy_(torch.tensor([0.5, 0.5 + difference, -9.0]))
            x, u = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5)  # level 1 by a hair
            certificate = certify(model, draw, x, u)
            assert certificate.mismatches == 1
            assert certificate.ok is explained, (difference, certificate)
            assert not certify(model, draw, x + 2, u).ok


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0; greedy=True is the limit"),
        ({"temperature": float("nan")}, ValueError, "temperature must be positive"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
        ({"greedy": 1}, TypeError, "greedy must be a bool, got 1"),
        ({"greedy": True, "temperature": 0.5}, ValueError, "give no temperature and no top_k"),
        ({"top_k": 6}, ValueError, r"top_k must be in \[1, 6\), got 6"),
        ({"top_k": 0.5}, TypeError, "top_k must be an integer"),
    ],
)
def test_settings_that_make_no_sense_are_named(how: dict[str, Any], error: type[Exception], says: str) -> None:
    for call in (sampler_of("categorical"), sampler_of("categorical").naive):
        with pytest.raises(error, match=says):
            call(2, **how)


def test_settings_that_a_likelihood_does_not_have_are_named() -> None:
    with pytest.raises(ValueError, match="top_k is for the likelihood 'categorical', this model's is 'bernoulli'"):
        sampler_of("bernoulli")(2, top_k=1)
    own = compile_sampler(randomized(plain(first=3)), (1, 4, 4), lambda u, params: (u < params[..., 0].sigmoid()) * 1.0)
    with pytest.raises(ValueError, match="temperature is not defined for a likelihood that is a callable"):
        own(2, temperature=0.5)
    with pytest.raises(ValueError, match="greedy is not defined"):
        own(2, greedy=True)
