"""The parts of an evaluation: together they are all of it, each once, whatever the number of processes."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae.evaluation.draw import BLOCK_POINTS, BLOCK_SAMPLES
from fastvae.evaluation.parts import Part, make_parts, share

SIZES = st.integers(1, 3000), st.integers(0, 5000), st.integers(1, 300_000)


@settings(deadline=None, max_examples=60)
@given(*SIZES, st.integers(1, 9))
def test_every_sample_is_in_one_part_and_parts_in_one_share(points: int, first: int, count: int, size: int) -> None:
    parts = make_parts(points, range(first, first + count))
    assert sum(part.rows for part in parts) == points * count
    assert len({(part.points.start, part.samples.start) for part in parts}) == len(parts) <= 64 + 64
    assert len({part.name for part in parts}) == len(parts)
    for before, after in pairwise(parts):  # groups in order, and in each group the samples
        if before.points == after.points:
            assert before.samples.stop == after.samples.start
        else:
            assert before.points.stop == after.points.start
            assert (before.samples.stop, after.samples.start) == (first + count, first)
    shares = share(parts, size)
    assert [part for some in shares for part in some] == parts
    assert len(shares) == size
    rows = [sum(part.rows for part in some) for some in shares]
    assert max(rows) <= points * count / size + max(part.rows for part in parts)


@settings(deadline=None, max_examples=60)
@given(*SIZES)
def test_cuts_are_at_the_blocks_of_proposals_that_draw_for_themselves(points: int, first: int, count: int) -> None:
    for part in make_parts(points, range(first, first + count)):
        assert part.points.start % BLOCK_POINTS == 0
        assert (part.samples.start - first) % BLOCK_SAMPLES == 0


@pytest.mark.parametrize(
    ("points", "samples", "groups", "pieces"),
    [
        (10_000, 5000, 63, 1),  # datapoints alone
        (1000, 5000, 63, 1),
        (100, 5000, 7, 7),  # both: parts of 16 x 768
        (4, 1_000_000, 1, 64),  # samples alone
        (4, 5000, 1, 5),  # parts of 4096 rows at least
        (0, 5000, 0, 1),
    ],
)
def test_datapoints_are_cut_first(points: int, samples: int, groups: int, pieces: int) -> None:
    parts = make_parts(points, range(samples))
    assert len({part.points for part in parts}) == groups
    assert len(parts) == groups * pieces


def test_where_samples_stay_together_datapoints_are_cut_down_to_one() -> None:
    assert {(len(part.points), part.samples) for part in make_parts(5, range(7, 9000), True)} == {(1, range(7, 9000))}
    assert len(make_parts(130, range(10), whole_samples=True)) == 44  # 43 of three and one


def test_fewer_parts_than_processes_leave_some_without() -> None:
    one = Part(range(3), range(10))
    assert [len(some) for some in share([one], 4)] == [0, 0, 1, 0]
    assert share([], 2) == [[], []]
