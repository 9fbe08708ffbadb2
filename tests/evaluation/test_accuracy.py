"""Numbers of samples and values that ordinary code gets wrong: rounding, extremes, memory."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import fastvae
from benchmarks import memory
from fastvae.distributions import DiagonalGaussian
from fastvae.evaluation import LogWeights
from fastvae.models import VAE

F64 = torch.float64


def normal(mean: Tensor, scale: Tensor | float) -> Independent:
    return Independent(Normal(mean, scale * torch.ones_like(mean)), 1)


def test_float32_log_weights_lose_nothing_over_fifty_million_samples() -> None:
    """A running float32 sum would be off by a third of a nat; repeated chunks have the mean of one of them."""
    chunk = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0)) * 2 - 700
    exact = chunk.double().logsumexp(0) - math.log(100_000)
    part = LogWeights(1, tail=0)
    for _ in range(100):
        part.update(chunk)
    weights = part
    for _ in range(4):
        weights = weights.merge(part)
    assert weights.num_samples.item() == 50_000_000
    assert (weights.log_prob - exact).abs().item() < 1e-11
    assert (weights.elbo - chunk.double().mean(0)).abs().item() < 1e-11
    assert (weights.curve.values[-1] - exact).abs().item() < 1e-11
    assert weights.variance.item() == pytest.approx(chunk.double().var(correction=0).item(), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_log_weights_of_every_dtype_enter_exactly(dtype: torch.dtype) -> None:
    log_w = (torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 3 - 50).to(dtype)
    weights = LogWeights(3)
    weights.update(log_w)
    torch.testing.assert_close(weights.log_prob, log_w.double().logsumexp(0) - math.log(500), rtol=1e-14, atol=0)
    assert torch.equal(weights.largest.amax(0), log_w.double().amax(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_evaluated(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = VAE((1, 6, 6), latent_size=3, hidden_sizes=(20,))
    x = torch.bernoulli(torch.full((4, 1, 6, 6), 0.5))
    want = fastvae.log_likelihood(x, model, num_samples=300)
    half = fastvae.log_likelihood(x.to(dtype), model.to(dtype), num_samples=300)
    assert half.log_prob.dtype == F64
    torch.testing.assert_close(half.log_prob, want.log_prob, rtol=0.02, atol=0)


def test_a_proposal_of_almost_no_width_overflows_nothing() -> None:
    x = torch.tensor([[0.5, -0.5]])
    result = fastvae.log_likelihood(
        x,
        proposal=lambda x: DiagonalGaussian(x, torch.full_like(x, math.log(1e-20))),
        log_joint=lambda x, z: normal(z, 1.0).log_prob(x) + normal(torch.zeros(2), 1.0).log_prob(z),
        num_samples=300,
    )
    # every z is x: log w = log N(x; x, 1) + log r(x) - log q, with -log q near -2 * 46 + (eps^2 + log 2 pi)
    assert result.log_prob.isfinite().all()
    assert -100 < result.elbo.item() < -85


def test_logits_of_ten_thousand_and_data_that_contradict_them() -> None:
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    result = fastvae.log_likelihood(
        x,
        proposal=lambda x: normal(torch.zeros(2, 1), 1.0),
        log_joint=lambda x, z: (
            fastvae.ops.bernoulli_log_prob(x, (1e4 + z).expand(*z.shape[:2], 2), event_dims=1)
            + normal(torch.zeros(1), 1.0).log_prob(z)
        ),
        num_samples=300,
    )
    assert result.log_prob[0].item() == pytest.approx(0.0, abs=1e-4)
    assert result.log_prob[1].item() == pytest.approx(-1e4, abs=10.0)


_MEMORY = """
import torch
import fastvae
from benchmarks import memory
from fastvae.models import VAE

model = VAE((1, 12, 12), latent_size=8, hidden_sizes=(30,))
x = torch.zeros(1, 1, 12, 12)
fastvae.log_likelihood(x, model, num_samples=1000)  # libraries load on first use
for num_samples in (10_000, 150_000):
    memory.forget_peak()
    before = memory.peak_mebibytes()
    fastvae.log_likelihood(x, model, num_samples=num_samples, max_bytes=2**22)  # both fill their chunks
    print(memory.peak_mebibytes() - before)
"""


@pytest.mark.skipif(not memory.AVAILABLE, reason="reads the peak from Linux's /proc")
def test_memory_is_that_of_a_chunk_not_of_the_samples() -> None:
    root = Path(__file__).parent.parent.parent
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY], env=environment, capture_output=True, text=True, check=True, cwd=root
    )
    few, many = map(float, done.stdout.split())
    assert many < few + 32, "MiB: fifteen times the samples, the same chunks; all of them would take 80 more"
    assert many < 200
