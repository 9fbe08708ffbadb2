"""The categorical kernels, interpreted on the CPU, equal their definition."""

import pytest
import torch
from fastvae_kernels import categorical_log_prob as kernels
from torch import Tensor

import fastvae
from fastvae import ops, reference


def definition(x: Tensor, logits: Tensor) -> Tensor:
    """``x`` (X, A, B), ``logits`` (R, A, L, B) -> (R,)."""
    return reference.categorical_log_prob(x.repeat(logits.shape[0] // x.shape[0], 1, 1), logits, 2, -2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("num_data", "repeats", "channels", "levels", "sites"),
    [
        (1, 1, 1, 2, 1),
        (2, 3, 3, 17, 10),
        (1, 2, 2, 256, 33),  # values of a tile cross channels
        (2, 1, 1, 40, 70),  # two tiles of values, two of levels
        (2, 2, 9, 17, 1),  # levels are neighbours
        (1, 1, 5, 300, 1),
    ],
)
def test_forward_and_backward_equal_the_definition(
    num_data: int, repeats: int, channels: int, levels: int, sites: int, dtype: torch.dtype
) -> None:
    x = torch.randint(0, levels, (num_data, channels, sites))
    logits = (torch.randn(num_data * repeats, channels, levels, sites) * 4).to(dtype)
    exact = logits.double().requires_grad_()
    want, grad = definition(x, exact), torch.randn(logits.shape[0])
    (want_grad,) = torch.autograd.grad(want, exact, grad.double())
    ours = kernels.categorical_log_prob_forward(x, logits)
    torch.testing.assert_close(ours.double(), want.detach(), rtol=2e-6, atol=1e-5)
    ours_grad = kernels.categorical_log_prob_backward(x, logits, grad)
    torch.testing.assert_close(ours_grad, want_grad.to(dtype), rtol=2e-3 if dtype == torch.float16 else 2e-5, atol=1e-6)


def test_large_and_infinite_logits_keep_their_digits() -> None:
    x = torch.tensor([[[0, 1, 2, 0]]])
    logits = torch.randn(1, 1, 70, 4)
    logits[..., 1] += 1e4  # all of them: nothing changes
    logits[0, 0, 2, 2] = -1e4
    logits[0, 0, 1:40, 3] = -torch.inf  # a whole tile of levels, and more
    grad = torch.ones(1)
    exact = logits.double().requires_grad_()
    want = definition(x, exact)
    (want_grad,) = torch.autograd.grad(want.sum(), exact)
    torch.testing.assert_close(kernels.categorical_log_prob_forward(x, logits).double(), want, rtol=1e-6, atol=0)
    ours = kernels.categorical_log_prob_backward(x, logits, grad)
    torch.testing.assert_close(ours.double(), want_grad, rtol=1e-5, atol=1e-7)


def test_values_that_are_no_level_have_probability_zero() -> None:
    logits = torch.randn(4, 1, 3, 2)
    x = torch.tensor([[-1.0, 0.0], [0.5, 0.0], [3.0, 0.0], [2.0, 0.0]]).view(4, 1, 2)
    ours = kernels.categorical_log_prob_forward(x, logits)
    torch.testing.assert_close(ours, definition(x, logits))
    assert ours[:3].tolist() == [-torch.inf] * 3
    assert (kernels.categorical_log_prob_backward(x, logits, torch.ones(4))[:3, ..., 0] == 0).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_operator_reaches_the_kernel_with_gradients(memory_format: torch.memory_format) -> None:
    x = torch.randint(0, 5, (3, 2, 4, 4)).float()
    params = torch.randn(6, 10, 4, 4).to(memory_format=memory_format).requires_grad_()
    logits = params.view(2, 3, 2, 5, 4, 4)
    with fastvae.backend("triton"):
        ours = ops.categorical_log_prob(x, logits)
        (grad,) = torch.autograd.grad(ours.sum(), params, retain_graph=True)
    want = reference.categorical_log_prob(x, logits, 3, -3)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(grad, torch.autograd.grad(want.sum(), params)[0])
