"""Forward-mode AD over the gradients of kernels whose forward pass was outside of it: right, not silently zero."""

from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

import fastvae
from fastvae import ops

BITS = ops.tap_bits(ops.generation_order("hilbert", (5, 5)), (5, 5), 3, mask="A")
OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "masked": lambda x, w: ops.masked_conv2d(x, w, mask="B"),
    "gated": lambda x, w: ops.gated_masked_conv2d(x, w, mask="B"),
    "residual": lambda x, w: ops.masked_residual(x, w, None, torch.ones(1, 16, 5, 5), mask="B"),
    "locally_masked": lambda x, w: ops.locally_masked_conv2d(x, w, mask=BITS),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_derivative_along_a_tangent_of_grad_y(name: str) -> None:
    x, weight = torch.randn(1, 16, 5, 5, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    with fastvae.backend("triton"):
        y = OPERATORS[name](x, weight)
        assert "fastvae" in str(y.grad_fn)
        grad_y, tangent = torch.randn_like(y), torch.randn_like(y)
        expected = torch.autograd.grad(y, (x, weight), tangent, retain_graph=True)
        with fwAD.dual_level():
            found = torch.autograd.grad(y, (x, weight), fwAD.make_dual(grad_y, tangent))
            tangents = [fwAD.unpack_dual(gradient).tangent for gradient in found]
    torch.testing.assert_close(tangents, list(expected), rtol=1e-4, atol=1e-4)
