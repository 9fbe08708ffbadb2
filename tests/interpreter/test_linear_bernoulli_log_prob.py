"""The kernels of the last layer with its Bernoulli likelihood, interpreted on the CPU, equal their definition."""

import pytest
import torch
from fastvae_kernels import linear_bernoulli_log_prob as kernels

import fastvae
from fastvae import ops, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("num_data", "repeats", "size", "inner"), [(1, 1, 1, 1), (3, 6, 20, 40), (2, 70, 130, 17), (2, 120, 20, 17)]
)
def test_forward_and_gradient_of_the_logits_equal_the_definition(
    num_data: int, repeats: int, size: int, inner: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.rand(num_data, size) < 0.5
    h, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((repeats * num_data, inner), (size, inner), (size,)))
    exact = (h.double() @ weight.double().t() + bias.double()).requires_grad_()
    want = reference.bernoulli_log_prob(x.repeat(repeats, 1), exact, 1)
    grad = torch.randn(repeats * num_data)
    (want_grad,) = torch.autograd.grad(want, exact, grad.double())
    ours = kernels.linear_bernoulli_forward(x, h, weight, bias)
    torch.testing.assert_close(ours.double(), want.detach(), rtol=2e-6, atol=2e-5)
    ours = kernels.linear_bernoulli_grad_logits(x, h, weight, bias, grad)
    torch.testing.assert_close(ours.double(), want_grad, rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-5)


def test_the_operator_reaches_the_kernels_with_gradients() -> None:
    torch.manual_seed(0)
    x = (torch.rand(3, 20) < 0.5).float()
    inputs = [value.requires_grad_() for value in (torch.randn(5, 3, 8), torch.randn(20, 8))]
    grad = torch.randn(5, 3)
    with fastvae.backend("triton"):
        ours = ops.linear_bernoulli_log_prob(*inputs, None, x)
        grads = torch.autograd.grad(ours, inputs, grad)
        with torch.no_grad():
            assert torch.equal(ops.linear_bernoulli_log_prob(*inputs, None, x), ours)
    want = reference.linear_bernoulli_log_prob(*inputs, None, x, 1)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(grads, torch.autograd.grad(want, inputs, grad))


def test_float64_is_refused_with_the_reason() -> None:
    with fastvae.backend("triton"), pytest.raises(RuntimeError, match="float64"):
        ops.linear_bernoulli_log_prob(torch.zeros(2, 3).double(), torch.zeros(4, 3).double(), None, torch.zeros(2, 4))
