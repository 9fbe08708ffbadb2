"""Kernels of the likelihoods on a card: values and gradients equal their float64 definitions, run after run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which is not installed")

import fastvae
from fastvae import ops, reference

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def check(
    operator: Callable[..., Tensor], definition: Callable[..., Tensor], x: Tensor, *params: Tensor, atol: float = 1e-4
) -> None:
    """Kernel against float64, forward and backward, and against itself."""
    given = [values.requires_grad_() for values in params]
    exact = [values.detach().double().requires_grad_() for values in params]
    with fastvae.backend("triton"):
        ours = operator(x, *given)
        again = operator(x, *given)
        grad = torch.randn_like(ours)
        grads = torch.autograd.grad(ours, given, grad)
        grads_again = torch.autograd.grad(again, given, grad)
    want = definition(x, *exact)
    torch.testing.assert_close(ours.double(), want, rtol=5e-6, atol=atol)
    for got, want_grad in zip(grads, torch.autograd.grad(want, exact, grad.double()), strict=True):
        rtol = 1e-3 if got.dtype == torch.float32 else 4 * torch.finfo(got.dtype).eps
        scale = want_grad.abs().max().item() if want_grad.numel() else 0.0  # sums over rows cancel
        torch.testing.assert_close(got.double(), want_grad, rtol=rtol, atol=1e-5 * (1 + scale))
    assert torch.equal(ours, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scales", [(33, 7, 784), (7, 1), (784,), (7, 784), ()])
def test_gaussian(scales: tuple[int, ...], dtype: torch.dtype) -> None:
    x, loc = torch.randn(7, 784, device="cuda"), torch.randn(33, 7, 784, device="cuda").to(dtype)
    log_scale = (torch.randn(scales, device="cuda") * 0.5).to(dtype)
    check(
        lambda *t: ops.gaussian_log_prob(*t, event_dims=1),
        lambda *t: reference.gaussian_log_prob(*t, 1),
        x,
        loc,
        log_scale,
        atol=1e-2,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "levels", "size", "channels_last"),
    [(3, 256, 32, False), (3, 256, 32, True), (1, 17, 8, False), (1, 2, 28, False)],
)
def test_categorical(channels: int, levels: int, size: int, channels_last: bool, dtype: torch.dtype) -> None:
    x = torch.randint(0, levels, (4, channels, size, size), device="cuda", dtype=torch.uint8)
    params = (torch.randn(8, channels * levels, size, size, device="cuda") * 4).to(dtype)
    if channels_last:
        params = params.to(memory_format=torch.channels_last)
    check(
        lambda x, p: ops.categorical_log_prob(x, p.view(2, 4, channels, levels, size, size)),
        lambda x, p: reference.categorical_log_prob(x, p.view(2, 4, channels, levels, size, size), 3, -3),
        x,
        params,
        atol=1e-2,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_categorical_with_levels_last(dtype: torch.dtype) -> None:
    x, logits = torch.randint(0, 300, (5, 100), device="cuda"), torch.randn(3, 5, 100, 300, device="cuda").to(dtype)
    check(
        lambda *t: ops.categorical_log_prob(*t, event_dims=1, levels_dim=-1),
        lambda *t: reference.categorical_log_prob(*t, 1, -1),
        x,
        logits,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "components", "levels", "size", "channels_last"),
    [(3, 10, 256, 32, False), (3, 10, 256, 32, True), (1, 5, 17, 8, False), (1, 1, 2, 28, True)],
)
def test_logistic_mixture(
    channels: int, components: int, levels: int, size: int, channels_last: bool, dtype: torch.dtype
) -> None:
    x = torch.randint(0, levels, (4, channels, size, size), device="cuda")
    x[:, :, 0], x[:, :, 1] = 0, levels - 1
    params = torch.randn(4, components * (3 if channels == 1 else 10), size, size, device="cuda").to(dtype)
    if channels_last:
        params = params.to(memory_format=torch.channels_last)
    check(
        lambda *t: ops.logistic_mixture_log_prob(*t, num_levels=levels),
        lambda *t: reference.logistic_mixture_log_prob(*t, levels),
        x,
        params,
        atol=5e-2,
    )


@pytest.mark.parametrize("log_scale", [-1e4, -30.0, 20.0, 1e4])
def test_extreme_logistic_mixtures(log_scale: float) -> None:
    x = torch.randint(0, 256, (1, 1, 4, 4), device="cuda")
    params = torch.randn(1, 6, 4, 4, device="cuda")
    params[:, 0] += 1e4
    params[:, 2] = 2 * x[:, 0] / 255.0 - 1.0 + 1e-4
    params[:, 4:] = log_scale
    check(ops.logistic_mixture_log_prob, lambda *t: reference.logistic_mixture_log_prob(*t, 256), x, params)


def test_offsets_beyond_two_to_the_31_are_right() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GB of device memory")
    params = torch.zeros(2**11 + 3, 1024, 32, 32, device="cuda", dtype=torch.float16)  # more than 2^31 values
    params[-1] = torch.randn(1024, 32, 32)
    x = torch.zeros(1, 1, 32, 32, device="cuda", dtype=torch.uint8)
    wide, loc, log_scale = params[-1:].double(), params.flatten(1), torch.zeros((), device="cuda")
    with fastvae.backend("triton"):
        categorical = ops.categorical_log_prob(x, params.unsqueeze(1))[-1]
        mixture = ops.logistic_mixture_log_prob(x, params[:, :1023])[-1]
        gaussian = ops.gaussian_log_prob(loc[-1:], loc, log_scale, event_dims=1)[-1]
    want = reference.categorical_log_prob(x[0], wide.unsqueeze(1), 3, -3)[0]
    torch.testing.assert_close(categorical.double(), want, rtol=1e-5, atol=0)
    want = reference.logistic_mixture_log_prob(x, wide[:, :1023], 256)[0]
    torch.testing.assert_close(mixture.double(), want, rtol=1e-5, atol=0)
    want = reference.gaussian_log_prob(wide.flatten(), wide.flatten(), log_scale.double(), 1)
    torch.testing.assert_close(gaussian.double(), want, rtol=1e-5, atol=0)
