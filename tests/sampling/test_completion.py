"""Completion: known values stay, the others are drawn given what comes before them, and no step is walked in vain."""

from typing import Any

import numpy as np
import pytest
import torch
from networks_in_the_wild import STYLES, Balanced, plain, randomized
from torch import Tensor

from fastvae import compile_sampler
from fastvae.distributions import LogisticMixtureLikelihood
from fastvae.sampling import CertificateError, Sampler

SHAPE = (9, 8)
MIXTURE = LogisticMixtureLikelihood(num_components=2, num_levels=7)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def binary(rows: int = 9, columns: int = 8, style: str = "masked weight") -> Sampler:
    model = Balanced(randomized(STYLES[style](rows, columns)), rows, columns)
    return compile_sampler(model, (1, rows, columns), "bernoulli")


def colours() -> Sampler:
    model = randomized(plain(channels=3, params=1, first=3)[:-1]).append(randomized(torch.nn.Conv2d(8, 20, 1), seed=3))
    return compile_sampler(model, (3, 5, 6), MIXTURE)


MASKS = {
    "upper half": lambda: torch.arange(9)[:, None].expand(9, 8)[None, None] < 4,
    "lower half": lambda: torch.arange(9)[:, None].expand(9, 8)[None, None] > 4,
    "left half": lambda: torch.arange(8).expand(9, 8)[None, None] < 4,
    "ring": lambda: (torch.arange(9) - 4).abs()[:, None].maximum((torch.arange(8) - 4).abs())[None, None] > 1,
    "two holes": lambda: torch.ones(1, 1, 9, 8).index_put(
        (torch.tensor(0), torch.tensor(0), torch.tensor([1, 7]), torch.tensor([2, 5])), torch.tensor(0.0)) > 0,
    "anywhere": lambda: random(6, 1, 9, 8) < 0.6,
    "none": lambda: torch.zeros(1, 1, 9, 8, dtype=torch.bool),
    "all": lambda: torch.ones(1, 1, 9, 8, dtype=torch.bool),
    "all of some images": lambda: torch.arange(6)[:, None, None, None].expand(6, 1, 9, 8) < 4,
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("style", ["masked weight", "gated stacks", "shift and crop"])
def test_completions_are_those_of_naive_sampling(style: str, name: str) -> None:
    sampler, mask = binary(style=style), MASKS[name]()
    values = random(6, 1, *SHAPE, seed=1).round()
    blank = torch.where(mask, values, torch.nan)  # what is unknown does not count
    ours = sampler(6, seed=5, observed=(mask, blank), verify=True)
    naive = sampler.naive(6, seed=5, observed=(mask, values))
    known = mask.expand(6, 1, *SHAPE)
    assert torch.equal(ours.samples, naive.samples)
    assert torch.equal(ours.samples[known], values[known])
    assert (ours.certificate.values, ours.certificate.mismatches) == (int((~known).sum()), 0)
    with torch.no_grad():
        each = torch.distributions.Bernoulli(logits=sampler.model(ours.samples)).log_prob(ours.samples)
    torch.testing.assert_close(ours.log_prob, each.masked_fill(known, 0.0).flatten(1).sum(1))
    torch.testing.assert_close(ours.log_prob, naive.log_prob)
    assert torch.equal(sampler(6, seed=5).samples, sampler.naive(6, seed=5).samples)  # nothing stays known


def test_nothing_observed_is_sampling_and_everything_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = binary()
    values = random(2, 1, *SHAPE).round()
    mask = torch.zeros(1, 1, *SHAPE, dtype=torch.bool)
    assert torch.equal(sampler(2, observed=(mask, values)).samples, sampler(2).samples)
    monkeypatch.setattr(type(sampler.model), "forward", None)
    monkeypatch.setattr("fastvae.sampling.backends.Program", None)
    out = sampler(2, observed=(~mask, values))
    assert torch.equal(out.samples, values)
    assert out.log_prob.tolist() == [0.0, 0.0]


def test_steps_without_unknown_pixels_are_not_walked() -> None:
    plan, steps = binary().plan, {}
    for name in ("upper half", "lower half", "two holes", "none"):
        unknown = ~MASKS[name]()[0, 0]
        steps[name] = plan.steps_for(unknown[None].numpy())
        assert plan.only(unknown[None].numpy()).num_steps == len(steps[name])
    assert plan.skew == 4
    assert steps["upper half"] == tuple(range(16, 40))
    assert steps["lower half"] == tuple(range(24))  # the last unknown pixel is (4, 7)
    assert steps["two holes"] == (6, 33)
    assert steps["none"] == tuple(range(40))


def test_the_steps_before_the_first_unknown_pixel_are_one_pass() -> None:
    sampler = binary()
    mask, values = MASKS["upper half"](), random(3, 1, *SHAPE).round()
    sampler(3, observed=(mask, values))
    program = next(reversed(sampler._engine.programs.values()))
    whole = compile_sampler(sampler.model, (1, *SHAPE), "bernoulli")
    whole(3)
    operators = len(whole._engine.programs[3]._steps[20][0])
    assert len(program._steps) == 24
    assert len(program._steps[0][0]) <= operators + 2  # as many calls as any other step


def test_poisoned_caches_leave_no_trace() -> None:
    sampler, values = binary(), random(3, 1, *SHAPE).round()
    for name in ("ring", "upper half", "anywhere"):
        mask = MASKS[name]()[:1]
        first = sampler(3, observed=(mask, values))
        program = next(reversed(sampler._engine.programs.values()))
        for storage in [*program._storage.values(), program._noise, *program._scratch.values()]:
            storage[1:] = torch.nan  # row 0 stands for the outside
        again = sampler(3, observed=(mask, values), verify=True)
        assert torch.equal(first.samples, again.samples)
        assert torch.equal(first.log_prob, again.log_prob)


def test_masks_with_the_same_steps_do_not_share_what_they_skip() -> None:
    sampler, values = binary(), random(2, 1, *SHAPE).round()
    first, last = torch.ones(2, 1, 1, *SHAPE, dtype=torch.bool)
    first[..., 5, 0] = last[..., 5, 0] = last[..., 4, 4] = False  # these pixels share a step
    for mask in (first, last, first):
        out = sampler(2, observed=(mask, values), verify=True)
        assert torch.equal(out.samples, sampler.naive(2, observed=(mask, values)).samples)
        program = next(reversed(sampler._engine.programs.values()))
        for storage in program._storage.values():
            storage[1:] = torch.nan
    assert len(sampler._engine.programs) == 2


def test_channels_can_be_known_one_by_one() -> None:
    sampler = colours()
    values = (random(4, 3, 5, 6, seed=1) * 6.99).floor()
    mask = random(4, 3, 5, 6, seed=2) < 0.5
    ours = sampler(4, seed=1, observed=(mask, values.masked_fill(~mask, torch.nan)), verify=True)
    naive = sampler.naive(4, seed=1, observed=(mask, values))
    assert torch.equal(ours.samples, naive.samples)
    assert torch.equal(ours.samples[mask], values[mask])
    torch.testing.assert_close(ours.log_prob, naive.log_prob)
    assert (ours.certificate.values, ours.certificate.mismatches) == (int((~mask).sum()), 0)
    only_red = torch.tensor([True, False, False])[None, :, None, None].expand(1, 3, 5, 6)
    for how in ({"greedy": True}, {"temperature": 0.3}, {"temperature": 1e-9}):
        ours = sampler(4, observed=(only_red, values), verify=True, **how)
        assert torch.equal(ours.samples, sampler.naive(4, observed=(only_red, values), **how).samples)
        assert ours.certificate.mismatches == 0


def test_log_prob_is_that_of_the_unknown_part_given_the_known() -> None:
    """Of a small image whose first rows are known, by enumeration."""
    sampler = binary(3, 2)
    mask = torch.arange(3)[:, None].expand(3, 2)[None, None] < 2
    start = random(1, 1, 3, 2, seed=4).round()
    out = sampler(200, observed=(mask, start))
    ends = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 2)
    space = start.repeat(4, 1, 1, 1)
    space[:, 0, 2] = ends
    with torch.no_grad():
        joint = torch.distributions.Bernoulli(logits=sampler.model(space)).log_prob(space).flatten(1).sum(1)
    wanted = joint - joint.logsumexp(0)
    index = (out.samples[:, 0, 2] @ torch.tensor([2.0, 1.0], dtype=torch.float64)).long()
    torch.testing.assert_close(out.log_prob, wanted[index])


