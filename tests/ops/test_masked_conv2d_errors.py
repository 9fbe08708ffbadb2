"""Arguments that only fail deep inside are refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae import ops

BITS = ops.tap_bits(ops.generation_order("raster", (8, 8)), (8, 8), 3, mask="A")
W = torch.zeros(6, 4, 3, 3)
X = torch.zeros(2, 4, 8, 8)
OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "masked": lambda x, w: ops.masked_conv2d(x, w, torch.zeros(6), mask="A"),
    "gated": lambda x, w: ops.gated_masked_conv2d(x, w, mask="A"),
    "locally_masked": lambda x, w: ops.locally_masked_conv2d(x, w, torch.zeros(6), mask=BITS),
}
EACH = pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))


@EACH
def test_autocast_leaves_float64_alone_and_so_it_must_match(operator: Callable[..., Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"weight must have the dtype of x"):
        operator(X.double(), W)
    with torch.autocast("cpu", torch.bfloat16):
        assert operator(X, W).dtype == torch.bfloat16


@EACH
def test_sparse_and_tiny_numbers_are_refused(operator: Callable[..., Tensor]) -> None:
    with pytest.raises(TypeError, match=r"x must be dense, got layout torch.sparse_coo"):
        operator(X.to_sparse(), W)
    with pytest.raises(TypeError, match=r"x must have at least 16 bits, got torch.float8_e4m3fn"):
        operator(X.to(torch.float8_e4m3fn), W.to(torch.float8_e4m3fn))


@pytest.mark.parametrize("order", [{}, [[0, 1], [0]], object()])
def test_what_is_no_order_is_named(order: Any) -> None:
    with pytest.raises(TypeError, match="order must be an array of rows and columns, got"):
        ops.tap_bits(order, (1, 2), 3, mask="A")


@pytest.mark.parametrize("layer", [fastvae.nn.MaskedConv2d, fastvae.nn.GatedMaskedConv2d])
def test_bias_is_a_flag(layer: Any) -> None:
    with pytest.raises(TypeError, match="bias must be True or False, got 'no'"):
        layer(4, 4, 3, bias="no", mask="A")
    with pytest.raises(TypeError, match="bias must be True or False, got 'no'"):
        fastvae.nn.LocallyMaskedConv2d(4, 4, 3, bias="no", mask="A", size=(4, 4))  # type: ignore[arg-type]
