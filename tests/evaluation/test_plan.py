"""The plan covers everything within the budget, and the bytes of a row are measured, not guessed."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastvae.evaluation.draw import BLOCK_POINTS, BLOCK_SAMPLES
from fastvae.evaluation.plan import Sizes, bytes_per_row, default_max_bytes, make_plan

sizes = st.integers(1, 10**7)


@given(sizes, sizes, sizes, sizes, st.integers(1, 1000), st.integers(1, 2**33), st.booleans())
def test_chunks_stay_within_the_budget_and_are_never_empty(
    num_points: int,
    num_samples: int,
    row_bytes: int,
    point_bytes: int,
    latent_size: int,
    max_bytes: int,
    addressed: bool,
) -> None:
    plan = make_plan(num_points, num_samples, Sizes(row_bytes, point_bytes, latent_size), max_bytes, addressed)
    assert 1 <= plan.chunk_points <= plan.points <= num_points
    assert 1 <= plan.chunk_samples <= plan.samples
    assert plan.samples <= num_samples
    rows = plan.chunk_points * plan.chunk_samples
    assert rows == 1 or rows * row_bytes <= max_bytes
    assert not addressed or plan.points == 1 or plan.points * point_bytes <= max_bytes


@given(sizes, sizes, st.integers(1, 2**33))
def test_proposals_that_sample_by_themselves_get_the_same_blocks_at_any_budget(
    row_bytes: int, point_bytes: int, max_bytes: int
) -> None:
    plan = make_plan(100, 5000, Sizes(row_bytes, point_bytes, 50), max_bytes, addressed=False)
    assert (plan.points, plan.samples) == (BLOCK_POINTS, BLOCK_SAMPLES)


STANDARD = Sizes(row_bytes=784 * 4, point_bytes=784 * 4, latent_size=50)
CPU = default_max_bytes(torch.device("cpu"))


def test_the_standard_case_decodes_about_five_thousand_rows_at_once() -> None:
    plan = make_plan(10_000, 5000, STANDARD, CPU, addressed=True)
    assert 4096 <= plan.chunk_points * plan.chunk_samples <= 5632


def test_chunks_take_all_samples_of_a_datapoint_before_a_second_one() -> None:
    plan = make_plan(16, 500, STANDARD, CPU, addressed=True)
    assert (plan.points, plan.samples, plan.chunk_points, plan.chunk_samples) == (16, 500, 8, 500)


def test_bytes_of_a_row_are_those_of_its_largest_tensor() -> None:
    net = nn.Sequential(nn.Linear(5, 300), nn.Tanh(), nn.Linear(300, 7))
    mask = torch.ones(1000, 1000)

    def call(rows: int) -> torch.Tensor:
        constant = mask * 2.0  # larger than everything, but no part of a row
        return net(torch.zeros(rows, 5)) + constant.sum()

    with torch.no_grad():
        assert bytes_per_row(call) == 300 * 4
        assert bytes_per_row(lambda rows: mask * 2.0) == 0
