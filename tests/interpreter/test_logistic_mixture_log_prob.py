"""The kernels of the logistic mixture, interpreted on the CPU, equal their definition."""

import pytest
import torch
from fastvae_kernels import logistic_mixture_log_prob as kernels
from torch import Tensor

import fastvae
from fastvae import ops, reference


def definition(x: Tensor, params: Tensor, num_levels: int) -> Tensor:
    """``x`` (X, C, S), ``params`` (R, P, S) -> (R,)."""
    x = x.repeat(params.shape[0] // x.shape[0], 1, 1)
    return reference.logistic_mixture_log_prob(x.unsqueeze(-1), params.unsqueeze(-1), num_levels)


def levels_with_edges(num_levels: int, *shape: int) -> Tensor:
    x = torch.randint(0, num_levels, shape)
    x.flatten()[:2] = torch.tensor([0, num_levels - 1])
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("num_data", "repeats", "channels", "components", "levels", "sites"),
    [(1, 1, 1, 1, 2, 1), (2, 2, 1, 5, 17, 9), (1, 1, 3, 2, 256, 130), (2, 1, 3, 2, 5, 20)],
)
def test_forward_and_backward_equal_the_definition(
    num_data: int, repeats: int, channels: int, components: int, levels: int, sites: int, dtype: torch.dtype
) -> None:
    x = levels_with_edges(levels, num_data, channels, max(sites, 2))[..., :sites].contiguous()
    params = torch.randn(num_data * repeats, components * (3 if channels == 1 else 10), sites).to(dtype)
    exact = params.double().requires_grad_()
    want, grad = definition(x, exact, levels), torch.randn(params.shape[0])
    (want_grad,) = torch.autograd.grad(want, exact, grad.double())
    ours = kernels.logistic_mixture_log_prob_forward(x, params, levels)
    torch.testing.assert_close(ours.double(), want.detach(), rtol=2e-6, atol=1e-5)
    ours_grad = kernels.logistic_mixture_log_prob_backward(x, params, grad, levels)
    tolerance = {"rtol": 2e-3, "atol": 1e-3} if dtype == torch.float16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours_grad, want_grad.to(dtype), **tolerance)


def test_a_value_for_each_pixel_equals_the_definition_of_its_pixel() -> None:
    x, params = levels_with_edges(5, 2, 3, 9), torch.randn(4, 20, 9)
    exact = params.double().requires_grad_()
    pixels = exact.transpose(1, 2).flatten(0, 1)[..., None]  # (R S, P, 1)
    want = definition(x.repeat(2, 1, 1).transpose(1, 2).flatten(0, 1)[..., None], pixels, 5).view(4, 9)
    ours = kernels.logistic_mixture_log_prob_forward(x, params, 5, sum_sites=False)
    torch.testing.assert_close(ours.double(), want.detach(), rtol=2e-6, atol=1e-5)
    grad = torch.randn(4, 9)
    (want_grad,) = torch.autograd.grad(want, exact, grad.double())
    ours_grad = kernels.logistic_mixture_log_prob_backward(x, params, grad, 5)
    torch.testing.assert_close(ours_grad.double(), want_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("log_scale", [-1e4, -30.0, -8.0, 20.0, 100.0, 1e4])
def test_extreme_parameters_are_finite_and_right(log_scale: float) -> None:
    x = levels_with_edges(256, 1, 1, 6)
    params = torch.randn(1, 6, 6)
    params[:, 0] += 1e4  # logits of the two components
    params[:, 1] -= 1e4
    params[:, 2] = 2 * x[:, 0] / 255.0 - 1.0 + 1e-4  # means within the bin
    params[:, 4:] = log_scale
    exact = params.double().requires_grad_()
    want = definition(x, exact, 256)
    (want_grad,) = torch.autograd.grad(want.sum(), exact)
    torch.testing.assert_close(
        kernels.logistic_mixture_log_prob_forward(x, params, 256).double(), want.detach(), rtol=1e-5, atol=1e-6
    )
    grad = kernels.logistic_mixture_log_prob_backward(x, params, torch.ones(1), 256)
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_operator_reaches_the_kernel_with_gradients(memory_format: torch.memory_format) -> None:
    x = levels_with_edges(17, 1, 3, 2, 4).float()
    params = torch.randn(2, 20, 2, 4).to(memory_format=memory_format).requires_grad_()
    with fastvae.backend("triton"):
        ours = ops.logistic_mixture_log_prob(x, params.unflatten(0, (2, 1)), 17)
        (grad,) = torch.autograd.grad(ours.sum(), params)
    want = reference.logistic_mixture_log_prob(x, params.unflatten(0, (2, 1)), 17)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(grad, torch.autograd.grad(want.sum(), params)[0], rtol=1e-4, atol=1e-5)
    assert grad.is_contiguous(memory_format=memory_format)
