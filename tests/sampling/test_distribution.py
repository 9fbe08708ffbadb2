"""Samples have the model's distribution: every image of a small space is enumerated and counted."""

from itertools import product

import pytest
import torch
from networks_in_the_wild import MaskedWeight, randomized
from scipy import stats
from torch import nn

from fastvae import compile_sampler
from fastvae.distributions import LogisticMixtureLikelihood

NUM_SAMPLES = 100_000


def network(params: int) -> nn.Module:
    return randomized(
        nn.Sequential(MaskedWeight("A", 1, 8, 3, padding=1), nn.Tanh(), MaskedWeight("B", 8, params, 3, padding=1)),
        gain=0.7,
    ).float()


def log_probs(model: nn.Module, images: torch.Tensor, levels: int) -> torch.Tensor:
    """Teacher-forced, from the definition."""
    with torch.no_grad():
        logits = model(images)
    if levels == 2:
        return torch.distributions.Bernoulli(logits=logits).log_prob(images).flatten(1).sum(1)
    categorical = torch.distributions.Categorical(logits=logits.movedim(1, -1))
    return categorical.log_prob(images[:, 0]).flatten(1).sum(1)


@pytest.mark.parametrize(("rows", "columns", "levels", "name"), [(2, 3, 2, "bernoulli"), (2, 2, 4, "categorical")])
def test_frequencies_of_all_images_are_their_probabilities(rows: int, columns: int, levels: int, name: str) -> None:
    model = network(1 if levels == 2 else levels)
    space = torch.tensor(list(product(range(levels), repeat=rows * columns)), dtype=torch.float32)
    wanted = log_probs(model, space.view(-1, 1, rows, columns), levels).double().exp()
    torch.testing.assert_close(wanted.sum(), torch.ones((), dtype=torch.float64), rtol=1e-5, atol=0)
    out = compile_sampler(model, (1, rows, columns), name)(NUM_SAMPLES, seed=11)
    places = levels ** torch.arange(rows * columns - 1, -1, -1)
    counts = (out.samples.flatten(1).long() * places).sum(1).bincount(minlength=len(space))
    assert wanted.min() * NUM_SAMPLES > 5  # the condition of the test below
    assert stats.chisquare(counts.numpy(), (wanted / wanted.sum() * NUM_SAMPLES).numpy()).pvalue > 1e-4


@pytest.mark.parametrize(("levels", "name"), [(2, "bernoulli"), (4, "categorical")])
def test_the_log_probability_is_the_teacher_forced_one(levels: int, name: str) -> None:
    model = network(1 if levels == 2 else levels)
    out = compile_sampler(model, (1, 6, 5), name)(20)
    torch.testing.assert_close(out.log_prob, log_probs(model, out.samples, levels), rtol=1e-5, atol=1e-5)


def test_draws_of_a_logistic_mixture_follow_its_probabilities() -> None:
    family = LogisticMixtureLikelihood(num_components=2, num_levels=6)
    model = MaskedWeight("A", 1, 6, 3, padding=1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.5, -0.5, -0.6, 0.4, -1.0, -2.0]))
    out = compile_sampler(model, (1, 1, 1), family)(NUM_SAMPLES)
    probs = family(model.bias.detach()[:, None, None]).log_prob(torch.arange(6.0).view(6, 1, 1, 1)).exp().double()
    counts = out.samples.flatten().long().bincount(minlength=6).numpy()
    assert stats.chisquare(counts, (probs / probs.sum() * NUM_SAMPLES).numpy()).pvalue > 1e-4


def test_gaussian_draws_have_their_mean_and_scale() -> None:
    model = MaskedWeight("A", 1, 2, 3, padding=1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([3.0, -1.0]))
        model.weight[0, 0, 1, 0] = 0.5  # the mean follows the left neighbour
    out = compile_sampler(model, (1, 1, 2), "gaussian")(NUM_SAMPLES)
    left, right = out.samples[:, 0, 0].unbind(1)
    noise = torch.cat([left - 3.0, right - 3.0 - 0.5 * left]) / torch.exp(torch.tensor(-1.0))
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-4
    normal = torch.distributions.Normal(torch.stack([torch.full_like(left, 3.0), 3.0 + 0.5 * left], 1), 0.36787944)
    torch.testing.assert_close(out.log_prob, normal.log_prob(out.samples[:, 0, 0]).sum(1), rtol=1e-4, atol=1e-4)
