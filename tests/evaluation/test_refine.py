"""Refined proposals: the posterior where it is known, the same in any batch, and nothing touched but the proposal."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, LogNormal, Normal

import fastvae
from fastvae.distributions import DiagonalGaussian
from fastvae.evaluation import refine
from fastvae.evaluation.refine import Refined
from fastvae.models import VAE

LOADINGS = torch.tensor([[1.5, 0.0], [0.0, 0.7], [0.0, 0.0]], dtype=torch.float64)  # x = W z + e, z and e standard


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    return Normal(z @ LOADINGS.T, 1.0).log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1)


def posterior(x: Tensor) -> DiagonalGaussian:
    precision = 1.0 + LOADINGS.square().sum(0)
    return DiagonalGaussian(x @ LOADINGS / precision, (-0.5 * precision.log()).expand(len(x), 2))


def log_marginal(x: Tensor) -> Tensor:
    return Normal(0.0, (1.0 + LOADINGS.square().sum(1)).sqrt()).log_prob(x).sum(-1)


def far_off(x: Tensor) -> DiagonalGaussian:
    exact = posterior(x)
    return DiagonalGaussian(exact.loc + torch.tensor([1.0, -2.0]), exact.log_scale + torch.tensor([-1.5, 1.0]))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 3, dtype=torch.float64) * 1.5


def assert_equal(q: Distribution, other: Distribution, **tolerance: float) -> None:
    torch.testing.assert_close(q.mean, other.mean, **tolerance)
    torch.testing.assert_close(q.stddev, other.stddev, **tolerance)


def test_the_posterior_is_found_from_far_off(x: Tensor) -> None:
    """And exactly: where q is the posterior the gradient has no noise."""
    better = refine(far_off(x), log_joint, x, steps=600)
    assert isinstance(better, DiagonalGaussian)
    assert_equal(better, posterior(x), rtol=0, atol=2e-3)


def test_a_datapoint_is_refined_alike_in_any_batch(x: Tensor) -> None:
    ids = torch.arange(7) + 100
    whole = refine(far_off(x), log_joint, x, ids, seed=3, steps=20)
    for part in (slice(0, 1), slice(3, 7)):
        alone = refine(far_off(x[part]), log_joint, x[part], ids[part], seed=3, steps=20)
        assert_equal(alone, DiagonalGaussian(whole.loc[part], whole.log_scale[part]))
    assert_equal(refine(far_off(x), log_joint, x, ids, seed=3, steps=20, max_rows=20), whole)
    rows = []
    options: dict[str, Any] = {"log_joint": log_joint, "x": x, "ids": ids, "seed": 3, "steps": 20}
    refined = Refined(far_off, 2, 40, advance=rows.append, **options)  # two at a time, from groups of four
    for start in range(0, 7, 2):
        points = slice(start, min(start + 2, 7))
        assert_equal(refined(points), DiagonalGaussian(whole.loc[points], whole.log_scale[points]))
    assert rows == [32] * 20 + [24] * 20
    assert not torch.equal(refine(far_off(x), log_joint, x, ids, seed=4, steps=20).mean, whole.mean)
    assert not torch.equal(refine(far_off(x), log_joint, x, seed=3, steps=20).mean, whole.mean)


def test_normal_distributions_of_torch_serve_in_their_own_shape(x: Tensor) -> None:
    ours = refine(far_off(x), log_joint, x, steps=10)
    start = far_off(x)
    theirs = refine(Independent(Normal(start.loc, start.stddev), 1), log_joint, x, steps=10)
    assert_equal(theirs, ours)
    square = refine(
        Independent(Normal(start.loc[:, None], start.stddev[:, None]), 2),
        lambda x, z: log_joint(x, z.squeeze(2)),
        x,
        steps=10,
    )
    assert (square.batch_shape, square.event_shape) == ((7,), (1, 2))
    assert_equal(square, Independent(Normal(ours.mean[:, None], ours.stddev[:, None]), 2))


def test_the_model_is_left_as_it_was() -> None:
    model, x = VAE((1, 4, 4), latent_size=3, hidden_sizes=(8,)), torch.rand(5, 1, 4, 4).round()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = model.proposal(x)
    loc, log_scale = start.loc.clone(), start.log_scale.clone()
    likelihood = lambda x, z: model.likelihood(z).log_prob(x) + model.prior().log_prob(z)  # noqa: E731
    better = refine(start, likelihood, x, steps=5)
    assert torch.equal(start.loc, loc)
    assert torch.equal(start.log_scale, log_scale)
    assert not better.mean.requires_grad
    assert not torch.equal(better.mean, loc)
    fastvae.log_likelihood(x, model, num_samples=10, refine=5)
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_a_datapoint_without_finite_gradients_keeps_its_start_and_leaves_the_others(x: Tensor) -> None:
    for value in (math.nan, math.inf):
        factor = torch.ones(7, dtype=torch.float64).index_fill(0, torch.tensor(2), value)
        got = refine(far_off(x), lambda x, z, factor=factor: log_joint(x, z) * factor, x, steps=5)
        want = refine(far_off(x), log_joint, x, steps=5)
        assert torch.equal(got.mean[2], far_off(x).mean[2])
        others = torch.tensor([0, 1, 3, 4, 5, 6])
        torch.testing.assert_close(got.mean[others], want.mean[others])


def test_evaluation_with_refined_proposals_is_right_where_the_encoder_is_wrong(x: Tensor) -> None:
    call: dict[str, Any] = {"proposal": far_off, "log_joint": log_joint, "num_samples": 200}
    plain = fastvae.log_likelihood(x, **call)
    refined = fastvae.log_likelihood(x, refine=400, **call)
    exact = log_marginal(x)
    assert (plain.log_prob < exact - 0.1).any()
    assert (refined.log_prob - exact).abs().max() < 0.01
    assert refined.trusted.all()
    assert not plain.trusted.any()
    # and unbiased: 2000 estimates of p(x) from few fresh samples each, after few steps
    copies = x[:1].expand(2000, -1)
    few = fastvae.log_likelihood(copies, refine=3, **(call | {"num_samples": 4, "proposal": lambda x: wide(x)}))
    ratios = (few.log_prob - exact[0]).exp()
    assert (ratios.mean() - 1.0).abs() < 4.5 * ratios.std() / 2000**0.5


def wide(x: Tensor) -> DiagonalGaussian:
    exact = posterior(x)
    return DiagonalGaussian(exact.loc, exact.log_scale + 0.4)


def test_the_evaluation_does_not_depend_on_chunks_and_batches(x: Tensor) -> None:
    call: dict[str, Any] = {"proposal": far_off, "log_joint": log_joint, "num_samples": 50, "refine": 15, "seed": 9}
    want = fastvae.log_likelihood(x, **call).log_prob
    for max_bytes in (1, 2000, 20_000):
        torch.testing.assert_close(fastvae.log_likelihood(x, max_bytes=max_bytes, **call).log_prob, want)
    parts = [fastvae.log_likelihood(x[i : i + 3], ids=torch.arange(7)[i : i + 3], **call).log_prob for i in (0, 3, 6)]
    torch.testing.assert_close(torch.cat(parts), want)
    later = fastvae.log_likelihood(x, first_sample=50, **call)
    both = fastvae.log_likelihood(x, **(call | {"num_samples": 100}))
    merged = fastvae.log_likelihood(x, **call).merge(later)
    torch.testing.assert_close(merged.log_prob, both.log_prob)


def test_half_precision_moves_by_small_steps() -> None:
    model, x = VAE((1, 4, 4), latent_size=3, hidden_sizes=(8,)).bfloat16(), torch.rand(5, 1, 4, 4).round().bfloat16()
    likelihood = lambda x, z: model.likelihood(z).log_prob(x) + model.prior().log_prob(z)  # noqa: E731
    start = model.proposal(x)
    better = refine(start, likelihood, x, steps=60, learning_rate=1e-3)
    assert better.mean.dtype == torch.bfloat16
    assert (better.mean - start.mean).abs().max() > 5e-3
    assert fastvae.log_likelihood(x, model, num_samples=10, refine=2).log_prob.isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.0}, TypeError, r"steps must be an integer, got 2\.0"),
        ({"steps": 2, "num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ({"steps": 2**30}, ValueError, r"steps \* num_samples must be at most 2\^32"),
        ({"steps": 2, "learning_rate": 0.0}, ValueError, "learning_rate must be positive and finite, got 0"),
        ({"steps": 2, "learning_rate": "fast"}, TypeError, "learning_rate must be a number, got 'fast'"),
        ({"steps": 2, "max_rows": 0}, ValueError, "max_rows must be at least 1, got 0"),
        (
            {"steps": 2, "ids": torch.arange(3)},
            ValueError,
            r"ids must have shape \(7,\), one number for each datapoint",
        ),
    ],
)
def test_bad_numbers_are_named(options: dict[str, Any], error: type[Exception], says: str, x: Tensor) -> None:
    with pytest.raises(error, match=says):
        refine(far_off(x), log_joint, x, **options)


def test_it_works_without_gradients_but_not_in_inference_mode(x: Tensor) -> None:
    with torch.no_grad():
        assert refine(far_off(x), log_joint, x, steps=2).mean.isfinite().all()
    options = {"proposal": far_off, "log_joint": log_joint, "num_samples": 2}
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"refine needs gradients, which .*inference_mode"):
        fastvae.log_likelihood(x, refine=1, **options)
    with torch.inference_mode():
        assert fastvae.log_likelihood(x, **options).log_prob.isfinite().all()


@pytest.mark.parametrize("count", [1, 6])
def test_a_proposal_of_other_datapoints_is_refused(count: int, x: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"q must have batch shape \(7,\), one for each datapoint, got \({count},\)"):
        refine(far_off(x[:count]), log_joint, x, steps=2)


def test_other_proposals_are_refused_with_what_is_served(x: Tensor) -> None:
    ones = torch.ones(7, 2, dtype=torch.float64)
    for q, found in (
        (Independent(LogNormal(ones, ones), 1), "Independent of LogNormal"),
        (Independent(Bernoulli(ones / 2), 1), "Independent of Bernoulli"),
        (torch.distributions.MultivariateNormal(ones, torch.eye(2, dtype=torch.float64)), "MultivariateNormal"),
        (nn.Identity(), "Identity"),
    ):
        with pytest.raises(TypeError, match=rf"refine serves Gaussian proposals .*got {found}; use refine=0"):
            refine(q, log_joint, x, steps=1)
        if isinstance(q, Distribution):
            with pytest.raises(TypeError, match="refine serves Gaussian proposals"):
                fastvae.log_likelihood(x, proposal=lambda x, q=q: q, log_joint=log_joint, num_samples=2, refine=1)
    for value, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="refine must be"):
            fastvae.log_likelihood(x, proposal=far_off, log_joint=log_joint, num_samples=2, refine=value)
