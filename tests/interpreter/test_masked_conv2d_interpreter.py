"""The masked convolution kernels, interpreted: equal to the definition, causal, and writing all that they return."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastvae_kernels import masked_conv2d as kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastvae
from fastvae import ops, reference
from fastvae.nn import MaskedConv2d

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 3e-5}, torch.float16: {"rtol": 2e-3, "atol": 2e-2}}


@pytest.fixture(autouse=True, scope="module")
def _fresh_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def check_all_three(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor, mask: Any, dilation: int = 1
) -> None:
    """Forward, input gradient and weight gradient against the definition in float64."""
    exact = [t.double().requires_grad_() for t in (x, weight)]
    want = reference.masked_conv2d(*exact, None if bias is None else bias.double(), mask, dilation)
    grad_x, grad_weight = torch.autograd.grad(want, exact, grad_y.double())
    kernel_size = weight.shape[-1]
    live, tolerance = reference.count_live_taps(kernel_size, mask), TOLERANCE[x.dtype]
    centre = (kernel_size // 2, kernel_size // 2)
    y = kernels.forward(x, weight, bias, live, dilation, centre)
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.double(), want.detach(), **tolerance)
    torch.testing.assert_close(kernels.grad_input(grad_y, weight, live, dilation, centre).double(), grad_x, **tolerance)
    ours = kernels.grad_weight(x, grad_y, (kernel_size, kernel_size), live, dilation, centre)
    assert (ours[..., reference.raster_mask(kernel_size, mask) == 0] == 0).all()
    torch.testing.assert_close(ours.double(), grad_weight, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # bfloat16 is wrong in the interpreter
@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 5), (3, 20), (20, 3), (16, 64), (64, 16), (120, 130)])
@pytest.mark.parametrize(("kernel_size", "mask", "dilation"), [(1, "A", 1), (1, "B", 1), (3, "A", 2), (5, "B", 1)])
def test_values_and_gradients_are_those_of_the_definition(
    kernel_size: int, mask: Any, dilation: int, in_channels: int, out_channels: int, dtype: torch.dtype
) -> None:
    x = torch.randn(2, in_channels, 5, 7).to(dtype)
    weight = (torch.randn(out_channels, in_channels, kernel_size, kernel_size) / in_channels**0.5).to(dtype)
    check_all_three(
        x, weight, torch.randn(out_channels).to(dtype), torch.randn(2, out_channels, 5, 7).to(dtype), mask, dilation
    )


@settings(deadline=None, max_examples=15)
@given(
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    mask=st.sampled_from(["A", "B"]),
    in_channels=st.integers(1, 40),
    out_channels=st.integers(1, 40),
    batch=st.integers(0, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_any_shape_is_served(
    kernel_size: int, mask: Any, in_channels: int, out_channels: int, batch: int, height: int, width: int
) -> None:
    x, grad_y = torch.randn(batch, in_channels, height, width), torch.randn(batch, out_channels, height, width)
    check_all_three(x, torch.randn(out_channels, in_channels, kernel_size, kernel_size) / 5, None, grad_y, mask)


@pytest.mark.parametrize("channels", [3, 20])
@pytest.mark.parametrize(
    ("mask", "kernel_size", "dilation", "num_colours"),
    [
        ("A", (1, 5), 1, 1),
        ("B", (3, 5), 1, 3),
        ("A", (3, 3), 1, 2),
        ("vertical", (3, 3), 2, 1),
        ("vertical-strict", (5, 3), 1, 1),
        (torch.tensor([[0, 0, 0], [0, 1, 1], [1, 1, 0]]) != 0, (3, 3), 1, 1),
    ],
)
def test_every_kind_of_mask_is_served(
    mask: Any, kernel_size: tuple[int, int], dilation: int, num_colours: int, channels: int
) -> None:
    x = torch.randn(2, channels, 5, 6, requires_grad=True)
    weight = (torch.randn(7, channels, *kernel_size) / 5).requires_grad_()
    inputs = (x, weight, torch.randn(7, requires_grad=True))
    with fastvae.backend("triton"):
        y = ops.masked_conv2d(*inputs, mask=mask, dilation=dilation, num_colours=num_colours)
    want = reference.masked_conv2d(*inputs, mask, dilation, num_colours)
    grad_y = torch.randn_like(want)
    for got, expected in zip(
        (y, *torch.autograd.grad(y, inputs, grad_y)), (want, *torch.autograd.grad(want, inputs, grad_y)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=3e-5)


def test_many_pixels_are_summed_in_shares() -> None:
    x, grad_y = torch.randn(3, 2, 30, 31), torch.randn(3, 4, 30, 31)  # 2790 pixels: more than one share
    weight = torch.randn(4, 2, 3, 3)
    check_all_three(x, weight, torch.randn(4), grad_y / 30, "B")
    first, second = (kernels.grad_weight(x, grad_y, (3, 3), 5, 1, (1, 1)) for _ in range(2))
    assert torch.equal(first, second)


def test_strided_and_unaligned_inputs_are_served() -> None:
    weight = torch.randn(3, 16, 3, 5).permute(0, 1, 3, 2)[:, :, :3]
    sliced = torch.randn(4, 40, 6, 9)[1:3, 4:20, :, ::2]
    check_all_three(sliced, weight, torch.randn(6)[::2], torch.randn(2, 3, 5, 6).transpose(2, 3), "A")
    unaligned = torch.randn(2 * 16 * 30 + 1)[1:].view(2, 5, 6, 16).permute(0, 3, 1, 2)
    assert unaligned.data_ptr() % 16 != 0
    check_all_three(unaligned, weight, None, torch.randn(2, 3, 5, 6), "B")


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("channels", [3, 16])
def test_an_invalid_pixel_spoils_exactly_the_outputs_that_may_see_it(channels: int, mask: Any) -> None:
    x = torch.rand(1, channels, 5, 6)
    x[0, 1, 2, 3] = float("nan")
    spoilt = kernels.forward(
        x, torch.rand(4, channels, 3, 3), None, reference.count_live_taps(3, mask), 1, (1, 1)
    ).isnan()
    for i in range(5):
        for j in range(6):
            in_reach = max(abs(i - 2), abs(j - 3)) <= 1
            may_see = in_reach and ((i, j) > (2, 3) or (mask == "B" and (i, j) == (2, 3)))
            assert (spoilt[0, :, i, j] == may_see).all(), (i, j)


def test_the_operator_differentiates_through_the_kernels() -> None:
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    layer = MaskedConv2d(3, 6, 3, mask="A")
    with fastvae.backend("triton"):
        y = layer(x)
        assert "masked_conv2d" in type(y.grad_fn).__name__  # the operator ran, not the PyTorch path
        channels_last = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous()
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    want = reference.masked_conv2d(x, layer.weight, layer.bias, "A")
    torch.testing.assert_close(y, want)
    inputs = (x, layer.weight, layer.bias)
    ours = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    theirs = torch.autograd.grad(want.square().sum(), inputs, create_graph=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    second = [torch.autograd.grad(sum(g.square().sum() for g in grads), inputs) for grads in (ours, theirs)]
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-3)


def test_transforms_take_the_pytorch_path_and_float64_is_refused() -> None:
    x, weight = torch.randn(1, 3, 5, 4), torch.randn(2, 3, 3, 3)
    with fastvae.backend("triton"):
        tangent = torch.func.jvp(lambda x: ops.masked_conv2d(x, weight, mask="B"), (x,), (x,))[1]
        torch.testing.assert_close(tangent, ops.masked_conv2d(x, weight, mask="B"))
        with pytest.raises(RuntimeError, match=r"forced but cannot run.*float64"):
            ops.masked_conv2d(x.double(), weight.double(), mask="B")