def test_a_naively_sampled_model_completes_too() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = binary().model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).sort(1).values  # of one channel: no change, and not in the vocabulary

    sampler = compile_sampler(Odd(), (1, *SHAPE), "bernoulli", fallback="naive")
    assert sampler.plan is None
    observed = (MASKS["ring"](), random(3, 1, *SHAPE).round())
    out = sampler(3, observed=observed, verify=True, temperature=0.7)
    assert torch.equal(out.samples, binary()(3, observed=observed, temperature=0.7).samples)


@pytest.mark.parametrize("likelihood", ["gaussian", lambda u, params: params[..., 0] + torch.logit(u)])
def test_continuous_values_are_completed(likelihood: Any) -> None:
    sampler = compile_sampler(randomized(plain(params=2, first=3), gain=0.5), (1, *SHAPE), likelihood)
    mask, values = MASKS["anywhere"](), torch.randn(6, 1, *SHAPE, dtype=torch.float64)
    ours, naive = sampler(6, observed=(mask, values), verify=True), sampler.naive(6, observed=(mask, values))
    assert torch.equal(ours.samples[mask], values[mask])
    torch.testing.assert_close(ours.samples, naive.samples, rtol=1e-10, atol=1e-10)
    certificate = ours.certificate
    assert (certificate.values, certificate.mismatches) == (int((~mask).sum()), 0)
    assert certificate.difference < 1e-10
    assert "largest difference" in str(certificate)
    if likelihood == "gaussian":
        torch.testing.assert_close(ours.log_prob, naive.log_prob)
    else:
        assert ours.log_prob is naive.log_prob is None


