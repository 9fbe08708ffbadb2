"""On a card: the last layer with its Bernoulli likelihood equals its definition, and its precision costs little."""

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae import ops, reference

pytestmark = pytest.mark.gpu


def case(num_samples: int, num_data: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    h, x = torch.randn(num_samples, num_data, 200).tanh(), torch.rand(num_data, 784) < 0.5
    return tuple(value.cuda() for value in (h, torch.randn(784, 200) * 0.1, torch.randn(784) * 0.1, x))


@pytest.mark.parametrize(("num_samples", "num_data"), [(300, 1), (50, 7), (1, 129)])
def test_value_and_gradients_equal_the_definition(num_samples: int, num_data: int) -> None:
    *inputs, x = case(num_samples, num_data)
    inputs = [value.requires_grad_() for value in inputs]
    doubles = [value.detach().double().requires_grad_() for value in inputs]
    want = reference.linear_bernoulli_log_prob(*doubles, x, 1)
    with fastvae.backend("triton"):  # so few logits would be kept for the gradient
        ours, repeated = (ops.linear_bernoulli_log_prob(*inputs, x) for _ in range(2))
    torch.testing.assert_close(ours.double(), want, rtol=1e-6, atol=1e-4)
    grad = torch.randn_like(ours)
    grads = torch.autograd.grad(ours, inputs, grad)
    for got, expected in zip(grads, torch.autograd.grad(want, doubles, grad.double()), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    again = torch.autograd.grad(repeated, inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


@pytest.mark.parametrize(("dtype", "precision", "most"), [("float32", "high", 0.05), ("bfloat16", "highest", 0.5)])
def test_lower_precision_moves_the_estimate_by_little(dtype: str, precision: str, most: float) -> None:
    """Mean and spread over images of the change of L at M = 5000, in nats."""
    *inputs, x = case(5000, 16)
    exact = reference.linear_bernoulli_log_prob(*(value.double() for value in inputs), x, 1).logsumexp(0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        ours = ops.linear_bernoulli_log_prob(*(value.to(getattr(torch, dtype)) for value in inputs), x)
    finally:
        torch.set_float32_matmul_precision(before)
    change = ours.double().logsumexp(0) - exact
    assert abs(float(change.mean())) < most
    assert float(change.std()) < 2 * most
