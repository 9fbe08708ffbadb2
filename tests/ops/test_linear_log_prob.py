"""The last layer with a Gaussian, categorical or mixture likelihood on the CPU: equal to the two apart."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvae import reference
from fastvae.ops import (
    likelihood_rows,
    linear_categorical_log_prob,
    linear_gaussian_log_prob,
    linear_logistic_mixture_log_prob,
    linear_operators,
    linear_rows,
)


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", 0)
    monkeypatch.setattr(linear_operators, "_KEPT", 0)
    monkeypatch.setattr(linear_rows, "_FEWEST_ROWS", 1)
    monkeypatch.setitem(linear_rows._CHUNK, "cpu", 7 * 24)


def layer(outputs: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(outputs, 6, dtype=dtype), torch.randn(outputs, dtype=dtype)]


def gaussian(log_scale: Tensor | None, event_dims: int, dim: int) -> tuple[Callable, Callable]:
    return (
        lambda h, w, b, x: linear_gaussian_log_prob(h, w, b, x, log_scale, event_dims, dim),
        lambda h, w, b, x: reference.linear_gaussian_log_prob(h, w, b, x, log_scale, event_dims, dim),
    )


def categorical(event_dims: int, dim: int) -> tuple[Callable, Callable]:
    return (
        lambda h, w, b, x: linear_categorical_log_prob(h, w, b, x, event_dims, dim),
        lambda h, w, b, x: reference.linear_categorical_log_prob(h, w, b, x, event_dims, dim),
    )


def mixture(event_dims: int) -> tuple[Callable, Callable]:
    return (
        lambda h, w, b, x: linear_logistic_mixture_log_prob(h, w, b, x, 5, event_dims),
        lambda h, w, b, x: reference.linear_logistic_mixture_log_prob(h, w, b, x, 5, event_dims),
    )


SCALE = torch.randn((), dtype=torch.float64)
CASES = [
    (gaussian(None, 1, -2), (12,), 24),
    (gaussian(None, 3, -3), (2, 2, 3), 24),
    (gaussian(SCALE, 1, -2), (12,), 12),
    (gaussian(torch.randn(2, 1, 1, dtype=torch.float64), 3, -3), (2, 2, 3), 12),
    (categorical(1, -1), (4,), 20),
    (categorical(3, -3), (2, 1, 2), 20),
    (mixture(3), (1, 2, 2), 2 * 3 * 4),
    (mixture(3), (3, 1, 2), 10 * 2),
    (mixture(1), (3,), 2 * 10),
    (mixture(2), (1, 1), 2 * 3),
]


@pytest.mark.parametrize(("functions", "event", "outputs"), CASES)
@pytest.mark.parametrize("batch", [(5, 3), (3,), (0, 3)])
def test_values_and_gradients_equal_the_definition(
    functions: tuple[Callable, Callable], event: tuple[int, ...], outputs: int, batch: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 5, (3, *event))
    inputs = [value.requires_grad_() for value in (torch.randn(*batch, 6, dtype=torch.float64), *layer(outputs))]
    ours, want = (function(*inputs, x) for function in functions)
    torch.testing.assert_close(ours, want)
    grad = torch.randn_like(ours)
    for got, expected in zip(*(torch.autograd.grad(value, inputs, grad) for value in (ours, want)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(), (12,)])
def test_a_shared_scale_has_a_gradient(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    scale = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    h, x = torch.randn(5, 3, 6, dtype=torch.float64), torch.randn(3, 12)
    ours, want = (function(h, *layer_of_12, x).sin().sum() for function in gaussian(scale, 1, -2))
    torch.testing.assert_close(*(torch.autograd.grad(value, scale) for value in (ours, want)))


layer_of_12 = layer(12)


@pytest.mark.parametrize(("functions", "event", "outputs"), [CASES[0], CASES[4]])
def test_error_in_float32_is_at_most_twice_that_of_torch(
    functions: tuple[Callable, Callable], event: tuple[int, ...], outputs: int
) -> None:
    torch.manual_seed(0)
    x, h, (weight, bias) = torch.randint(0, 5, (3, *event)), torch.randn(100, 3, 6), layer(outputs, torch.float32)
    weight, bias = weight * 0.3, bias * 0.3
    ours, torchs = (function(h, weight, bias, x) for function in functions)
    exact = functions[1](h.double(), weight.double(), bias.double(), x)
    error, allowed = (ours - exact).abs(), 2 * (torchs - exact).abs() + 1e-6 * (1 + exact.abs())
    assert (error <= allowed).all()


@pytest.mark.parametrize(("functions", "event", "outputs"), CASES)
def test_few_parameters_are_kept_for_the_gradient(
    functions: tuple[Callable, Callable], event: tuple[int, ...], outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_operators, "_KEPT", 10**6)
    monkeypatch.setattr(linear_operators, "_forward", None)  # the operator that computes them twice
    torch.manual_seed(0)
    x = torch.randint(0, 5, (3, *event))
    inputs = [value.requires_grad_() for value in (torch.randn(4, 3, 6, dtype=torch.float64), *layer(outputs))]
    ours, want = (function(*inputs, x) for function in functions)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), inputs) for value in (ours, want)))


def test_pixels_of_a_1x1_convolution_are_rows() -> None:
    torch.manual_seed(0)
    conv, maps = torch.nn.Conv2d(6, 2 * 5, 1), torch.randn(4, 3, 6, 2, 2)
    x = torch.randint(0, 5, (3, 2, 2, 2))
    params = conv(maps.flatten(0, 1)).view(4, 3, 2, 5, 2, 2)
    want = reference.categorical_log_prob(x, params, 3, -3)
    pixels, data = maps.flatten(-2).transpose(-1, -2), x.flatten(-2).transpose(-1, -2)
    ours = linear_categorical_log_prob(pixels, conv.weight.flatten(1), conv.bias, data)
    torch.testing.assert_close(ours.sum(-1), want)


OPERATOR = {  # values of the event, outputs, L
    "gaussian": (4, 8, 0),
    "gaussian of means": (4, 4, 0),
    "categorical": (4, 12, 0),
    "logistic_mixture": (4, 12, 3),
}


@pytest.mark.parametrize("name", OPERATOR)
def test_is_a_well_formed_operator(name: str) -> None:
    torch.manual_seed(0)
    size, outputs, num_levels = OPERATOR[name]
    h, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 3), (outputs, 3), (outputs,))
    )
    scale = torch.zeros(1, dtype=torch.float64, requires_grad=True) if name == "gaussian of means" else None
    args = (torch.randint(0, 3, (3, 1, size)), h, weight, bias, scale, num_levels, name.split()[0])
    torch.library.opcheck(torch.ops.fastvae.linear_log_prob, args)
    given = (h, weight, bias) if scale is None else (h, weight, bias, scale)
    assert torch.autograd.gradcheck(
        lambda h, weight, bias, scale=None: torch.ops.fastvae.linear_log_prob(
            args[0], h, weight, bias, scale, num_levels, args[-1]
        ),
        given,
    )


@pytest.mark.parametrize(("functions", "event", "outputs"), [CASES[i] for i in (1, 2, 5, 7, 8)])
def test_compiles_without_graph_breaks_with_gradients(
    functions: tuple[Callable, Callable], event: tuple[int, ...], outputs: int
) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 5, (3, *event))
    inputs = [value.requires_grad_() for value in (torch.randn(4, 3, 6, dtype=torch.float64), *layer(outputs))]
    compiled = torch.compile(functions[0], fullgraph=True, backend="aot_eager")
    ours, want = compiled(*inputs, x), functions[1](*inputs, x)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), inputs) for value in (ours, want)))


@pytest.mark.parametrize(("functions", "event", "outputs"), CASES)
def test_autocast_rounds_the_product_and_sums_in_float32(
    functions: tuple[Callable, Callable], event: tuple[int, ...], outputs: int
) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 5, (3, *event))
    inputs = [value.requires_grad_() for value in (torch.randn(4, 3, 6), *layer(outputs, torch.float32))]
    with torch.autocast("cpu", torch.bfloat16):
        ours = functions[0](*inputs, x)
    assert ours.dtype == torch.float32
    rounded = [value.detach().bfloat16().requires_grad_() for value in inputs]
    want = functions[0](*rounded, x)
    assert torch.equal(ours, want)
    grads = torch.autograd.grad(ours.sum(), inputs)
    assert all(grad.dtype == torch.float32 for grad in grads)
    for got, expected in zip(grads, torch.autograd.grad(want.sum(), rounded), strict=True):
        torch.testing.assert_close(got, expected.float())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda h, w, x: linear_gaussian_log_prob(h, w, None, x), "weight must have 6 outputs"),
        (lambda h, w, x: linear_gaussian_log_prob(h, w, None, x, torch.zeros(2)), "log_scale must broadcast"),
        (lambda h, w, x: linear_gaussian_log_prob(h, w, None, x, params_dim=0), "params_dim must be between -2 and -1"),
        (lambda h, w, x: linear_categorical_log_prob(h, w[:4], None, x), "a multiple of 3"),
        (lambda h, w, x: linear_categorical_log_prob(h, w, None, x, 1, -3), "levels_dim must be between -2 and -1"),
        (lambda h, w, x: linear_logistic_mixture_log_prob(h, w, None, x, 1), "num_levels must be at least 2"),
        (lambda h, w, x: linear_logistic_mixture_log_prob(h, w, None, x), "event_dims must be between 1 and"),
        (lambda h, w, x: linear_logistic_mixture_log_prob(h, w, None, x, 4, 2), "x must have 1 or 3 channels"),
        (lambda h, w, x: linear_logistic_mixture_log_prob(h, w, None, x, 4, 1), "a multiple of 10"),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(torch.zeros(2, 4), torch.zeros(9, 4), torch.zeros(2, 3))
