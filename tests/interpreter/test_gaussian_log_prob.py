"""The Gaussian kernels, interpreted on the CPU, equal their definition."""

import pytest
import torch
from fastvae_kernels import gaussian_log_prob as kernels

import fastvae
from fastvae import ops, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("num_data", "repeats", "size", "scales"),
    [
        (1, 1, 1, (1, 1)),
        (3, 2, 16, (6, 16)),  # learned for every value
        (1, 9, 100, (1, 1)),  # one for all
        (2, 3, 37, (2, 1)),  # one for each datapoint
        (2, 20, 300, (1, 300)),  # one per pixel: more rows than a program sums, more columns than it has
        (1, 6, 20, (3, 20)),
        (2, 1, 1025, (2, 1025)),
    ],
)
def test_forward_and_backward_equal_the_definition(
    num_data: int, repeats: int, size: int, scales: tuple[int, int], dtype: torch.dtype
) -> None:
    rows = num_data * repeats
    x = torch.randn(num_data, size)
    loc, log_scale = torch.randn(rows, size).to(dtype), (torch.randn(scales) * 0.5).to(dtype)
    exact = [t.double().requires_grad_() for t in (loc, log_scale)]
    want = reference.gaussian_log_prob(x.repeat(repeats, 1), exact[0], exact[1].repeat(rows // scales[0], 1), 1)
    grad = torch.randn(rows)
    want_grads = torch.autograd.grad(want, exact, grad.double())
    ours = kernels.gaussian_log_prob_forward(x, loc, log_scale)
    torch.testing.assert_close(ours.double(), want.detach(), rtol=2e-6, atol=1e-5)
    grads = kernels.gaussian_log_prob_backward(x, loc, log_scale, grad)
    for got, exact_grad in zip(grads, want_grads, strict=True):
        assert got.dtype == dtype
        tolerance = {"rtol": 2e-3, "atol": 2e-3} if dtype == torch.float16 else {"rtol": 2e-5, "atol": 2e-5}
        torch.testing.assert_close(got.double(), exact_grad, **tolerance)


def test_tiny_scales_have_finite_densities_where_the_mean_is_met() -> None:
    x = torch.zeros(1, 4)
    loc, log_scale = torch.tensor([[0.0, 0.0, 1e-20, 0.0]]), torch.tensor([[-46.0, -200.0, -46.0, 1e4]])
    want = reference.gaussian_log_prob(x, loc.double(), log_scale.double(), 1)
    torch.testing.assert_close(kernels.gaussian_log_prob_forward(x, loc, log_scale).double(), want, rtol=1e-6, atol=0)
    grads = kernels.gaussian_log_prob_backward(x, loc, log_scale, torch.ones(1))
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("scales", [(5, 3, 1, 4, 4), (4, 4), ()])
def test_the_operator_reaches_the_kernel_with_gradients(scales: tuple[int, ...]) -> None:
    x = torch.randn(3, 1, 4, 4, requires_grad=True)
    loc, log_scale = torch.randn(5, 3, 1, 4, 4, requires_grad=True), torch.randn(scales, requires_grad=True)
    inputs = (x, loc, log_scale)
    with fastvae.backend("triton"):
        ours = ops.gaussian_log_prob(*inputs)
        grads = torch.autograd.grad(ours.sum(), inputs)
    want = reference.gaussian_log_prob(*inputs, 3)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(grads, torch.autograd.grad(want.sum(), inputs))
