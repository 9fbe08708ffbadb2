"""Modules that were traced, or made on the meta device, are the modules they would have been."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastvae
from fastvae import ops
from fastvae.ops.masked_conv2d_taps import _seen

SIZE = (9, 10)
SOME = torch.rand(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5
MODULES: dict[str, Callable[[], nn.Module]] = {
    "masked": lambda: fastvae.nn.MaskedConv2d(3, 8, 3, mask="B"),
    "given": lambda: fastvae.nn.MaskedConv2d(3, 8, 3, mask=SOME),
    "gated": lambda: fastvae.nn.GatedMaskedConv2d(3, 8, 3, mask="B"),
    "stack": lambda: fastvae.nn.CausalStack(3, 8, 2),
    "locally_masked": lambda: fastvae.nn.LocallyMaskedConv2d(3, 8, 3, mask="B", order="hilbert", size=SIZE),
}
EACH = pytest.mark.parametrize("name", MODULES)
X = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@EACH
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_module_that_is_traced_before_its_first_call(name: str) -> None:
    module = MODULES[name]()
    traced = torch.jit.trace(module, X)
    torch.testing.assert_close(traced(X), module(X))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_an_operator_that_is_traced_keeps_numbers_only() -> None:
    def call(x: Tensor) -> Tensor:
        return ops.masked_conv2d(x, weight, mask=mask)

    weight, mask = torch.randn(8, 3, 3, 3), SOME.clone()
    traced = torch.jit.trace(call, X)
    taps = _seen[mask][2]
    assert all(type(number) in (int, bool) for number in taps)
    torch.testing.assert_close(traced(X), call(X))


@EACH
@pytest.mark.parametrize("forget", [False, True])
def test_a_module_without_memory_knows_its_mask(name: str, forget: bool) -> None:
    """``to_empty`` of a layer on the meta device, and of one that has values."""
    expected = MODULES[name]()
    if forget:
        module = MODULES[name]()
    else:
        with torch.device("meta"):
            module = MODULES[name]()
    junk = [torch.full(SIZE, -1) for _ in range(20)]  # what freed memory may hold
    del junk
    module.to_empty(device="cpu")
    module.load_state_dict(expected.state_dict())
    torch.testing.assert_close(module(X), expected(X))


def test_masks_follow_a_layer_and_its_owner() -> None:
    layer: Any = fastvae.nn.LocallyMaskedConv2d(3, 8, 3, mask="B", order="hilbert", size=SIZE)
    other = layer.tap_bits("s_curve")
    layer.bits = other
    assert torch.equal(layer.double().to_empty(device="cpu").bits, other)
    assert layer.to("meta").bits.is_meta


@pytest.mark.parametrize("edit", ["data", "numpy"])
def test_an_operator_reads_a_mask_edited_behind_the_counter_of_versions(edit: str) -> None:
    weight, mask = torch.randn(8, 3, 3, 3), torch.zeros(3, 3, dtype=torch.bool)
    mask[0] = True
    ops.masked_conv2d(X, weight, mask=mask)
    if edit == "data":
        mask.data.copy_(mask.flip(0).clone())
    else:
        mask.numpy()[:] = mask.flip(0).numpy()
    expected = nn.functional.conv2d(X, weight * mask, padding=1)
    torch.testing.assert_close(ops.masked_conv2d(X, weight, mask=mask), expected)
