"""linear_bernoulli_log_prob on the CPU: equal to the layer and its likelihood, accurate, differentiable, bounded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastvae
from fastvae import ops, reference
from fastvae.ops import likelihood_rows, linear_bernoulli_log_prob, linear_operators, linear_rows
from fastvae.ops.linear_operators import FAMILIES

FORWARD = torch.ops.fastvae.linear_log_prob


def binary(*shape: int) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.5))


def layer(size: int, width: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return (torch.randn(size, width) * scale).to(dtype), (torch.randn(size) * scale).to(dtype)


@pytest.fixture(autouse=True)
def no_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small cases go through the operator, several chunks each."""
    monkeypatch.setattr(likelihood_rows, "FEW", 0)
    monkeypatch.setattr(linear_operators, "_KEPT", 0)
    monkeypatch.setattr(linear_rows, "_FEWEST_ROWS", 1)
    monkeypatch.setitem(linear_rows._CHUNK, "cpu", 40 * 100)


# 40 rows of 100 make a chunk; more than 192 repeats fold the signs into the weights
SHAPES = [
    ((3, 7), 100),
    ((200, 2), 100),
    ((193, 1), 37),
    ((1, 130), 9),
    ((45, 3), 5),
    ((2, 1), 5000),
    ((0, 3), 4),
    ((5,), 8),
]


@pytest.mark.parametrize(("batch", "size"), SHAPES)
@pytest.mark.parametrize("scale", [0.3, 30.0])
def test_error_is_at_most_twice_that_of_torch(batch: tuple[int, ...], size: int, scale: float) -> None:
    torch.manual_seed(0)
    h, x = torch.randn(*batch, 6), binary(*batch[1:], size)
    weight, bias = layer(size, 6, scale)
    exact = reference.linear_bernoulli_log_prob(h.double(), weight.double(), bias.double(), x, 1)
    logits = F.linear(h, weight, bias)
    torchs = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    ours = linear_bernoulli_log_prob(h, weight, bias, x)
    assert ours.shape == batch
    assert ours.dtype == torch.float32
    assert ((ours - exact).abs() <= 2 * (torchs - exact).abs() + 2e-6 * (1 + exact.abs())).all()


@pytest.mark.parametrize("repeats", [3, 300])
def test_products_that_underflow_are_taken_apart(repeats: int) -> None:
    weight = torch.tensor([[1.0]]).repeat(17, 1)
    h, x = torch.tensor([0.0, 30.0, -1e4, 1e4, torch.nan])[:, None].repeat(repeats, 1, 1), torch.zeros(1, 17)
    ours = linear_bernoulli_log_prob(h, weight, None, x)
    want = reference.linear_bernoulli_log_prob(h, weight, None, x, 1)
    torch.testing.assert_close(ours, want, equal_nan=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("h_shape", "x_shape", "event_dims"),
    [((4, 5, 6), (5, 12), 1), ((4, 5, 6), (4, 1, 12), 1), ((6,), (7, 12), 1), ((200, 2, 6), (2, 3, 2, 2), 3)],
)
def test_broadcasting_and_gradients_equal_the_definition(
    h_shape: tuple[int, ...], x_shape: tuple[int, ...], event_dims: int, bias: bool
) -> None:
    torch.manual_seed(0)
    x = binary(*x_shape)
    inputs = [torch.randn(h_shape, dtype=torch.float64), *layer(12, 6, dtype=torch.float64)][: 3 if bias else 2]
    inputs = [value.requires_grad_() for value in inputs]
    h, weight, b = (*inputs, None)[:3]
    ours = linear_bernoulli_log_prob(h, weight, b, x, event_dims)
    want = reference.linear_bernoulli_log_prob(h, weight, b, x, event_dims)
    torch.testing.assert_close(ours, want)
    grad = torch.randn_like(ours)
    for got, expected in zip(*(torch.autograd.grad(value, inputs, grad) for value in (ours, want)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_only_the_gradients_that_are_asked_for(asked: int) -> None:
    torch.manual_seed(0)
    x, inputs = binary(3, 9), [torch.randn(4, 3, 6), *layer(9, 6)]
    inputs[asked].requires_grad_()
    ours, want = (f(*inputs, x, 1) for f in (linear_bernoulli_log_prob, reference.linear_bernoulli_log_prob))
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), inputs[asked]) for value in (ours, want)))


