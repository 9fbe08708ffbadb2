"""Every kind of mask: equal to its definition, blind to exactly what it masks, without work outside its window."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastvae import ops, reference
from fastvae.nn import LocallyMaskedConv2d, MaskedConv2d
from fastvae.ops.masked_conv2d import pays_to_crop
from fastvae.ops.masked_conv2d_operators import convolve_window
from fastvae.ops.masked_conv2d_taps import live_window, named_taps, taps_of

NAMES = ["A", "B", "vertical", "vertical-strict"]


def weight_and_bias(out_channels: int, in_channels: int, kernel_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    weight = torch.randn(out_channels, in_channels, *kernel_size, dtype=torch.float64, requires_grad=True)
    return weight, torch.randn(out_channels, dtype=torch.float64, requires_grad=True)


def check_window(x: Tensor, weight: Tensor, bias: Tensor, taps: Any, mask: Any, dilation: int, colours: int) -> None:
    """The PyTorch path and the operators, both within the window, against the definition on the whole kernel."""
    inputs = (x, weight, bias)
    want = reference.masked_conv2d(*inputs, mask, dilation, colours)
    grad_y = torch.randn_like(want)
    expected = [want, *torch.autograd.grad(want, inputs, grad_y)]
    window = live_window(weight, taps, mask, colours)
    y = convolve_window(x, window, bias, taps.above, taps.before, dilation)
    torch.testing.assert_close([y, *torch.autograd.grad(y, inputs, grad_y)], expected)
    window = live_window(weight, taps, mask, colours, zero_dead=False)
    y = torch.ops.fastvae.masked_conv2d(x, window, bias, taps.live, taps.above, taps.before, dilation)
    torch.testing.assert_close([y, *torch.autograd.grad(y, inputs, grad_y)], expected)
    y = ops.masked_conv2d(x, weight, bias, mask=mask, dilation=dilation, num_colours=colours)
    torch.testing.assert_close([y, *torch.autograd.grad(y, inputs, grad_y)], expected)


@settings(deadline=None, max_examples=40)
@given(
    mask=st.sampled_from(NAMES),
    kernel_size=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 7])),
    channels=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    colours=st.integers(1, 3),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_named_masks_equal_their_definition(
    mask: Any,
    kernel_size: tuple[int, int],
    channels: tuple[int, int],
    colours: int,
    dilation: int,
    size: tuple[int, int],
) -> None:
    colours = min(colours, *channels) if mask in ("A", "B") else 1
    x = torch.randn(2, channels[1], *size, dtype=torch.float64, requires_grad=True)
    taps = named_taps(kernel_size, mask, colours)
    check_window(x, *weight_and_bias(*channels, kernel_size), taps, mask, dilation, colours)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    kernel_size=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    per_weight=st.sampled_from([(), (1, 1), (4, 3), (4, 1)]),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_any_static_mask_equals_its_definition(
    seed: int,
    density: float,
    kernel_size: tuple[int, int],
    per_weight: tuple[int, ...],
    dilation: int,
    size: tuple[int, int],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(*per_weight, *kernel_size, generator=generator) < density
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    check_window(x, *weight_and_bias(4, 3, kernel_size), taps_of(mask, kernel_size), mask, dilation, 1)


@pytest.mark.parametrize("mask", ["A", "B"])
def test_a_colour_sees_the_earlier_colours_of_its_pixel(mask: Any) -> None:
    channels, colours = 6, 3
    weight = torch.rand(channels, channels, 3, 3) + 0.5
    x = torch.rand(1, channels, 3, 3)
    jacobian = torch.func.jacrev(lambda x: ops.masked_conv2d(x, weight, mask=mask, num_colours=colours))(x)
    centre = jacobian[0, :, 1, 1, 0]  # (out, in, row, column)
    for out in range(channels):
        for into in range(channels):
            sees = into // 2 < out // 2 or (mask == "B" and into // 2 == out // 2)
            assert (centre[out, into, 1, 1] != 0) == sees, (out, into)
    assert (centre[..., 0, :] != 0).all()
    assert (centre[..., 2, :] == 0).all()


def test_given_masks_that_have_a_name_take_the_same_window() -> None:
    for name in NAMES:
        mask = reference.raster_mask((5, 3), name, dtype=torch.bool)
        assert taps_of(mask, (5, 3)) == named_taps((5, 3), name)


def test_the_window_is_the_smallest() -> None:
    mask = torch.zeros(2, 3, 5, 5, dtype=torch.bool)
    mask[1, 2, 1, 2] = mask[0, 0, 3, 3] = True
    taps = taps_of(mask, (5, 5))
    assert (taps.top, taps.left, taps.rows, taps.columns, taps.live) == (1, 2, 3, 2, 6)
    assert (taps.above, taps.before, taps.is_partial) == (1, 0, True)


def test_a_mask_that_changed_is_read_again() -> None:
    x, (weight, bias) = torch.randn(1, 3, 5, 5, dtype=torch.float64), weight_and_bias(4, 3, (3, 3))
    mask = torch.ones(3, 3, dtype=torch.bool)
    for row in range(3):
        mask[row] = False
        want = reference.masked_conv2d(x, weight, bias, mask)
        torch.testing.assert_close(ops.masked_conv2d(x, weight, bias, mask=mask), want)


def test_a_given_mask_compiles_and_transforms() -> None:
    x, (weight, bias) = torch.randn(2, 3, 5, 5, dtype=torch.float64), weight_and_bias(4, 3, (3, 3))
    mask = torch.rand(4, 3, 3, 3) < 0.5
    want = reference.masked_conv2d(x, weight, bias, mask)
    torch.compiler.reset()  # other tests compile the same functions, and a function has a limit
    compiled = torch.compile(ops.masked_conv2d, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias, mask=mask), want)
    per_sample = torch.func.vmap(lambda x: ops.masked_conv2d(x, weight, bias, mask=mask))(x)
    torch.testing.assert_close(per_sample, want)
    _, tangent = torch.func.jvp(lambda x: ops.masked_conv2d(x, weight, mask=mask), (x,), (x,))
    torch.testing.assert_close(tangent, ops.masked_conv2d(x, weight, mask=mask))


def test_a_remembered_mask_serves_every_mode_and_no_other_dtype() -> None:
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.inference_mode():
        ops.masked_conv2d(x, weight, mask="A")
    ops.masked_conv2d(x, weight, mask="A").sum().backward()  # a mask made in inference mode could not be saved
    assert weight.grad is not None
    assert torch.equal(weight.grad[:, :, 1:, 1:], torch.zeros(4, 3, 2, 2))
    wide = ops.masked_conv2d(x.double(), weight.double(), mask="A")
    torch.testing.assert_close(wide, reference.masked_conv2d(x.double(), weight.double(), None, "A"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        ops.masked_conv2d(torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 5, 5), mask="B")
    images, kernel = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 5, 5)  # the first of this size that is real
    want = reference.masked_conv2d(images, kernel, None, "B")
    torch.testing.assert_close(ops.masked_conv2d(images, kernel, mask="B"), want)


def test_shapes_of_meta_tensors_are_those_of_real_ones() -> None:
    given = torch.ones(3, 3, dtype=torch.bool).tril()
    with torch.device("meta"):
        x, weight, masked = torch.empty(1, 4, 8, 8), torch.empty(6, 4, 3, 3), MaskedConv2d(4, 6, 3, mask=given)
        local = LocallyMaskedConv2d(4, 6, 3, mask="A", order="s_curve", size=(8, 8))
    assert masked(x).shape == local(x).shape == ops.masked_conv2d(x, weight, mask="A").shape == (1, 6, 8, 8)
    assert ops.gated_masked_conv2d(x, weight, mask="A").shape == (1, 3, 8, 8)
    assert ops.masked_residual(x, weight, None, torch.empty(1, 6, 8, 8, device="meta"), mask="A").shape == (1, 6, 8, 8)


@pytest.mark.parametrize(
    ("channels", "kernel_size", "channels_last", "expected"),
    [
        (4, 3, False, False),
        (8, 3, False, False),
        (16, 3, False, True),
        (32, 3, False, True),
        (32, 3, True, True),
        (32, 5, False, True),
    ],
)
def test_the_kernel_is_cropped_where_that_was_measured_to_pay(
    channels: int, kernel_size: int, channels_last: bool, expected: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.zeros(4, channels, 28, 28).to(memory_format=layout)
    weight = torch.zeros(channels, channels, kernel_size, kernel_size)
    assert pays_to_crop(x, weight, named_taps((kernel_size, kernel_size), "B")) == expected
