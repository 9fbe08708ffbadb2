"""The plan of locally masked convolution on the CPU: every pixel once, no tap too many, never out of date."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastvae import ops, reference
from fastvae.ops import locally_masked_blocks as blocks
from fastvae.ops import locally_masked_plan as plan

ORDERS = ["raster", "s_curve", "hilbert", "random"]


def order_of(name: Any, size: tuple[int, int]) -> Tensor:
    return ops.generation_order(name, size, seed=3 if name == "random" else None)


def arguments(
    channels: int = 4, kernel_size: int = 3, size: tuple[int, int] = (9, 11), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, channels, *size, dtype=dtype, requires_grad=True)
    weight = (torch.randn(channels + 1, channels, kernel_size, kernel_size, dtype=dtype) / 5).requires_grad_()
    bias = torch.randn(channels + 1, dtype=dtype, requires_grad=True)
    return x, weight, bias


def check(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int = 1) -> None:
    """Values and all gradients against the definition, through the operators whatever the size."""
    inputs = [t for t in (x, weight, bias) if t is not None]
    want = reference.locally_masked_conv2d(x, weight, bias, mask, dilation)
    grad_y = torch.randn_like(want)
    expected = torch.autograd.grad(want, inputs, grad_y)
    operator = torch.ops.fastvae.locally_masked_conv2d(x, weight, bias, mask, dilation, False)
    for ours in (operator, ops.locally_masked_conv2d(x, weight, bias, mask=mask, dilation=dilation)):
        torch.testing.assert_close(ours, want)
        torch.testing.assert_close(torch.autograd.grad(ours, inputs, grad_y), expected)


@pytest.mark.parametrize("channels", [3, 16])
def test_a_batch_is_computed_in_parts_that_fit_together(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    monkeypatch.setattr(blocks, "_CHUNK_BYTES", 3 * channels * 8 * 9 * 8)
    monkeypatch.setattr(blocks, "_COLUMN_BYTES", {"cpu": 3 * channels * 8 * 9 * 8 * 9})
    x = torch.randn(8, channels, 8, 9, dtype=torch.float64, requires_grad=True)
    _, weight, bias = arguments(channels)
    shared = ops.tap_bits(order_of("random", (8, 9)), (8, 9), 3, mask="B")
    check(x, weight, bias, shared)
    check(x, weight, bias, torch.stack([shared.roll(shift, 0) for shift in range(8)]))


def test_large_blocks_are_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_MOST_ELEMENTS", 2000)
    monkeypatch.setattr(plan, "_FEWEST_ROWS", 4)
    monkeypatch.setattr(plan, "_FEWEST_PRODUCTS", 1)
    x, weight, bias = arguments(17, 3, (11, 12))  # a shape no other test has remembered plans of
    check(x, weight, bias, ops.tap_bits(order_of("s_curve", (11, 12)), (11, 12), 3, mask="B"))


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(ORDERS),
    kernel_size=st.sampled_from([3, 5, 7]),
    copies=st.integers(1, 20),
    channels=st.sampled_from([12, 64]),
)
def test_the_blocks_of_a_plan_have_every_pixel_once_and_its_taps(
    name: str, kernel_size: int, copies: int, channels: int
) -> None:
    mask = ops.tap_bits(order_of(name, (13, 14)), (13, 14), kernel_size, mask="B")
    live = reference.unpack_tap_bits(mask, kernel_size).flatten(1).t()  # (H * W, k * k)
    found = plan.plan_blocks(mask, kernel_size, 1, copies, channels, channels)
    assert torch.cat([block.pixels for block in found]).sort().values.tolist() == list(range(13 * 14))
    for block in found:
        assert torch.equal(block.taps, live[block.pixels].any(0).nonzero().flatten())  # no tap too many
        assert torch.equal(block.sources < 13 * 14, live[block.pixels][:, block.taps])  # the others see zeros


def test_a_changed_mask_never_finds_an_old_plan() -> None:
    x, weight, bias = arguments(16, 3, (20, 20))
    mask = ops.tap_bits(order_of("hilbert", (20, 20)), (20, 20), 3, mask="B")
    check(x, weight, bias, mask)
    mask.copy_(ops.tap_bits(order_of("random", (20, 20)), (20, 20), 3, mask="A"))  # same memory, other bits
    check(x, weight, bias, mask)
