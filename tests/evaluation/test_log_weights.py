"""LogWeights: any partition gives the result of one logsumexp; errors and diagnostics are what they claim."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae.evaluation import LogWeights

FIGURES = ("log_prob", "elbo", "variance", "ess", "std_error", "khat")


def fill(*chunks: torch.Tensor, tail: int = 256) -> LogWeights:
    weights = LogWeights(chunks[0].shape[1], tail=tail)
    for chunk in chunks:
        weights.update(chunk)
    return weights


def assert_same(a: LogWeights, b: LogWeights) -> None:
    for name in FIGURES:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)
    assert torch.equal(a.largest.sort(0).values, b.largest.sort(0).values)


def test_figures_equal_their_textbook_formulas() -> None:
    torch.manual_seed(0)
    log_w = torch.randn(1000, 4, dtype=torch.float64) * 2 - 90
    weights, w = fill(log_w), (log_w - log_w.amax(0)).exp()
    torch.testing.assert_close(weights.log_prob, log_w.logsumexp(0) - math.log(1000), rtol=1e-14, atol=0)
    torch.testing.assert_close(weights.elbo, log_w.mean(0))
    torch.testing.assert_close(weights.variance, log_w.var(0))
    torch.testing.assert_close(weights.ess, w.sum(0).square() / w.square().sum(0))
    torch.testing.assert_close(weights.std_error, w.std(0) / w.mean(0) / math.sqrt(1000))
    torch.testing.assert_close(weights.cv2, w.var(0) / w.mean(0).square())


@settings(deadline=None, max_examples=40)
@given(data=st.data(), scale=st.sampled_from([0.1, 3.0, 1e3]), zeros=st.booleans())
def test_any_partition_order_and_tree_equal_one_shot(data: st.DataObject, scale: float, zeros: bool) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    log_w = torch.randn(600, 3, generator=generator, dtype=torch.float64) * scale - 1e3
    if zeros:
        log_w[torch.rand(600, 3, generator=generator) < 0.3] = -torch.inf
    cuts = sorted(data.draw(st.lists(st.integers(0, 600), max_size=6)))
    order = torch.randperm(600, generator=generator)
    chunks = torch.tensor_split(log_w[order], cuts)
    one_shot = fill(log_w)
    assert_same(fill(*chunks), one_shot)
    states = [fill(chunk) for chunk in chunks]
    while len(states) > 1:  # a tree, joined at both ends
        states = [states[0].merge(states[-1]), *states[1:-1]]
    assert_same(states[0], one_shot)


def test_float32_chunks_into_a_float64_state_stay_exact_over_ten_million_samples() -> None:
    chunk = torch.full((1_000_000, 1), -100.3)
    weights = LogWeights(1, tail=0)
    for _ in range(10):
        weights.update(chunk)
    assert weights.log_prob.item() == pytest.approx(float(chunk[0]), abs=1e-9)
    assert weights.ess.item() == pytest.approx(1e7, rel=1e-12)
    assert weights.std_error.item() < 1e-8


@pytest.mark.parametrize("zeros_first", [True, False])
def test_a_chunk_of_zero_weights_counts_and_makes_no_nan(zeros_first: bool) -> None:
    zeros, ones = torch.full((30, 1), -torch.inf), torch.zeros(10, 1)
    weights = fill(*([zeros, ones] if zeros_first else [ones, zeros]))
    assert weights.log_prob.item() == pytest.approx(math.log(0.25), rel=1e-15)
    assert weights.num_zero.item() == 30
    assert weights.num_samples.item() == 40
    assert weights.elbo.item() == -math.inf
    assert weights.ess.item() == 10


def test_only_zero_weights_are_log_zero_not_nan() -> None:
    weights = fill(torch.full((300, 1), -torch.inf))
    assert weights.log_prob.item() == -math.inf
    assert weights.ess.item() == 0
    assert not weights.trusted.item()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_weights_poison_their_datapoint_only_and_are_counted(bad: float) -> None:
    log_w = torch.zeros(500, 2)
    log_w[7, 0] = bad
    weights = fill(log_w)
    assert weights.num_bad.tolist() == [1, 0]
    for name in FIGURES:
        assert getattr(weights, name)[0].isnan(), name
        assert not getattr(weights, name)[1].isnan(), name
    assert weights.trusted.tolist() == [False, True]
    assert weights.merge(fill(torch.zeros(500, 2))).num_bad.tolist() == [1, 0]


def test_a_gap_of_a_million_nats_neither_overflows_nor_loses_the_maximum() -> None:
    weights = fill(torch.tensor([[-1e6]]), torch.tensor([[1e6]]), torch.tensor([[-1e6]]))
    assert weights.log_prob.item() == pytest.approx(1e6 - math.log(3), rel=1e-15)
    assert weights.ess.item() == 1


def test_one_sample_has_an_estimate_but_no_error() -> None:
    weights = fill(torch.tensor([[-3.0]]))
    assert weights.log_prob.item() == weights.elbo.item() == -3.0
    assert weights.std_error.isnan().item()
    assert weights.khat.isnan().item()
    assert weights.bias.isnan().item()


def test_bias_follows_the_trust_rule() -> None:
    torch.manual_seed(0)
    light, heavy = torch.randn(5000, 1) * 0.5, torch.randn(5000, 1) * 5
    weights = fill(torch.cat([light, heavy], dim=1))
    assert weights.trusted.tolist() == [True, False]
    assert weights.bias[0].item() == pytest.approx(-(math.exp(0.25) - 1) / 10_000, rel=0.1)  # E w^2 is known
    assert weights.bias[1].isnan()
    assert weights.mean().num_untrusted == 1


def test_mean_keeps_the_two_errors_apart() -> None:
    torch.manual_seed(0)
    offset = torch.linspace(-5, 5, 50)
    weights = fill(torch.randn(2000, 50) * 0.3 + offset)
    mean = weights.mean()
    assert mean.value == pytest.approx(weights.log_prob.mean().item())
    assert mean.data_error == pytest.approx(offset.std().item() / math.sqrt(50), rel=0.05)
    assert mean.monte_carlo_error == pytest.approx(math.sqrt((math.exp(0.09) - 1) / 2000 / 50), rel=0.05)
    assert float(mean.scaled(-2.0)) == -2.0 * mean.value
    assert mean.scaled(-2.0).data_error == 2.0 * mean.data_error


def test_datapoints_may_have_different_numbers_of_samples() -> None:
    torch.manual_seed(0)
    weights, log_w = LogWeights(2), torch.randn(900, 1)
    weights.update(log_w, slice(0, 1))
    weights.update(log_w[:100], slice(1, 2))
    for i, m in enumerate((900, 100)):
        alone = fill(log_w[:m])
        for name in FIGURES:
            torch.testing.assert_close(getattr(weights, name)[i : i + 1], getattr(alone, name), rtol=1e-12, atol=0)
    assert "num_samples=[100, 900]" in repr(weights)


def test_without_a_tail_nothing_is_trusted() -> None:
    weights = fill(torch.randn(1000, 1) * 0.1, tail=0)
    assert weights.khat.isnan().item()
    assert not weights.trusted.item()


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match=r"num_points must be an integer, got 1\.5"):
        LogWeights(1.5)
    with pytest.raises(ValueError, match="tail must not be negative, got -1"):
        LogWeights(2, tail=-1)
    with pytest.raises(ValueError, match=r"log_w must have shape \(K, 2\)"):
        LogWeights(2).update(torch.zeros(5, 3))
    with pytest.raises(TypeError, match=r"first_sample must be an integer, got 1\.5"):
        LogWeights(2).update(torch.zeros(5, 2), first_sample=1.5)
    with pytest.raises(ValueError, match="other must have 2 datapoints, got 3"):
        LogWeights(2).merge(LogWeights(3))
