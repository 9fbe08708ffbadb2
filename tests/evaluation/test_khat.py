"""k-hat recovers the shape of known tails, is invariant to scale, and says when it cannot know."""

import math

import pytest
import torch
from scipy import stats

from fastvae.evaluation import pareto_khat
from fastvae.evaluation.khat import tail_length


def pareto_log_weights(shape: float, num_samples: int, num_points: int) -> torch.Tensor:
    """Log of generalised Pareto weights, sorted tail first."""
    torch.manual_seed(0)
    u = torch.rand(num_samples, num_points, dtype=torch.float64)
    return ((u.pow(-shape) - 1) / shape).log()


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.5, 0.9, 1.5])
def test_the_shape_of_a_pareto_tail_is_recovered(shape: float) -> None:
    log_w = pareto_log_weights(shape, 20_000, 30)
    khat = pareto_khat(log_w.topk(4001, dim=0).values, 20_000)
    length = tail_length(20_000, 4000)
    assert length == 424
    # the tail of a generalised Pareto distribution has the same shape; the prior draws towards 0.5
    want = (shape * length + 5) / (length + 10)
    assert khat.mean().item() == pytest.approx(want, abs=4 * (1 + abs(shape)) / math.sqrt(length * 30))


@pytest.mark.parametrize("shape", [0.1, 0.6, 1.2])
def test_agrees_with_the_maximum_likelihood_fit_of_scipy(shape: float) -> None:
    log_w = pareto_log_weights(shape, 5000, 1)
    length = tail_length(5000, 255)
    tail = log_w[:, 0].topk(length + 1).values.exp()
    fitted, _, _ = stats.genpareto.fit((tail[:-1] - tail[-1]).numpy(), floc=0)
    want = (fitted * length + 5) / (length + 10)
    assert pareto_khat(log_w.topk(256, dim=0).values, 5000).item() == pytest.approx(want, abs=0.05)


def test_is_invariant_to_the_scale_of_the_weights_and_to_order() -> None:
    log_w = pareto_log_weights(0.6, 3000, 2).topk(256, dim=0).values
    want = pareto_khat(log_w, 3000)
    torch.testing.assert_close(pareto_khat(log_w - 5000, 3000), want, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(pareto_khat(log_w[torch.randperm(256)], 3000), want)


def test_datapoints_are_fitted_one_by_one_also_in_blocks() -> None:
    log_w = pareto_log_weights(0.6, 300, 1030)
    together = pareto_khat(log_w, 300)
    alone = pareto_khat(log_w[:, 1025:1026], 300)
    torch.testing.assert_close(together[1025:1026], alone, rtol=1e-12, atol=0)
    assert pareto_khat(log_w[:, :0], 300).shape == (0,)


def test_equal_weights_have_no_tail() -> None:
    assert pareto_khat(torch.full((256, 1), -90.0), 5000).item() == -math.inf
    rounding = -90.0 + 1e-5 * torch.rand(256, 1)
    assert pareto_khat(rounding, 5000).item() == -math.inf


def test_what_cannot_be_fitted_is_nan() -> None:
    zeros = torch.full((256, 1), -torch.inf)
    some = zeros.clone()
    some[:100] = 0.0  # most of the tail is zero weights
    for largest, num_samples in ((torch.randn(24, 1), 24), (zeros, 5000), (some, 5000)):
        assert pareto_khat(largest, num_samples).isnan().item()
    for bad in (math.nan, math.inf):
        poisoned = torch.randn(256, 1)
        poisoned[3] = bad
        assert pareto_khat(poisoned, 5000).isnan().item()


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match="largest must be floating point"):
        pareto_khat(torch.ones(256, 1, dtype=torch.long), 5000)
    with pytest.raises(ValueError, match=r"largest must have shape \(T, N\), got \(256,\)"):
        pareto_khat(torch.ones(256), 5000)
    with pytest.raises(ValueError, match="num_samples must be at least the 256 rows"):
        pareto_khat(torch.ones(256, 1), 100)
