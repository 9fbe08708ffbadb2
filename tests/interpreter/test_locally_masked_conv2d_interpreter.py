"""The locally masked convolution kernels, interpreted: equal to the definition, causal, writing all they return."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastvae_kernels import locally_masked_conv2d as kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastvae
from fastvae import ops, reference
from fastvae.ops.tap_bits import mirror_tap_bits

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 5e-5}, torch.float16: {"rtol": 2e-3, "atol": 2e-2}}


@pytest.fixture(autouse=True, scope="module")
def _fresh_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def any_mask(shape: tuple[int, ...], kernel_size: int) -> Tensor:
    """Masks of no order at all, with bits beyond the last tap and taps outside the image."""
    return torch.randint(0, 1 << 62, shape) if kernel_size < 7 else torch.randint(0, 1 << 50, shape)


def check_all_three(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor, mask: Tensor, dilation: int = 1
) -> None:
    """Forward, input gradient and weight gradient against the definition in float64."""
    exact = [t.double().requires_grad_() for t in (x, weight)]
    want = reference.locally_masked_conv2d(*exact, None if bias is None else bias.double(), mask, dilation)
    grad_x, grad_weight = torch.autograd.grad(want, exact, grad_y.double())
    kernel_size, tolerance = weight.shape[-1], TOLERANCE[x.dtype]
    y = kernels.forward(x, weight, bias, mask, dilation)
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.double(), want.detach(), **tolerance)
    seen_by = mirror_tap_bits(mask, kernel_size, dilation)
    torch.testing.assert_close(kernels.grad_input(grad_y, weight, seen_by, dilation).double(), grad_x, **tolerance)
    ours = kernels.grad_weight(x, grad_y, kernel_size, mask, dilation)
    assert ours.dtype == x.dtype
    torch.testing.assert_close(ours.double(), grad_weight, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # bfloat16 is wrong in the interpreter
@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 5), (3, 20), (20, 3), (16, 64), (72, 70)])
@pytest.mark.parametrize(("kernel_size", "dilation", "per_image"), [(1, 1, False), (3, 2, True), (5, 1, False)])
def test_values_and_gradients_are_those_of_the_definition(
    kernel_size: int, dilation: int, per_image: bool, in_channels: int, out_channels: int, dtype: torch.dtype
) -> None:
    x = torch.randn(2, in_channels, 5, 7).to(dtype)
    weight = (torch.randn(out_channels, in_channels, kernel_size, kernel_size) / in_channels**0.5).to(dtype)
    mask = any_mask((2, 5, 7) if per_image else (5, 7), kernel_size)
    grad_y = torch.randn(2, out_channels, 5, 7).to(dtype)
    check_all_three(x, weight, torch.randn(out_channels).to(dtype), grad_y, mask, dilation)


@settings(deadline=None, max_examples=15)
@given(
    name=st.sampled_from(["raster", "s_curve", "hilbert", "random"]),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    mask=st.sampled_from(["A", "B"]),
    in_channels=st.integers(1, 40),
    out_channels=st.integers(1, 40),
    batch=st.integers(0, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_any_order_and_shape_is_served(
    name: Any,
    kernel_size: int,
    mask: Any,
    in_channels: int,
    out_channels: int,
    batch: int,
    height: int,
    width: int,
) -> None:
    order = ops.generation_order(name, (height, width), seed=5 if name == "random" else None)
    bits = ops.tap_bits(order, (height, width), kernel_size, mask=mask)
    x, grad_y = torch.randn(batch, in_channels, height, width), torch.randn(batch, out_channels, height, width)
    weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size) / 5
    if batch:
        check_all_three(x, weight, None, grad_y, bits)
    else:
        assert kernels.forward(x, weight, None, bits, 1).shape == grad_y.shape
        assert (kernels.grad_weight(x, grad_y, kernel_size, bits, 1) == 0).all()


def test_many_pixels_are_summed_in_shares_and_repeat_bit_by_bit() -> None:
    x, grad_y = torch.randn(3, 2, 30, 31), torch.randn(3, 4, 30, 31) / 30  # 2790 pixels: more than one share
    mask = any_mask((30, 31), 3)
    check_all_three(x, torch.randn(4, 2, 3, 3), torch.randn(4), grad_y, mask)
    first, second = (kernels.grad_weight(x, grad_y, 3, mask, 1) for _ in range(2))
    assert torch.equal(first, second)


def test_strided_and_unaligned_inputs_are_served() -> None:
    weight = torch.randn(3, 16, 3, 5).permute(0, 1, 3, 2)[:, :, :3]
    sliced = torch.randn(4, 40, 6, 9)[1:3, 4:20, :, ::2]
    mask = any_mask((5, 6), 3).t()
    check_all_three(sliced, weight, torch.randn(6)[::2], torch.randn(2, 3, 5, 6).transpose(2, 3), mask)
    unaligned = torch.randn(2 * 16 * 30 + 1)[1:].view(2, 5, 6, 16).permute(0, 3, 1, 2)
    assert unaligned.data_ptr() % 16 != 0
    check_all_three(unaligned, weight, None, torch.randn(2, 3, 5, 6), any_mask((2, 5, 12), 3)[..., ::2])


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("channels", [3, 16])
def test_an_invalid_pixel_spoils_exactly_the_outputs_that_may_see_it(channels: int, kernel_size: int) -> None:
    order = ops.generation_order("hilbert", (5, 6))
    rank = {tuple(pixel): place for place, pixel in enumerate(order.tolist())}
    mask = ops.tap_bits(order, (5, 6), kernel_size, mask="A")
    x = torch.rand(1, channels, 5, 6)
    x[0, 1, 2, 3] = float("nan")
    spoilt = kernels.forward(x, torch.rand(4, channels, kernel_size, kernel_size), None, mask, 1).isnan()
    for i in range(5):
        for j in range(6):
            in_reach = max(abs(i - 2), abs(j - 3)) <= kernel_size // 2
            assert (spoilt[0, :, i, j] == (in_reach and rank[i, j] > rank[2, 3])).all(), (i, j)


def test_the_operator_differentiates_twice_through_the_kernels() -> None:
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    weight, bias = torch.randn(6, 3, 3, 3, requires_grad=True), torch.randn(6, requires_grad=True)
    mask = ops.tap_bits(ops.generation_order("s_curve", (5, 4)), (5, 4), 3, mask="B")
    with fastvae.backend("triton"):
        y = ops.locally_masked_conv2d(x, weight, bias, mask=mask)
        channels_last = ops.locally_masked_conv2d(x.to(memory_format=torch.channels_last), weight, bias, mask=mask)
    assert y.is_contiguous()
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    want = reference.locally_masked_conv2d(x, weight, bias, mask)
    torch.testing.assert_close(y, want)
    inputs = (x, weight, bias)
    ours = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    theirs = torch.autograd.grad(want.square().sum(), inputs, create_graph=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    second = [torch.autograd.grad(sum(g.square().sum() for g in grads), inputs) for grads in (ours, theirs)]
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-3)


def test_transforms_take_the_definition_and_float64_is_refused() -> None:
    x, weight = torch.randn(1, 3, 5, 4), torch.randn(2, 3, 3, 3)
    mask = any_mask((5, 4), 3)
    with fastvae.backend("triton"):
        tangent = torch.func.jvp(lambda x: ops.locally_masked_conv2d(x, weight, mask=mask), (x,), (x,))[1]
        torch.testing.assert_close(tangent, ops.locally_masked_conv2d(x, weight, mask=mask))
        with pytest.raises(RuntimeError, match=r"forced but cannot run.*float64"):
            ops.locally_masked_conv2d(x.double(), weight.double(), mask=mask)
