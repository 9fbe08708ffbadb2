"""On a card: the last layer with its Gaussian or categorical likelihood equals its definition, repeatably."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which is not installed")

import fastvae
from fastvae import ops, reference

pytestmark = pytest.mark.gpu


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda")


@pytest.mark.parametrize(("num_samples", "num_data"), [(300, 1), (50, 7), (1, 129)])
@pytest.mark.parametrize("kind", ["gaussian", "gaussian of means", "categorical"])
def test_value_and_gradients_equal_the_definition(kind: str, num_samples: int, num_data: int) -> None:
    size, per_value = 300, {"gaussian": 2, "gaussian of means": 1, "categorical": 100}[kind]
    h, weight = randn(num_samples, num_data, 200).tanh(), randn(per_value * size, 200) * 0.05
    x = torch.randint(100, (num_data, size), device="cuda") if kind == "categorical" else randn(num_data, size)
    inputs = [h, weight, randn(per_value * size) * 0.1] + ([randn(size) * 0.1] if kind == "gaussian of means" else [])

    def ours(h: Tensor, weight: Tensor, bias: Tensor, *log_scale: Tensor) -> Tensor:
        function: Callable = ops.linear_categorical_log_prob if kind == "categorical" else ops.linear_gaussian_log_prob
        with fastvae.backend("triton"):
            return function(h, weight, bias, x, *log_scale)

    def definition(h: Tensor, weight: Tensor, bias: Tensor, *log_scale: Tensor) -> Tensor:
        with fastvae.backend("reference"):
            if kind == "categorical":
                return ops.linear_categorical_log_prob(h, weight, bias, x)
            return ops.linear_gaussian_log_prob(h, weight, bias, x.to(h.dtype), *log_scale)

    inputs = [value.requires_grad_() for value in inputs]
    doubles = [value.detach().double().requires_grad_() for value in inputs]
    value, want, grad = ours(*inputs), definition(*doubles), randn(num_samples, num_data)
    torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=1e-4)
    grads = torch.autograd.grad(value, inputs, grad)
    for got, expected in zip(grads, torch.autograd.grad(want, doubles, grad.double()), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    again = torch.autograd.grad(ours(*inputs), inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


@pytest.mark.parametrize(("dtype", "precision", "most"), [("float32", "high", 0.05), ("bfloat16", "highest", 0.5)])
def test_lower_precision_moves_the_estimate_by_little(dtype: str, precision: str, most: float) -> None:
    """Mean and spread over images of the change of L at M = 5000, in nats, for Gaussians of learned scale."""
    h, weight, bias = randn(5000, 16, 200).tanh(), randn(2 * 784, 200) * 0.02, randn(2 * 784) * 0.1
    x = randn(16, 784)
    doubles = [value.double() for value in (h, weight, bias, x)]
    exact = reference.linear_gaussian_log_prob(*doubles, None, 1, -2).logsumexp(0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with fastvae.backend("triton"):
            ours = ops.linear_gaussian_log_prob(*(value.to(getattr(torch, dtype)) for value in (h, weight, bias)), x)
    finally:
        torch.set_float32_matmul_precision(before)
    change = ours.double().logsumexp(0) - exact
    assert abs(float(change.mean())) < most
    assert float(change.std()) < 2 * most


@pytest.mark.parametrize(("num_levels", "dtype"), [(16, torch.float32), (256, torch.bfloat16), (300, torch.float32)])
def test_levels_in_planes_have_the_gradients_of_the_definition(num_levels: int, dtype: torch.dtype) -> None:
    h, x = randn(7, 5, 64).tanh().to(dtype), torch.randint(num_levels, (5, 3, 4, 4), device="cuda")
    weight, bias = (randn(48 * num_levels, 64) * 0.1).to(dtype), randn(48 * num_levels).to(dtype)
    inputs = [value.requires_grad_() for value in (h, weight, bias)]
    doubles = [value.detach().double().requires_grad_() for value in inputs]
    with fastvae.backend("triton"):
        value = ops.linear_categorical_log_prob(*inputs, x, event_dims=3, levels_dim=-3)
    want = reference.linear_categorical_log_prob(*doubles, x, 3, -3)
    grad = randn(7, 5)
    grads = torch.autograd.grad(value, inputs, grad), torch.autograd.grad(want, doubles, grad.double())
    digits = 1e-4 if dtype == torch.float32 else 2e-2
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=digits, atol=digits * float(expected.abs().max()))
