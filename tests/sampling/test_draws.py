"""Draws by themselves: values, intervals of u and probabilities belong to one distribution."""

from itertools import product
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastvae.distributions import LogisticMixtureLikelihood
from fastvae.sampling.draw import Draw
from fastvae.sampling.likelihoods import adjusted, as_draw

COUNT = 300
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.4},
    {"temperature": 2.5},
    {"temperature": 1e-7},
    {"greedy": True},
]
# name -> (likelihood, channels, parameters of a pixel)
KINDS = {
    "bernoulli": ("bernoulli", 2, 2),
    "categorical": ("categorical", 2, 10),
    "grey mixture": (LogisticMixtureLikelihood(3, 6), 1, 9),
    "colour mixture": (LogisticMixtureLikelihood(3, 6), 3, 30),
}


def cases(kind: str, **how: Any) -> tuple[Draw, Tensor, Tensor, int]:
    """A draw with uniform numbers (COUNT, C) and parameters (COUNT, groups, P)."""
    likelihood, channels, maps = KINDS[kind]
    draw = adjusted(as_draw(likelihood, maps, channels), **how)
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(COUNT, draw.groups(channels), draw.num_params, generator=generator, dtype=torch.float64)
    return draw, torch.rand(COUNT, channels, generator=generator, dtype=torch.float64), params, channels


@pytest.mark.parametrize(
    ("kind", "how"), [*product(KINDS, SETTINGS), ("categorical", {"top_k": 3, "temperature": 0.4})], ids=str
)
def test_u_is_inside_the_interval_of_its_value_and_of_no_other(kind: str, how: dict[str, Any]) -> None:
    draw, u, params, channels = cases(kind, **how)
    x = draw.sample(draw.prepare(u), params)
    slack = draw.slack(u, x, params)
    assert slack.shape == x.shape
    assert bool((slack > 0).all())
    for channel in range(channels):
        other = x.clone()
        other[:, channel] = (x[:, channel] + 1) % draw.num_levels
        assert bool((draw.slack(u, other, params)[:, channel] < 0).all())


@pytest.mark.parametrize("how", [{}, {"temperature": 2.5}], ids=str)  # below 1 parameters may be closer
@pytest.mark.parametrize("kind", KINDS)
def test_the_slack_is_how_far_u_can_move(kind: str, how: dict[str, Any]) -> None:
    draw, u, params, _ = cases(kind, **how)
    x = draw.sample(draw.prepare(u), params)
    slack = draw.slack(u, x, params)
    for sign in (-1, 1):
        near = (u + sign * slack * (1 - 1e-6)).clamp(1e-12, 1 - 1e-12)
        assert torch.equal(draw.again(draw.prepare(near), params, x), x)
    steps = [(u + sign * slack * (1 + 1e-6)).clamp(1e-12, 1 - 1e-12) for sign in (-1, 1)]
    changed = [draw.again(draw.prepare(step), params, x) != x for step in steps]
    reached = slack.isfinite() & (slack < 0.999 * torch.minimum(u, 1 - u))
    assert bool((changed[0] | changed[1])[reached].all())
    assert reached.float().mean() > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_the_intervals_are_the_probabilities(kind: str) -> None:
    draw, u, params, _ = cases(kind)
    x = draw.sample(draw.prepare(u), params)
    low, high = draw.interval(x, params)
    torch.testing.assert_close((high.sigmoid() - low.sigmoid()).log(), draw.log_prob(x, params), rtol=1e-8, atol=1e-8)


def test_the_channels_of_a_colour_have_their_joint_distribution() -> None:
    family, count = LogisticMixtureLikelihood(2, 3), 100_000
    draw = as_draw(family, 20, 3)
    params = torch.randn(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    params[[4, 5, 10, 11, 16, 17]] -= 0.5  # scales
    u = torch.rand(count, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = draw.sample(u, params.expand(count, 1, 20))
    space = torch.tensor(list(product(range(3), repeat=3)), dtype=torch.float64)
    joint = family(params[:, None, None]).log_prob(space[:, :, None, None])
    torch.testing.assert_close(joint.exp().sum(), torch.ones((), dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(draw.log_prob(space, params.expand(27, 1, 20)).sum(1), joint, rtol=1e-9, atol=1e-9)
    counts = (x @ torch.tensor([9.0, 3.0, 1.0], dtype=torch.float64)).long().bincount(minlength=27)
    wanted = joint.exp() * count
    assert wanted.min() > 5
    assert stats.chisquare(counts.numpy(), (wanted / wanted.sum() * count).numpy()).pvalue > 1e-4


def test_known_channels_of_a_colour_decide_the_others() -> None:
    """Greedy blue given a red that only a light component explains."""
    draw = adjusted(as_draw(LogisticMixtureLikelihood(2, 5), 20, 3), greedy=True)
    params = torch.zeros(1, 20)
    params[0, 0] = 2.0  # the first component is heavier
    params[0, 2:4] = torch.tensor([-1.0, 1.0])  # means of red
    params[0, 14:16] = torch.tensor([-1.0, 1.0])  # means of blue
    params[0, [4, 5, 10, 11, 16, 17]] = -3.0
    free = draw.sample(torch.full((1, 3), 0.5), params[None])
    assert free.tolist() == [[0.0, 2.0, 0.0]]
    given = draw.complete(
        torch.full((1, 3), 0.5), params[None], torch.tensor([[True, False, False]]), torch.full((1, 3), 4.0)
    )
    assert given.tolist() == [[4.0, 2.0, 4.0]]
