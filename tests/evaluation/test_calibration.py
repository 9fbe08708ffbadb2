"""Calibration: the closed forms, the exact model, and reported errors that are those that happened."""

import json
import math
from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal

from fastvae.evaluation import LogWeights
from fastvae.evaluation.calibration import _LinearGaussian, calibrate, predict


def test_the_model_is_what_it_says() -> None:
    model = _LinearGaussian(3, seed=1)
    x = model.sample(4)
    w = model.basis * model.loadings
    covariance = w @ w.T + model.scale**2 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(x), MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(x))
    z, log_q = model.posterior(x, 1.0).rsample_and_log_prob((5,))
    torch.testing.assert_close(model.log_joint(x, z) - log_q, model.log_prob(x).expand(5, 4))


def test_the_prediction_is_the_second_moment_by_quadrature() -> None:
    for c in (0.8, 0.95, 1.1, 1.6):
        u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)  # in units of the proposal
        ratio = c * torch.exp(-0.5 * (c * u).square() + 0.5 * u.square())
        density = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
        square = float(torch.trapezoid(ratio.square() * density, u)) ** 7
        found = predict(c, 7, 1000)
        assert found.ess == pytest.approx(1000 / square, rel=1e-6)
        assert found.std_error == pytest.approx(math.sqrt((square - 1) / 1000), rel=1e-6)
        assert found.bias == pytest.approx(-(square - 1) / 2000, rel=1e-6)
    assert predict(1.1, 50, 5000).ess / 5000 == pytest.approx(0.4655, abs=1e-4)
    for c in (0.1, 0.5**0.5, 0.708):  # the variance is infinite, or too large for a float
        assert predict(c, 5000, 1000).std_error == math.inf
        assert predict(c, 5000, 1000).ess == 0.0


def test_reported_errors_are_those_that_happened() -> None:
    found = calibrate([0.9, 1.0, 1.2], num_samples=400, replicates=300, latent_size=10, progress=False)
    narrow, exact, wide = found.rows
    for row in (narrow, wide):
        assert row.measured_error == pytest.approx(row.predicted.std_error, rel=0.15)  # its own error is 4 %
        assert row.reported_error == pytest.approx(row.measured_error, rel=0.15)
        assert row.ess == pytest.approx(row.predicted.ess, rel=0.1)
        assert abs(row.measured_bias - row.reported_bias) < 4 * row.bias_error
        assert 0.89 < row.coverage < 0.99
        assert row.trusted_share > 0.9
        assert row.trusted_coverage == pytest.approx(row.coverage, abs=0.02)
    assert exact.measured_error < 1e-12
    assert exact.coverage == 1.0
    assert exact.ess == pytest.approx(400)
    assert len({tuple(row.z_scores) for row in found.rows}) == 3


def test_a_hopeless_proposal_is_not_trusted_and_says_so_in_json() -> None:
    found = calibrate([0.6], num_samples=300, replicates=20, latent_size=40, progress=False)
    (row,) = found.rows
    assert row.trusted_share == 0.0
    assert row.coverage < 0.5
    report = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert report["rows"][0]["predicted"] == {"ess": 0.0, "std_error": None, "bias": None}
    assert report["rows"][0]["trusted_coverage"] is None
    assert report["rows"][0]["coverage"] == row.coverage
    assert report["latent_size"] == 40


def gaussian_weights(scale: float, size: int) -> tuple[torch.Tensor, float]:
    """(5000, 400) log-weights of a posterior in ``size`` dimensions under ``scale`` times its deviation; truth 0."""
    squares = 2 * torch._standard_gamma(torch.full((5000, 400), size / 2, dtype=torch.float64))
    return size * math.log(scale) + 0.5 * squares * (1 - scale**2), 0.0


def pareto_weights(shape: float) -> tuple[torch.Tensor, float]:
    """(5000, 400) log-weights with a Pareto tail, and the log of their mean."""
    return -shape * torch.rand(5000, 400, dtype=torch.float64).log(), -math.log(1 - shape)


def missed(log_w: torch.Tensor, truth: float) -> tuple[float, float]:
    """The shares of runs whose error bar does not hold the truth although they are trusted: by the rule, and by 0.7."""
    weights = LogWeights(log_w.shape[1])
    weights.update(log_w)
    z = (weights.log_prob + weights.cv2 / 10_000 - truth) / weights.std_error
    wrong = z.abs() > 1.96
    return float((weights.trusted & wrong).double().mean()), float(
        ((weights.ess > 100) & (weights.khat < 0.7) & wrong).double().mean()
    )


def test_trusted_error_bars_miss_little_more_often_than_they_should() -> None:
    torch.manual_seed(0)
    easy = [gaussian_weights(c, 50) for c in (0.9, 1.1, 1.2, 1.3)] + [pareto_weights(0.3), pareto_weights(0.4)]
    hard = [gaussian_weights(c, 50) for c in (0.8, 0.85)] + [pareto_weights(k) for k in (0.6, 0.7, 0.8)]
    for case in easy:
        assert missed(*case)[0] < 0.08
    found = [missed(*case) for case in hard]
    assert max(ours for ours, _ in found) < 0.13
    assert min(at_most_07 for _, at_most_07 in found) > 0.08
    assert sum(ours for ours, _ in found) < 0.4 * sum(at_most_07 for _, at_most_07 in found)


def test_figures_follow_the_seed() -> None:
    small: dict[str, Any] = {"num_samples": 50, "replicates": 3, "latent_size": 2, "progress": False}
    assert calibrate([1.1], **small) == calibrate([1.1], **small)
    assert calibrate([1.1], **small) != calibrate([1.1], seed=1, **small)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_samples": 1}, "num_samples must be at least 2, got 1"),
        ({"replicates": 1}, "replicates must be at least 2, got 1"),
        ({"latent_size": 0}, "latent_size must be at least 1, got 0"),
        ({"scales": []}, r"scales must be positive numbers, at least one, got \[\]"),
        ({"scales": [1.0, -1.0]}, "scales must be positive numbers"),
        ({"scales": [math.nan]}, "scales must be positive numbers"),
    ],
)
def test_bad_numbers_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        calibrate(**options)
