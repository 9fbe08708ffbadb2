"""Addressed random numbers: published test vectors, independence of chunking, and the right distributions."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastvae import ops, reference

# Random123's known answers for philox4x32-10: counter (column // 4, row, id, tag), key (low, high half of the seed)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_the_first_block_is_the_published_one() -> None:
    words = reference.philox(0, torch.tensor([0]), torch.tensor([0]), 4)
    assert tuple(words[0, 0].tolist()) == KNOWN[0][2]


def test_every_part_of_the_address_enters_as_published() -> None:
    # the column is counted from zero, so the published vector with a large first word is checked in plain integers
    (c0, c1, c2, c3), (k0, k1), want = KNOWN[1]
    assert philox_in_integers((c0, c1, c2, c3), (k0, k1)) == want
    seed, row, identity, tag = k0 | k1 << 32, c1, c2, c3
    words = reference.philox(seed, torch.tensor([identity]), torch.tensor([row]), 23, tag)
    assert words.shape == (1, 1, 23)
    for column in range(23):
        block = philox_in_integers((column // 4, row, identity, tag), (k0, k1))
        assert words[0, 0, column] == block[column % 4]


def philox_in_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al. 2011, written once more with unbounded integers."""
    (a, b, c, d), (k, l) = counter, key
    for _ in range(10):
        low, high = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (high >> 32) ^ b ^ k, high % 2**32, (low >> 32) ^ d ^ l, low % 2**32
        k, l = (k + 0x9E3779B9) % 2**32, (l + 0xBB67AE85) % 2**32
    return a, b, c, d


@pytest.mark.parametrize("draw", [ops.uniform, ops.normal])
@settings(deadline=None, max_examples=30)
@given(data=st.data(), num_ids=st.integers(1, 6), num_rows=st.integers(1, 9), width=st.integers(1, 9))
def test_any_part_can_be_drawn_alone(draw: Any, data: st.DataObject, num_ids: int, num_rows: int, width: int) -> None:
    ids, rows = torch.randperm(100)[:num_ids], torch.randperm(100)[:num_rows]
    whole = draw(7, ids, rows, width, tag=2)
    assert whole.shape == (num_ids, num_rows, width)
    i, r = data.draw(st.integers(0, num_ids - 1)), data.draw(st.integers(0, num_rows - 1))
    assert torch.equal(whole[i : i + 1, r:], draw(7, ids[i : i + 1], rows[r:], width, tag=2))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**64 - 1),
    ids=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    rows=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    width=st.integers(0, 9),
    tag=st.integers(0, 2**32 - 1),
)
def test_words_are_those_of_the_definition(seed: int, ids: list[int], rows: list[int], width: int, tag: int) -> None:
    addresses = [torch.tensor(numbers, dtype=torch.int64) for numbers in (ids, rows)]
    want = reference.philox(seed, *addresses, width, tag)
    u = ops.uniform(seed, *addresses, width, tag=tag, dtype=torch.float64)
    assert torch.equal(u, (want.double() + 0.5) * 2.0**-32)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_normal_numbers_are_box_and_mullers_transform_of_pairs_of_words(dtype: torch.dtype, tolerance: float) -> None:
    ids, rows = torch.arange(3), torch.arange(500)
    u = reference.philox(4, ids, rows, 8).double()
    radius, angle = ((u[..., 0::2] + 0.5) * 2.0**-32).log().mul(-2).sqrt(), u[..., 1::2] * (2 * torch.pi * 2.0**-32)
    want = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(2)
    torch.testing.assert_close(ops.normal(4, ids, rows, 7, dtype=dtype).double(), want[..., :7], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_are_uniform_and_never_0_or_1(dtype: torch.dtype) -> None:
    u = ops.uniform(1, torch.arange(50), torch.arange(200), 10, dtype=dtype)
    assert u.dtype == dtype
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().double().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_normal_and_columns_independent(dtype: torch.dtype) -> None:
    z = ops.normal(1, torch.arange(50), torch.arange(400), 5, dtype=dtype).flatten(0, 1).double()
    assert z.isfinite().all()
    for column in z.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(z.T) - torch.eye(5)
    assert correlation.abs().max() < 4.5 / z.shape[0] ** 0.5


@pytest.mark.parametrize("draw", [ops.uniform, ops.normal])
def test_a_column_does_not_depend_on_how_many_follow(draw: Any) -> None:
    ids, rows = torch.arange(2), torch.arange(3)
    whole = draw(3, ids, rows, 9)
    for width in range(1, 9):
        assert torch.equal(whole[..., :width], draw(3, ids, rows, width))


def test_seed_tag_id_and_row_separate_streams() -> None:
    ids, rows = torch.arange(3), torch.arange(4)
    first = ops.uniform(0, ids, rows, 5)
    others = [
        ops.uniform(1, ids, rows, 5),
        ops.uniform(2**32, ids, rows, 5),
        ops.uniform(0, ids, rows, 5, tag=1),
        ops.uniform(0, ids + 3, rows, 5),
        ops.uniform(0, ids, rows + 4, 5),
    ]
    assert not any((first == other).any() for other in others)


def test_addresses_are_left_alone() -> None:
    for count in (1, 3):
        ids, rows = torch.arange(count), torch.arange(count)
        for draw in (ops.uniform, ops.normal):
            draw(3, ids, rows, 1)
        assert torch.equal(ids, torch.arange(count))
        assert torch.equal(rows, torch.arange(count))


def test_empty_addresses_give_empty_numbers() -> None:
    none = torch.arange(0)
    assert ops.normal(0, none, torch.arange(3), 4).shape == (0, 3, 4)
    assert ops.uniform(0, torch.arange(2), none, 4).shape == (2, 0, 4)
    assert ops.uniform(0, torch.arange(2), torch.arange(3), 0).shape == (2, 3, 0)


IDS = torch.arange(3)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"ids": IDS.int()}, TypeError, "ids must be int64, got torch.int32"),
    ({"rows": IDS.float()}, TypeError, "rows must be int64, got torch.float32"),
    ({"ids": IDS[None]}, ValueError, r"ids must have one dimension, got shape \(1, 3\)"),
    ({"rows": IDS.to("meta")}, ValueError, "on one device, got cpu and meta"),
    ({"seed": 0.5}, TypeError, r"seed must be an integer, got 0\.5"),
    ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
    ({"seed": 2**64}, ValueError, r"seed must be in \[0, 2\^64\)"),
    ({"tag": 2**32}, ValueError, r"tag must be in \[0, 2\^32\)"),
    ({"width": -1}, ValueError, "width must not be negative, got -1"),
    ({"dtype": torch.float16}, TypeError, "dtype must be torch.float32 or torch.float64, got torch.float16"),
]


@pytest.mark.parametrize("draw", [ops.uniform, ops.normal])
@pytest.mark.parametrize(("change", "error", "says"), BAD)
def test_bad_input_is_named(draw: Any, change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        draw(**({"seed": 0, "ids": IDS, "rows": IDS, "width": 2} | change))