MUTANTS = {
    "a step too late": lambda steps: tuple(s + 1 for s in steps[:-1]) + steps[-1:],
    "a step left out": lambda steps: steps[:5] + steps[6:],
    "stopped a step early": lambda steps: steps[:-1],
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_choice_of_steps_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, values = binary(), random(16, 1, *SHAPE).round()
    right = type(sampler.plan).steps_for
    monkeypatch.setattr(type(sampler.plan), "steps_for", lambda plan, unknown: MUTANTS[name](right(plan, unknown)))
    with pytest.raises(CertificateError, match="NOT EXACT"):
        sampler(16, observed=(MASKS["upper half"](), values), verify=True)


def test_a_known_pixel_that_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, values = binary(), random(16, 1, *SHAPE).round()
    monkeypatch.setattr(
        "fastvae.sampling.draw.Bernoulli.complete", lambda self, noise, params, known, x: self.sample(noise, params)
    )
    with pytest.raises(CertificateError, match="NOT EXACT"):
        sampler(16, observed=(MASKS["left half"](), values), verify=True)


VALUES = torch.zeros(1, 1, *SHAPE)
KNOWN = torch.ones(1, 1, *SHAPE, dtype=torch.bool)


@pytest.mark.parametrize(
    ("observed", "error", "says"),
    [
        (VALUES, TypeError, r"observed must be a pair \(mask, values\) of tensors, got Tensor"),
        ((KNOWN,), TypeError, "must be a pair"),
        ((KNOWN, np.zeros((1, 1, 9, 8))), TypeError, "observed: the values must be a torch.Tensor, got ndarray"),
        ((KNOWN.float(), VALUES), TypeError, "observed: the mask must be boolean, True for known values"),
        ((KNOWN[0], VALUES), ValueError, r"observed: the mask must have shape \(3, 1, 9, 8\), or 1 in place of 3"),
        ((KNOWN.expand(2, 1, 9, 8), VALUES), ValueError, r"got \(2, 1, 9, 8\)"),
        ((KNOWN, VALUES[:, :, :5]), ValueError, "observed: the values must have shape"),
        ((KNOWN, VALUES / 0), ValueError, "known must be finite"),
        ((KNOWN, VALUES + 0.5), ValueError, r"known values must be integers in 0..1 for likelihood 'bernoulli'"),
    ],
)
def test_bad_observations_are_named(observed: Any, error: type[Exception], says: str) -> None:
    sampler = binary()
    for call in (sampler, sampler.naive):
        with pytest.raises(error, match=says):
            call(3, observed=observed)
