"""Transforms around compiled functions and backward passes: right where operators do not follow, or an error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from fastvae import ops

SIZE = (9, 10)
BITS = ops.tap_bits(ops.generation_order("hilbert", SIZE), SIZE, 3, mask="A")


def locally_masked() -> tuple[Any, Tensor, Tensor, Tensor]:
    x = torch.randn(4, 16, *SIZE)
    weight = torch.randn(6, 16, 3, 3) / 12
    return lambda w: ops.locally_masked_conv2d(x, w, mask=BITS), x, weight, torch.randn_like(weight)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def tangent_of(function: Callable[..., Tensor], value: Tensor, tangent: Tensor) -> Tensor | None:
    with fwAD.dual_level():
        return fwAD.unpack_dual(function(fwAD.make_dual(value, tangent))).tangent


def test_forward_mode_inside_a_compiled_function() -> None:
    ours, _, weight, tangent = locally_masked()
    expected = torch.func.jvp(ours, (weight,), (tangent,))[1]
    assert expected.abs().max() > 0
    jvp = compiled(lambda w, t: torch.func.jvp(ours, (w,), (t,))[1])
    torch.testing.assert_close(jvp(weight, tangent), expected)
    torch.testing.assert_close(tangent_of(compiled(ours), weight, tangent), expected)


def test_gradient_inside_a_compiled_function() -> None:
    ours, _, weight, _ = locally_masked()
    gradient = torch.func.grad(lambda w: ours(w).square().sum())
    torch.testing.assert_close(compiled(gradient)(weight), gradient(weight))


def test_a_compiled_function_called_inside_and_outside_of_a_dual_level() -> None:
    ours, _, weight, tangent = locally_masked()
    function = compiled(ours)
    torch.testing.assert_close(function(weight), ours(weight))
    torch.testing.assert_close(tangent_of(function, weight, tangent), ours(tangent), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(function(weight), ours(weight))


def test_forward_mode_over_a_gradient_whose_forward_pass_was_outside() -> None:
    """The gradient is linear in grad_y: its derivative along t is the gradient for t, of all orders."""
    _, x, weight, _ = locally_masked()
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = torch.ops.fastvae.locally_masked_conv2d(x, weight, None, BITS, 1, False)
    grad_y, tangent = torch.randn_like(y), torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, weight), tangent, retain_graph=True)

    def gradient(cotangent: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, (x, weight), cotangent, retain_graph=True)

    with fwAD.dual_level():
        tangents = [fwAD.unpack_dual(g).tangent for g in gradient(fwAD.make_dual(grad_y, tangent))]
    torch.testing.assert_close(tangents, list(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.func.jvp(gradient, (grad_y,), (tangent,))[1], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient(tangent), expected)  # outside of a level the operators run again


def likelihood_calls() -> dict[str, Callable[[Tensor], Tensor]]:
    x = torch.zeros(512, 784)
    nade = [torch.randn(784, 8) / 9, torch.zeros(8), torch.randn(784, 8) / 9, torch.zeros(784)]
    return {
        "bernoulli": lambda t: torch.ops.fastvae.bernoulli_log_prob(x, t.expand(512, 784)),
        "gaussian": lambda t: ops.gaussian_log_prob(x, t.expand(512, 784), torch.zeros(784), event_dims=1),
        "categorical": lambda t: ops.categorical_log_prob(
            x.long(), t[:, None].expand(512, 784, 8), event_dims=1, levels_dim=-1
        ),
        "logistic_mixture": lambda t: ops.logistic_mixture_log_prob(
            torch.zeros(16, 1, 28, 28), t.expand(16, 15, 784).unflatten(2, (28, 28)), num_levels=256
        ),
        "nade": lambda t: ops.nade_logits(x, nade[0] * t[:, None], *nade[1:]),
    }


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "categorical", "logistic_mixture", "nade"])
def test_other_gradients_refuse_forward_mode_and_are_never_silently_zero(name: str) -> None:
    parameter = torch.randn(784, requires_grad=True)
    y = likelihood_calls()[name](parameter)
    grad_y = torch.ones_like(y)
    expected = torch.autograd.grad(y, parameter, grad_y, retain_graph=True)
    with fwAD.dual_level():
        torch.testing.assert_close(torch.autograd.grad(y, parameter, grad_y, retain_graph=True), expected)
        with pytest.raises(RuntimeError, match=f"forward-mode AD of the gradient of {name}.*needs its forward pass"):
            torch.autograd.grad(y, parameter, fwAD.make_dual(grad_y, grad_y), retain_graph=True)


@pytest.mark.parametrize(("channels", "order"), [(3, "raster"), (16, "raster"), (3, "s_curve"), (16, "s_curve")])
def test_the_weight_gradient_is_laid_out_as_compilers_are_told(channels: int, order: Any) -> None:
    size = (12, 12)
    bits = ops.tap_bits(ops.generation_order(order, size), size, 3, mask="B")
    x, grad_y = torch.randn(2, channels, *size), torch.randn(2, 4, *size)
    torch.library.opcheck(torch.ops.fastvae.locally_masked_conv2d_grad_weight.default, (x, grad_y, 3, bits, 1, False))


def test_compilers_get_no_view_whose_strides_are_products_of_symbols() -> None:
    """Inductor cannot order them ("cannot determine truth value of Relational"), where sizes are dynamic."""
    graphs = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    weight, x = torch.randn(64, 16, 5, 5), torch.randn(4, 16, 20, 20)
    function = torch.compile(
        lambda x: ops.masked_conv2d(x, weight, mask="B"), fullgraph=True, dynamic=True, backend=record
    )
    torch.testing.assert_close(function(x), ops.masked_conv2d(x, weight, mask="B"), rtol=1e-4, atol=1e-4)
    assert "unflatten" not in graphs[0]
    assert "masked_fill" in graphs[0]


@pytest.mark.parametrize("shape", [(2, 3, *SIZE), (8, 16, *SIZE)], ids=["unfolded", "gathered"])
def test_forward_mode_over_the_gradient_of_a_small_locally_masked_convolution(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    y = ops.locally_masked_conv2d(x, weight, mask=BITS)
    grad_y, tangent = torch.randn_like(y), torch.randn_like(y)

    def gradient(cotangent: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, (x, weight), cotangent, retain_graph=True)

    expected = gradient(tangent)
    torch.testing.assert_close(torch.func.jvp(gradient, (grad_y,), (tangent,))[1], expected)
    with fwAD.dual_level():
        tangents = [fwAD.unpack_dual(g).tangent for g in gradient(fwAD.make_dual(grad_y, tangent))]
    torch.testing.assert_close(tangents, list(expected))
