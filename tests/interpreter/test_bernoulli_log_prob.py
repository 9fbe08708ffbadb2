"""The Bernoulli kernels, interpreted on the CPU, equal their definition."""

import pytest
import torch
from fastvae_kernels import bernoulli_log_prob as kernels

import fastvae
from fastvae import ops, reference

# (X, repeats, D): the last two with tiles of one datapoint, and with more logarithms than can be joined
SHAPES = [(1, 1, 1), (3, 2, 16), (1, 9, 100), (2, 1, 1025), (2, 64, 20), (1, 1, 4200)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("num_data", "repeats", "size"), SHAPES)
def test_forward_and_backward_equal_the_definition(num_data: int, repeats: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.rand(num_data, size) < 0.5
    logits = (torch.randn(repeats * num_data, size) * 8).to(dtype)
    exact = logits.double().requires_grad_()
    want = reference.bernoulli_log_prob(x.repeat(repeats, 1), exact, 1)
    grad = torch.randn(repeats * num_data)
    (want_grad,) = torch.autograd.grad(want, exact, grad.double())
    torch.testing.assert_close(
        kernels.bernoulli_log_prob_forward(x, logits).double(), want.detach(), rtol=1e-6, atol=1e-6
    )
    ours = kernels.bernoulli_log_prob_backward(x, logits, grad)
    torch.testing.assert_close(ours, want_grad.to(dtype), rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)


def test_nearly_certain_data_keep_their_digits() -> None:
    x, logits = torch.ones(1, 4), torch.full((1, 4), 30.0)  # log(1 + e^-30) is 0 when the 1 is added first
    want = reference.bernoulli_log_prob(x, logits.double(), 1)
    torch.testing.assert_close(kernels.bernoulli_log_prob_forward(x, logits).double(), want, rtol=1e-5, atol=0)
    for value in (1e4, -1e4):
        logits = torch.full((1, 4), value)
        want = reference.bernoulli_log_prob(x, logits.double(), 1).float()
        assert torch.equal(kernels.bernoulli_log_prob_forward(x, logits), want)


def test_the_operator_reaches_the_kernel_with_gradients() -> None:
    torch.manual_seed(0)
    x = (torch.rand(3, 1, 4, 4) < 0.5).float()
    logits = torch.randn(5, 3, 1, 4, 4, requires_grad=True)
    with fastvae.backend("triton"):
        ours = ops.bernoulli_log_prob(x, logits)
        (grad,) = torch.autograd.grad(ours.sum(), logits)
    want = reference.bernoulli_log_prob(x, logits, 3)
    (want_grad,) = torch.autograd.grad(want.sum(), logits)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(grad, want_grad)
