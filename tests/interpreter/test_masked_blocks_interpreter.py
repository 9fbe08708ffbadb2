"""Gated and residual masked convolutions, interpreted: equal to their definitions, first and second derivatives too."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae import ops, reference

# the error of one rounding to float16 at every step; see TOLERANCE of the plain convolution
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 3e-5}, torch.float16: {"rtol": 4e-3, "atol": 2e-2}}


@pytest.fixture(autouse=True, scope="module")
def _fresh_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(before)


def made(dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype).requires_grad_()


def check(ours: Callable[..., Tensor], definition: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Values and gradients against the definition in float64."""
    exact = [t.detach().double().requires_grad_() for t in inputs]
    want = definition(*exact)
    grad_y = torch.randn(want.shape).to(inputs[0].dtype)
    expected = [want.detach(), *torch.autograd.grad(want, exact, grad_y.double())]
    with fastvae.backend("triton"):
        y = ours(*inputs)
        assert y.dtype == inputs[0].dtype
        assert "fastvae" in str(y.grad_fn)  # the operator ran, not the PyTorch path
        with torch.no_grad():
            torch.testing.assert_close(ours(*inputs), y)  # saves nothing
    for got, other in zip([y.detach(), *torch.autograd.grad(y, inputs, grad_y)], expected, strict=True):
        torch.testing.assert_close(got.double(), other, **TOLERANCE[inputs[0].dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # bfloat16 is wrong in the interpreter
@pytest.mark.parametrize(("in_channels", "half"), [(1, 3), (3, 16), (16, 8), (20, 40)])
@pytest.mark.parametrize("condition", ["none", "vector", "map"])
def test_gated_equals_its_definition(condition: str, in_channels: int, half: int, dtype: torch.dtype) -> None:
    inputs = [made(dtype, 3, in_channels, 5, 4), made(dtype, 2 * half, in_channels, 3, 3, scale=in_channels**-0.5)]
    inputs += [made(dtype, 2 * half)]
    shapes = {"none": [], "vector": [(3, 2 * half)], "map": [(3, 2 * half, 5, 4)]}
    inputs += [made(dtype, *shape) for shape in shapes[condition]]

    def ours(*t: Tensor) -> Tensor:
        return ops.gated_masked_conv2d(*t, mask="B")

    def definition(x: Tensor, weight: Tensor, bias: Tensor, given: Tensor | None = None) -> Tensor:
        return reference.gated_masked_conv2d(x, weight, bias, given, "B")

    check(ours, definition, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 3), (16, 16), (20, 40)])
@pytest.mark.parametrize("activation", ["relu", "elu", "none"])
def test_residual_equals_its_definition(
    activation: Any, in_channels: int, out_channels: int, dtype: torch.dtype
) -> None:
    inputs = [
        made(dtype, 3, in_channels, 5, 4),
        made(dtype, out_channels, in_channels, 3, 3, scale=in_channels**-0.5),
        made(dtype, out_channels),
        made(dtype, 3, out_channels, 5, 4),
    ]

    def ours(*t: Tensor) -> Tensor:
        return ops.masked_residual(*t, mask="A", activation=activation)

    def definition(*t: Tensor) -> Tensor:
        return reference.masked_residual(*t, "A", activation)

    check(ours, definition, inputs)


@pytest.mark.parametrize(
    ("mask", "kernel_size", "dilation"),
    [("A", (1, 3), 1), ("vertical", (3, 3), 2), (torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) != 0, (3, 3), 1)],
)
def test_gated_serves_every_mask_and_layout(mask: Any, kernel_size: tuple[int, int], dilation: int) -> None:
    x = made(torch.float32, 2, 4, 5, 6).detach().to(memory_format=torch.channels_last).requires_grad_()
    inputs = [x, made(torch.float32, 6, 4, *kernel_size)]
    check(
        lambda *t: ops.gated_masked_conv2d(*t, mask=mask, dilation=dilation),
        lambda x, weight: reference.gated_masked_conv2d(x, weight, None, None, mask, dilation),
        inputs,
    )
    with fastvae.backend("triton"):
        y = ops.gated_masked_conv2d(*inputs, mask=mask, dilation=dilation)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("condition", [(2, 6), (2, 6, 3, 4)])
def test_the_second_derivative_of_a_gate_is_right(condition: tuple[int, ...]) -> None:
    shapes = [(2, 3, 3, 4), (6, 3, 3, 3), (6,), condition]
    inputs = [made(torch.float32, *shape, scale=0.3) for shape in shapes]
    with fastvae.backend("triton"):
        ours = ops.gated_masked_conv2d(*inputs, mask="B")
    theirs = reference.gated_masked_conv2d(*inputs, "B")
    torch.testing.assert_close(second_derivatives(ours, inputs), second_derivatives(theirs, inputs), **LOOSE)


@pytest.mark.parametrize("activation", ["relu", "elu", "none"])
def test_the_second_derivative_of_a_residual_is_right(activation: Any) -> None:
    inputs = [made(torch.float32, *shape, scale=0.3) for shape in [(2, 3, 3, 4), (5, 3, 3, 3), (5,), (2, 5, 3, 4)]]
    with fastvae.backend("triton"):
        ours = ops.masked_residual(*inputs, mask="B", activation=activation)
    theirs = reference.masked_residual(*inputs, "B", activation)
    torch.testing.assert_close(second_derivatives(ours, inputs), second_derivatives(theirs, inputs), **LOOSE)


LOOSE = {"rtol": 1e-4, "atol": 1e-4}


def second_derivatives(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))


def test_compiles_without_graph_breaks_on_the_kernels() -> None:
    shapes = [(2, 3, 5, 4), (6, 3, 3, 3), (6,), (2, 6, 5, 4)]
    inputs = [made(torch.float32, *shape) for shape in shapes]
    calls: list[Callable[..., Tensor]] = [
        lambda *t: ops.gated_masked_conv2d(*t, mask="B"),
        lambda *t: ops.masked_residual(*t, mask="B", activation="elu"),
    ]
    for call in calls:
        with fastvae.backend("triton"):
            want = call(*inputs)
            y = torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(y, want)
        grads = [torch.autograd.grad(result.square().sum(), inputs) for result in (y, want)]
        torch.testing.assert_close(*grads)


def test_empty_batches_are_served() -> None:
    x, weight = torch.randn(0, 3, 5, 4, requires_grad=True), torch.randn(6, 3, 3, 3, requires_grad=True)
    with fastvae.backend("triton"):
        y = ops.gated_masked_conv2d(x, weight, mask="B")
        z = ops.masked_residual(x, weight, None, torch.randn(0, 6, 5, 4), mask="B")
    assert y.shape == (0, 3, 5, 4)
    assert z.shape == (0, 6, 5, 4)
    for result in (y, z):
        (grad,) = torch.autograd.grad(result.sum(), weight)
        assert (grad == 0).all()
