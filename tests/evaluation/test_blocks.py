"""The bound curve and the jackknife: textbook formulas, unequal blocks, exact monotonicity, edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae.evaluation import LogWeights
from fastvae.evaluation.blocks import levels, whole

F64 = torch.float64


def filled(log_w: torch.Tensor, num_blocks: int = 32) -> LogWeights:
    weights = LogWeights(log_w.shape[1], num_blocks=num_blocks)
    weights.update(log_w)
    return weights


def bound(log_w: torch.Tensor) -> torch.Tensor:
    return log_w.logsumexp(0) - math.log(log_w.shape[0])


def test_the_curve_is_the_mean_bound_of_groups_of_samples() -> None:
    log_w = torch.randn(320, 3, dtype=F64) * 2
    curve = filled(log_w).curve
    assert curve.num_samples.tolist() == [1, 10, 20, 40, 80, 160, 320]
    torch.testing.assert_close(curve.values[0], log_w.mean(0))
    for row, groups in enumerate((32, 16, 8, 4, 2, 1), start=1):
        want = torch.stack([bound(log_w[i::groups]) for i in range(groups)])
        torch.testing.assert_close(curve.values[row], want.mean(0), rtol=1e-12, atol=1e-12)
        if groups >= 8:
            torch.testing.assert_close(curve.std_error[row], want.std(0) / math.sqrt(groups))
    torch.testing.assert_close(curve.values[-1], filled(log_w).log_prob, rtol=1e-13, atol=0)
    torch.testing.assert_close(curve.std_error[-1], filled(log_w).std_error)
    torch.testing.assert_close(curve.std_error[0], log_w.std(0) / math.sqrt(320))
    assert curve.mean.shape == curve.mean_std_error.shape == (7,)
    torch.testing.assert_close(curve.mean_std_error, curve.std_error.square().sum(1).sqrt() / 3)


def test_the_whole_is_what_merging_blocks_two_by_two_gives() -> None:
    log_w = torch.randn(200, 6, dtype=F64) * 50
    log_w[::7, 1], log_w[:, 2], log_w[3, 3], log_w[4, 4] = -torch.inf, -torch.inf, torch.nan, torch.inf
    for weights in (filled(log_w), filled(log_w[:5]), LogWeights(6)):
        *_, tree = levels(weights.blocks)
        torch.testing.assert_close(whole(weights.blocks), tree[:, 0], rtol=1e-12, atol=1e-12)
        for count in (1, 5):
            assert torch.equal(whole(weights.blocks[..., :count]), whole(weights.blocks)[:, :count])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), num_samples=st.integers(1, 200), scale=st.sampled_from([0.0, 1.0, 100.0]))
def test_the_curve_never_falls(seed: int, num_samples: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_w = torch.randn(num_samples, 2, generator=generator, dtype=F64) * scale - 50
    log_w[torch.rand(num_samples, 2, generator=generator) < 0.1] = -torch.inf
    weights = filled(log_w)
    values = weights.curve.values
    for low, high in zip(values[:-1].flatten(), values[1:].flatten(), strict=True):
        assert high >= low - 1e-12 or high == low  # two of -inf
    if num_samples > 1:
        torch.testing.assert_close(values[-1], weights.log_prob, rtol=1e-12, atol=1e-12)


def test_errors_of_the_curve_cover_the_truth() -> None:
    """400 replicates: the spread of every point of the curve is the error it claims."""
    log_w = torch.randn(640, 400, generator=torch.Generator().manual_seed(0), dtype=F64)
    curve = filled(log_w).curve
    ratio = curve.std_error.square().mean(1).sqrt() / curve.values.std(1)
    assert ((ratio > 0.85) & (ratio < 1.15)).all(), ratio


@pytest.mark.parametrize("num_samples", [64, 77, 3])
def test_the_jackknife_leaves_out_one_block_at_a_time(num_samples: int) -> None:
    log_w = torch.randn(num_samples, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    weights = filled(log_w, num_blocks=8)
    found, whole = weights.jackknife_where(torch.ones(2, dtype=torch.bool)), bound(log_w)
    number = torch.arange(num_samples) % 8
    used = min(num_samples, 8)
    without = torch.stack([bound(log_w[number != b]) for b in range(used)])
    inverse_share = torch.tensor([[num_samples / int((number == b).sum())] for b in range(used)], dtype=F64)
    pseudo = inverse_share * whole - (inverse_share - 1) * without
    corrected = used * whole - ((1 - 1 / inverse_share) * without).sum(0)
    error = ((pseudo - corrected).square() / (inverse_share - 1)).mean(0).sqrt()
    torch.testing.assert_close(found.log_prob, corrected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.std_error, error, rtol=1e-10, atol=0)


def test_the_jackknife_removes_the_bias_and_knows_its_error() -> None:
    """Log-normal weights, 3000 replicates: E[w] = 1, so the estimates should be 0."""
    log_w = torch.randn(256, 3000, generator=torch.Generator().manual_seed(0), dtype=F64) - 0.5
    weights = filled(log_w)
    found = weights.jackknife_where(torch.ones(3000, dtype=torch.bool))
    spread = found.log_prob.std().item()
    plain, corrected = weights.log_prob.mean().item(), found.log_prob.mean().item()
    assert plain == pytest.approx(-(math.e - 1) / 512, rel=0.6)
    assert abs(corrected) < min(4 * spread / math.sqrt(3000), abs(plain) / 2 + 2 * spread / math.sqrt(3000))
    assert found.std_error.square().mean().sqrt().item() == pytest.approx(spread, rel=0.1)
    assert found.std_error.mean().item() == pytest.approx(weights.std_error.mean().item(), rel=0.1)


def test_the_corrected_estimate_follows_the_trust_rule() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = filled(torch.cat([torch.randn(5000, 1, generator=generator) * s for s in (0.5, 5.0)], dim=1))
    assert weights.trusted.tolist() == [True, False]
    assert weights.jackknife.log_prob.isnan().tolist() == [False, True]
    assert weights.jackknife.log_prob[0] > weights.log_prob[0]


def test_what_cannot_be_known_is_nan() -> None:
    one = filled(torch.zeros(1, 1))
    assert one.jackknife.std_error.isnan().all()
    assert one.curve.num_samples.tolist() == [1]
    alone = torch.full((64, 1), -torch.inf)
    alone[0] = 0.0  # one block holds all the weight
    assert filled(alone).jackknife.std_error.isnan().all()
    assert filled(alone).curve.values[0].item() == -math.inf
    zeros = filled(torch.full((64, 1), -torch.inf))
    assert zeros.jackknife.std_error.isnan().all()
    assert (zeros.curve.values == -math.inf).all()
    bad = torch.zeros(64, 2)
    bad[5, 0] = math.nan
    assert filled(bad).curve.values.isnan().all(0).tolist() == [True, False]
    assert filled(bad).jackknife.std_error.isnan().tolist() == [True, False]
    assert LogWeights(3).curve.values.shape == (0, 3)
    assert LogWeights(0).curve.values.shape == (0, 0)
    assert LogWeights(0).jackknife.log_prob.shape == (0,)


def test_many_merged_states_of_few_samples_leave_blocks_empty() -> None:
    log_w = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    weights = LogWeights(2)
    for row in log_w:  # every process starts at the first block
        weights = weights.merge(filled(row[None]))
    values = weights.curve.values
    torch.testing.assert_close(values, torch.stack([log_w.mean(0), *[bound(log_w)] * 6]), rtol=1e-12, atol=1e-12)
    assert weights.curve.num_samples.tolist() == [1, *[100] * 6]
    assert weights.jackknife.std_error.isnan().all()


def test_equal_weights_have_no_error_and_no_bias() -> None:
    weights = filled(torch.full((3200, 1), -7.0))
    torch.testing.assert_close(weights.jackknife.log_prob, torch.full((1,), -7.0, dtype=F64), rtol=1e-13, atol=0)
    assert weights.jackknife.std_error.item() < 1e-12


def test_a_block_a_million_nats_above_the_others_leaves_them_their_digits() -> None:
    log_w = torch.zeros(64, 1, dtype=F64)
    log_w[3] = 1e6
    weights = filled(log_w)
    assert weights.jackknife_where(torch.ones(1, dtype=torch.bool)).std_error.isfinite().all()
    assert weights.largest_share.item() == 1.0


@settings(deadline=None, max_examples=40)
@given(data=st.data(), first=st.integers(0, 100))
def test_a_sample_enters_its_block_however_the_chunks_are_cut(data: st.DataObject, first: int) -> None:
    log_w = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    cuts = sorted(data.draw(st.lists(st.integers(0, 200), max_size=6)))
    weights, start = LogWeights(2, num_blocks=8), first
    for chunk in torch.tensor_split(log_w, cuts):
        weights.update(chunk, first_sample=start)
        start += chunk.shape[0]
    number = (torch.arange(200) + first) % 8
    for block in range(8):
        mine = log_w[number == block]
        assert weights.blocks[0, block].tolist() == [len(mine)] * 2
        torch.testing.assert_close(
            weights.blocks[1, block] + weights.blocks[2, block].log(), mine.logsumexp(0), rtol=1e-13, atol=1e-13
        )
