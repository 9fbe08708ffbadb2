"""Importance weighting on a card: kernels equal their definitions, estimates equal those of the CPU."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which is not installed")

import fastvae
from fastvae import ops, reference
from fastvae.models import VAE

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5000, 1), (4097, 2), (300, 33), (3, 10_000), (0, 5), (5, 0)])
def test_state_update_equals_its_definition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    log_w = (torch.randn(shape, device="cuda") * 3 - 90).to(dtype)
    state = reference.update_log_weights(reference.empty_log_weights(shape[1], "cuda"), log_w[:2] - 1)
    with fastvae.backend("triton"):
        ours = ops.update_log_weights(state, log_w)
        again = ops.update_log_weights(state, log_w)
    want = reference.update_log_weights(state, log_w)
    torch.testing.assert_close(ours, want, rtol=5e-6, atol=1e-5)
    assert torch.equal(ours, again)


def test_state_update_counts_zero_and_bad_weights() -> None:
    log_w = torch.randn(1000, 40, device="cuda")
    log_w[:600, 0], log_w[:, 1] = -torch.inf, -torch.inf
    log_w[3, 2], log_w[4, 3] = torch.nan, torch.inf
    log_w[:, 4] = torch.linspace(-1e6, 1e4, 1000)
    state = reference.empty_log_weights(40, "cuda")
    with fastvae.backend("triton"):
        ours = ops.update_log_weights(state, log_w)
    want = reference.update_log_weights(state, log_w)
    assert torch.equal(ours[[0, 6, 7]], want[[0, 6, 7]])
    torch.testing.assert_close(ours, want, rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 100, 784, 3072])
def test_bernoulli_log_prob_and_gradient_equal_their_definition(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.rand(7, size, device="cuda") < 0.5
    logits = (torch.randn(33, 7, size, device="cuda") * 10).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    grad = torch.randn(33, 7, device="cuda")
    with fastvae.backend("triton"):
        ours = ops.bernoulli_log_prob(x, logits, event_dims=1)
        (ours_grad,) = torch.autograd.grad(ours, logits, grad)
    want = reference.bernoulli_log_prob(x, exact, 1)
    (want_grad,) = torch.autograd.grad(want, exact, grad.double())
    torch.testing.assert_close(ours.double(), want, rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(ours_grad, want_grad.to(dtype), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6)


def test_offsets_beyond_two_to_the_31_are_right() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 16 * 2**30:
        pytest.skip("needs 16 GB of device memory")
    x = torch.ones(1, 2**20, device="cuda", dtype=torch.uint8)
    logits = torch.zeros(2**11 + 3, 2**20, device="cuda", dtype=torch.float16)
    logits[-1] = 1.0
    with fastvae.backend("triton"):
        total = ops.bernoulli_log_prob(x, logits, event_dims=1)
    want = reference.bernoulli_log_prob(x, logits[-2:].double(), 1)
    torch.testing.assert_close(total[-2:].double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("max_bytes", [None, 100_000])
def test_log_likelihood_equals_that_of_the_cpu(max_bytes: int | None) -> None:
    torch.manual_seed(0)
    model = VAE((1, 8, 8), "bernoulli", latent_size=5, hidden_sizes=(30,)).double()
    x = torch.bernoulli(torch.full((40, 1, 8, 8), 0.5, dtype=torch.float64))
    want = fastvae.log_likelihood(x, model, num_samples=500)
    got = fastvae.log_likelihood(x.cuda(), model.cuda(), num_samples=500, max_bytes=max_bytes)
    for name in ("log_prob", "elbo", "std_error", "ess", "khat"):
        torch.testing.assert_close(getattr(got, name).cpu(), getattr(want, name), rtol=1e-8, atol=1e-8, msg=name)
    torch.testing.assert_close(got.curve.values.cpu(), want.curve.values, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got.jackknife.std_error.cpu(), want.jackknife.std_error, rtol=1e-6, atol=1e-8)
    single = fastvae.log_likelihood(x.float().cuda(), model.float(), num_samples=500, max_bytes=max_bytes)
    torch.testing.assert_close(single.log_prob.cpu(), want.log_prob, rtol=1e-4, atol=0)


def test_proposals_that_sample_by_themselves_leave_the_random_state_alone() -> None:
    def proposal(x: Tensor) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal(x, torch.eye(3, device=x.device))

    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        return -(x - z).square().sum(-1)

    x = torch.zeros(20, 3, device="cuda")
    torch.manual_seed(1)
    want = torch.rand(5, device="cuda")
    torch.manual_seed(1)
    results = [
        fastvae.log_likelihood(x, proposal=proposal, log_joint=log_joint, num_samples=300, max_bytes=max_bytes)
        for max_bytes in (None, 1000)
    ]
    assert torch.equal(torch.rand(5, device="cuda"), want)
    torch.testing.assert_close(results[0].log_prob, results[1].log_prob, rtol=1e-6, atol=1e-6)


def test_a_model_on_another_device_is_named() -> None:
    model = VAE((1, 8, 8)).cuda()
    with pytest.raises(ValueError, match="x must be on the device of VAE, cuda:0, got cpu"):
        fastvae.log_likelihood(torch.zeros(2, 1, 8, 8), model, num_samples=5)
