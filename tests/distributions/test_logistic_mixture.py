"""The logistic mixture is normalised, samples what its probabilities say, and trains inside the models."""

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastvae import objectives
from fastvae.data import load
from fastvae.distributions import LogisticMixture, LogisticMixtureLikelihood, as_likelihood
from fastvae.models import VAE, PixelCNN, PixelVAE


def every_pixel(num_levels: int, channels: int) -> Tensor:
    values = list(itertools.product(range(num_levels), repeat=channels))
    return torch.tensor(values, dtype=torch.float64).view(-1, channels, 1, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_follow_the_probabilities(channels: int) -> None:
    levels, draws = 4, 20_000
    params = torch.randn((3 if channels == 1 else 10) * 2, 1, 1, dtype=torch.float64)
    distribution = LogisticMixture(params, 2, levels)
    assert distribution.event_shape == (channels, 1, 1)
    probs = distribution.log_prob(every_pixel(levels, channels)).exp()
    torch.testing.assert_close(probs.sum().item(), 1.0, rtol=1e-12, atol=0)
    samples = distribution.sample((draws,))
    places = levels ** torch.arange(channels - 1, -1, -1)
    counts = (samples.flatten(1).long() * places).sum(1).bincount(minlength=levels**channels).double()
    common = probs * draws > 5  # the condition of the test below
    counts = torch.cat([counts[common], counts[~common].sum()[None] + 1e-9])
    expected = torch.cat([probs[common], probs[~common].sum()[None]]) * draws + 1e-9
    assert stats.chisquare(counts.numpy(), (expected * counts.sum() / expected.sum()).numpy()).pvalue > 1e-4


def test_draws_have_the_shape_of_the_batch_and_the_levels_at_the_edges() -> None:
    params = torch.zeros(4, 6, 2, 3)
    params[:, 2:4] = torch.tensor([-3.0, 3.0]).view(2, 1, 1)  # means far outside: only the first and last level
    samples = LogisticMixture(params, 2, 17).sample((5,))
    assert samples.shape == (5, 4, 1, 2, 3)
    assert set(samples.unique().tolist()) <= set(range(17))
    params[:, 4:] = -8.0
    assert set(LogisticMixture(params, 2, 17).sample((5,)).unique().tolist()) == {0.0, 16.0}


def test_the_mean_is_exact_for_one_channel_and_close_for_three() -> None:
    for channels, tolerance in ((1, 1e-10), (3, 0.5)):
        params = torch.randn((3 if channels == 1 else 10) * 2, 1, 1, dtype=torch.float64)
        distribution = LogisticMixture(params, 2, 6)
        x = every_pixel(6, channels)
        want = (distribution.log_prob(x).exp().view(-1, 1, 1, 1) * x).sum(0)
        torch.testing.assert_close(distribution.mean, want, rtol=0, atol=tolerance)
        torch.testing.assert_close(distribution.mean[0], want[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_marginal_parameters_give_the_mean_and_spread_of_the_data(channels: int) -> None:
    x = torch.randint(0, 256, (400, channels, 2, 3)).float().mul(torch.tensor([1.0, 0.3, 0.0])).floor()
    family = LogisticMixtureLikelihood(5)
    distribution = family(family.marginal_params(x))
    torch.testing.assert_close(distribution.mean, x.mean(0), rtol=0, atol=4.0)
    uniform = -x[0].numel() * torch.tensor(256.0).log()
    assert (distribution.log_prob(x) > uniform).all()
    other = distribution.log_prob(x.where(x > 0, 200.0))
    assert (distribution.log_prob(x) > other + 4).all(), "where the data never change other values are improbable"
    few = family(family.marginal_params(x[:2]))
    assert torch.isfinite(few.log_prob(x[:2])).all(), "fewer data than components"


@pytest.mark.parametrize(
    ("family", "channels", "maps"), [(LogisticMixtureLikelihood(10), 3, 100), (LogisticMixtureLikelihood(4, 17), 1, 12)]
)
def test_families_count_their_maps_and_are_rebuilt(family: LogisticMixtureLikelihood, channels: int, maps: int) -> None:
    assert family.num_maps(channels) == maps
    again = as_likelihood(family.config())
    assert isinstance(again, LogisticMixtureLikelihood)
    assert again.config() == family.config()
    assert family(torch.zeros(2, maps, 4, 4)).sample().shape == (2, channels, 4, 4)


@pytest.mark.parametrize("model", [VAE, PixelVAE])
def test_models_train_on_digits(model: type[VAE | PixelVAE]) -> None:
    x = load("digits").train[:200].float()
    family = {"name": "logistic_mixture", "num_components": 3, "num_levels": 17}
    options = {"latent_size": 4, "hidden_sizes": (32,)} | ({"channels": 8} if model is PixelVAE else {})
    net = model((1, 8, 8), family, **options)
    if isinstance(net, VAE):
        net.start_at_marginals(x)
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = -objectives.elbo(net, x).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 5


def test_colour_models_have_one_map_for_each_parameter() -> None:
    family = {"name": "logistic_mixture", "num_components": 2}
    x = torch.randint(0, 256, (2, 3, 4, 4)).float()
    net = PixelCNN((3, 4, 4), family, channels=8, num_blocks=1)
    assert net(x).shape == (2, 20, 4, 4)
    assert net.log_prob(x).shape == (2,)
    vae = VAE((3, 4, 4), family, latent_size=2, hidden_sizes=(8,))
    assert vae.likelihood(torch.zeros(5, 2)).sample().shape == (5, 3, 4, 4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LogisticMixture(torch.zeros(7, 2, 2), 2), r"P = 6 for one channel or 20 for three, got \(7, 2, 2\)"),
        (lambda: LogisticMixture(torch.zeros(6, 2, 2), 0), "num_components must be at least 1, got 0"),
        (lambda: LogisticMixtureLikelihood(2, 1), "num_levels must be at least 2, got 1"),
        (lambda: LogisticMixtureLikelihood(2).num_maps(2), "1 or 3 channels for logistic_mixture, got 2"),
        (
            lambda: LogisticMixtureLikelihood(2).check(torch.full((1, 1, 2, 2), 256)),
            r"integer in 0\.\.255 .* such as 256",
        ),
        (
            lambda: LogisticMixture(torch.zeros(6, 2, 2), 2).log_prob(torch.full((1, 2, 2), 0.5)),
            "for a logistic_mixture likelihood, got values such as 0.5; pass integer levels",
        ),
        (lambda: LogisticMixture(torch.full((6, 2, 2), torch.nan), 2).sample(), "params must be finite"),
    ],
)
def test_bad_input(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