def test_gradients_are_the_same_bits_twice() -> None:
    torch.manual_seed(0)
    x, inputs = binary(3, 100), [value.requires_grad_() for value in (torch.randn(150, 3, 6), *layer(100, 6))]
    first, second = (torch.autograd.grad(linear_bernoulli_log_prob(*inputs, x).sum(), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return out


@pytest.mark.parametrize("backward", [False, True])
def test_no_more_logits_than_a_chunk_exist(backward: bool) -> None:
    x, h, (weight, bias) = binary(2, 100), torch.randn(1000, 2, 3), layer(100, 3)
    with Largest() as largest:
        linear_bernoulli_log_prob(h, weight, bias, x)
        if backward:
            rows, grad, needs = h.flatten(0, 1), torch.ones(2000), [True, True, True]
            FAMILIES["bernoulli"].backward(x[:, None], rows, weight, bias, None, 0, grad, needs)
    assert largest.elements <= max(linear_rows._CHUNK["cpu"], h.numel())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, h, (weight, bias) = binary(2, 100), torch.randn(200, 2, 6).to(dtype), layer(100, 6, dtype=dtype)
    ours = linear_bernoulli_log_prob(h, weight, bias, x)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, ops.bernoulli_log_prob(x, F.linear(h, weight, bias), 1), rtol=2e-3, atol=0.1)
    with fastvae.backend("reference"):
        torch.testing.assert_close(linear_bernoulli_log_prob(h, weight, bias, x), ours, rtol=2e-3, atol=0.1)


def test_autocast_rounds_the_product_as_it_does_that_of_a_layer() -> None:
    torch.manual_seed(0)
    x, (h, weight, bias) = binary(2, 100), (torch.randn(30, 2, 6), *layer(100, 6))
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = linear_bernoulli_log_prob(h, weight, bias, x)
    rounded = linear_bernoulli_log_prob(h.bfloat16(), weight.bfloat16(), bias.bfloat16(), x)
    assert torch.equal(under_autocast, rounded)


def test_is_a_well_formed_operator() -> None:
    inputs = [value.requires_grad_() for value in (torch.randn(6, 4), *layer(9, 4))]
    torch.library.opcheck(FORWARD, (binary(3, 1, 9), *inputs, None, 0, "bernoulli"))
    torch.library.opcheck(FORWARD, (binary(3, 1, 9), inputs[0], inputs[1], None, None, 0, "bernoulli"))


def test_compiles_without_graph_breaks() -> None:
    x, inputs = binary(3, 9), (torch.randn(2, 3, 4), *layer(9, 4))
    compiled = torch.compile(linear_bernoulli_log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, x), linear_bernoulli_log_prob(*inputs, x))


def test_forward_mode_and_vmap_are_right_not_zero() -> None:
    x, (weight, bias) = binary(3, 7), layer(7, 4)
    h, v = torch.randn(3, 4), torch.randn(3, 4)
    _, tangent = torch.func.jvp(lambda h: linear_bernoulli_log_prob(h, weight, bias, x), (h,), (v,))
    slope = x - F.linear(h, weight, bias).sigmoid()
    torch.testing.assert_close(tangent, (slope * F.linear(v, weight)).sum(-1))
    mapped = torch.vmap(lambda h: linear_bernoulli_log_prob(h, weight, bias, x))(h.expand(4, 3, 4))
    torch.testing.assert_close(mapped, linear_bernoulli_log_prob(h, weight, bias, x).expand(4, 3))


def test_second_derivatives_are_refused_not_wrong() -> None:
    h, (weight, bias) = torch.randn(3, 4, requires_grad=True), layer(7, 4)
    (grad,) = torch.autograd.grad(
        linear_bernoulli_log_prob(h, weight, bias, binary(3, 7)).square().sum(), h, create_graph=True
    )
    with pytest.raises(RuntimeError, match="linear_log_prob_backward"):
        grad.sum().backward()


def test_few_parameters_run_as_layer_and_likelihood_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, inputs = binary(3, 7), (torch.randn(2, 3, 4), *layer(7, 4))
    ours, (h, weight, bias) = linear_bernoulli_log_prob(*inputs, x), inputs
    assert torch.equal(ours, ops.bernoulli_log_prob(x, F.linear(h, weight, bias), 1))


ones: Callable[..., Tensor] = torch.ones


@pytest.mark.parametrize(
    ("h", "weight", "bias", "x", "event_dims", "error", "says"),
    [
        (ones(2, 4).long(), ones(3, 4), None, ones(2, 3), 1, TypeError, "h must be floating point"),
        (ones(2, 4), ones(3, 4).double(), None, ones(2, 3), 1, TypeError, "one dtype"),
        (ones(2, 5), ones(3, 4), None, ones(2, 3), 1, ValueError, r"h must have shape \(..., H\)"),
        (ones(2, 4), ones(5, 4), None, ones(2, 3), 1, ValueError, "weight must have 3 outputs"),
        (ones(2, 4), ones(3, 4), ones(4), ones(2, 3), 1, ValueError, r"bias must have shape \(3,\)"),
        (ones(2, 4), ones(3, 4), None, ones(2, 3), 3, ValueError, "event_dims must be between 1 and"),
        (ones(5, 2, 4), ones(3, 4), None, ones(4, 3), 1, ValueError, "must broadcast"),
        (ones(2, 4), ones(3, 4), None, torch.ones(2, 3, device="meta"), 1, ValueError, "one device"),
    ],
)
def test_bad_input(
    h: Tensor, weight: Tensor, bias: Any, x: Tensor, event_dims: int, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        linear_bernoulli_log_prob(h, weight, bias, x, event_dims)
