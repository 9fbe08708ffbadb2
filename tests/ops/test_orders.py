"""Generation orders visit every pixel once, as their names say; their tap bits are exactly the past in reach."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastvae import ops, reference
from fastvae.ops.orders import check_order
from fastvae.ops.tap_bits import mirror_tap_bits

NAMES = ["raster", "s_curve", "hilbert", "random"]
SIDES = st.integers(1, 20)


def order_of(name: Any, size: tuple[int, int], **options: Any) -> Tensor:
    return ops.generation_order(name, size, seed=3 if name == "random" else None, **options)


@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(NAMES),
    height=SIDES,
    width=SIDES,
    flip_rows=st.booleans(),
    flip_columns=st.booleans(),
    transpose=st.booleans(),
)
def test_every_order_has_every_pixel_exactly_once(
    name: str, height: int, width: int, flip_rows: bool, flip_columns: bool, transpose: bool
) -> None:
    order = order_of(name, (height, width), flip_rows=flip_rows, flip_columns=flip_columns, transpose=transpose)
    assert order.shape == (height * width, 2)
    assert order.dtype == torch.int64
    assert len({tuple(pixel) for pixel in order.tolist()}) == height * width
    assert torch.equal(check_order(order, (height, width)), order)


@settings(deadline=None, max_examples=100)
@given(name=st.sampled_from(["s_curve", "hilbert"]), height=SIDES, width=SIDES)
def test_curves_go_from_neighbour_to_neighbour(name: str, height: int, width: int) -> None:
    steps = order_of(name, (height, width)).diff(dim=0).abs()
    assert (steps.amax(1) == 1).all()
    diagonal = int((steps.sum(1) > 1).sum())
    assert diagonal <= (name == "hilbert" and height % 2 + width % 2 > 0)  # no curve without one for some odd sides


def test_the_hilbert_curve_of_a_power_of_two_fills_quarter_after_quarter() -> None:
    quarters = order_of("hilbert", (8, 8)).view(4, 16, 2)
    for quarter in quarters:
        assert ((quarter.amax(0) - quarter.amin(0)) == 3).all()
        for sixteenth in quarter.view(4, 4, 2):
            assert ((sixteenth.amax(0) - sixteenth.amin(0)) == 1).all()


def test_flips_and_transposes_are_those_of_the_image() -> None:
    assert order_of("raster", (2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert order_of("raster", (2, 3), flip_rows=True)[0].tolist() == [1, 0]
    assert order_of("raster", (2, 3), flip_columns=True)[0].tolist() == [0, 2]
    assert order_of("raster", (2, 3), transpose=True).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2]]


@pytest.mark.parametrize(("name", "count"), [("raster", 8), ("s_curve", 8), ("random", 8)])
def test_there_are_eight_different_orientations(name: Any, count: int) -> None:
    orders = ops.orientations(name, (4, 4), seed=1 if name == "random" else None)
    assert len(orders) == count
    assert len({tuple(order.flatten().tolist()) for order in orders}) == count


def test_random_orders_depend_on_their_seed_alone() -> None:
    first = ops.generation_order("random", (5, 6), seed=7)
    torch.manual_seed(0)
    assert torch.equal(first, ops.generation_order("random", (5, 6), seed=7))
    assert not torch.equal(first, ops.generation_order("random", (5, 6), seed=8))


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    mask=st.sampled_from(["A", "B"]),
    dilation=st.integers(1, 3),
    height=st.integers(1, 8),
    width=st.integers(1, 8),
)
def test_tap_bits_are_exactly_the_earlier_pixels_in_reach(
    name: str, kernel_size: int, mask: Any, dilation: int, height: int, width: int
) -> None:
    order = order_of(name, (height, width))
    bits = ops.tap_bits(order, (height, width), kernel_size, mask=mask, dilation=dilation)
    rank = {tuple(pixel): place for place, pixel in enumerate(order.tolist())}
    for (i, j), place in rank.items():
        for tap in range(kernel_size**2):
            u = i + (tap // kernel_size - kernel_size // 2) * dilation
            v = j + (tap % kernel_size - kernel_size // 2) * dilation
            earlier = (u, v) in rank and (rank[u, v] < place or ((u, v) == (i, j) and mask == "B"))
            assert (bits[i, j].item() >> tap & 1) == earlier
    assert (bits >> kernel_size**2 == 0).all()


@pytest.mark.parametrize("mask", ["A", "B"])
def test_raster_bits_are_the_raster_mask_inside_the_image(mask: Any) -> None:
    bits = ops.tap_bits(order_of("raster", (5, 5)), (5, 5), 3, mask=mask)
    live = reference.unpack_tap_bits(bits, 3)[:, 2, 2].view(3, 3)
    assert torch.equal(live, reference.raster_mask(3, mask).bool())


@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (5, 2), (7, 1)])
def test_mirrored_bits_tell_who_sees_a_pixel(kernel_size: int, dilation: int) -> None:
    mask = torch.randint(0, 1 << kernel_size**2, (2, 5, 6))
    weight = torch.ones(1, 1, kernel_size, kernel_size)
    mirrored = mirror_tap_bits(mask, kernel_size, dilation)
    assert mirrored.shape == mask.shape
    for image in range(2):
        sees, seen = (
            torch.func.jacrev(lambda x, m=m: reference.locally_masked_conv2d(x, weight, None, m, dilation))(
                torch.zeros(1, 1, 5, 6)
            ).view(30, 30)
            for m in (mask[image], mirrored[image])
        )
        assert torch.equal(sees, seen.t())


def test_orders_may_be_arrays_and_lists() -> None:
    order = order_of("s_curve", (3, 3))
    want = ops.tap_bits(order, (3, 3), 3, mask="A")
    assert torch.equal(ops.tap_bits(order.tolist(), (3, 3), 3, mask="A"), want)
    assert torch.equal(ops.tap_bits(np.asarray(order).astype(np.int32), (3, 3), 3, mask="A"), want)


GOOD = [[0, 0], [0, 1], [1, 0], [1, 1]]
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"order": "raster"}, TypeError, "order must be an array of rows and columns, got 'raster'"),
    ({"order": None}, TypeError, "order must be an array of rows and columns, got None"),
    ({"order": torch.tensor(GOOD).float()}, TypeError, "order must hold integers, got torch.float32"),
    ({"order": GOOD[:3]}, ValueError, r"order must be \(4, 2\).* got shape \(3, 2\)"),
    ({"order": [[0, 0], [0, 1], [1, 0], [1, 2]]}, ValueError, r"inside 2 x 2, got pixel \(1, 2\)"),
    ({"order": [[0, 0], [0, 1], [1, 0], [-1, 1]]}, ValueError, r"inside 2 x 2, got pixel \(-1, 1\)"),
    ({"order": [[0, 0], [0, 1], [0, 1], [1, 1]]}, ValueError, r"exactly once, got pixel \(0, 1\) 2 times"),
    ({"size": 2}, ValueError, r"size must be \(H, W\), got 2"),
    ({"size": (2, 0)}, ValueError, "size must be two positive integers"),
    ({"kernel_size": 4}, ValueError, "kernel_size must be odd and at most 7, got 4"),
    ({"kernel_size": True}, ValueError, "kernel_size must be odd and at most 7, got True"),
    ({"kernel_size": 9}, ValueError, "kernel_size must be odd and at most 7, got 9"),
    ({"mask": "C"}, ValueError, "mask must be .* got 'C'"),
    ({"dilation": 0}, ValueError, "dilation must be a positive integer, got 0"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD)
def test_bad_orders_are_named(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ops.tap_bits(**({"order": GOOD, "size": (2, 2), "kernel_size": 3, "mask": "A"} | change))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("zigzag", {}, "name must be one of .* got 'zigzag'"),
        ("random", {}, "seed must be an integer .* got None"),
        ("random", {"seed": -(2**70)}, r"seed must be in \[-2\^63, 2\^64\), got -1180591620717411303424"),
        ("raster", {"seed": 1}, 'seed is for the order "random" only'),
    ],
)
def test_bad_names_and_seeds_are_named(name: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ops.generation_order(name, (2, 2), **options)


@pytest.mark.parametrize("option", ["flip_rows", "flip_columns", "transpose"])
def test_flips_and_transposes_are_true_or_false(option: str) -> None:
    with pytest.raises(TypeError, match=f"{option} must be True or False, got 'no'"):
        ops.generation_order("raster", (2, 2), **{option: "no"})  # type: ignore[arg-type]
