"""Log-likelihoods with 5000 importance samples: how long does an image take, and how much memory?

The standard case: binary 28x28 images, one stochastic layer of 50 units, networks with two hidden layers of 200 tanh.
FASTVAE_BENCH=tiny shrinks every case to a rehearsal.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastvae
from benchmarks import memory
from benchmarks.environment import device
from benchmarks.pairs import interleaved, synchronized
from fastvae.models import VAE

DEVICE = device()
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
NUM_IMAGES, NUM_SAMPLES = (2, 200) if TINY else (4, 5000) if DEVICE == "cpu" else (32, 5000)
ROUNDS = 3 if TINY or DEVICE == "cuda" else 9
BASELINE = "per-image loop"
Noise = Callable[[int, int, int], Tensor]  # (image, first sample, how many) -> (how many, 50)


def fresh(image: int, first: int, count: int) -> Tensor:
    return torch.randn(count, 50, device=DEVICE)


def log_ratio(model: VAE, z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log r(z) - log q(z | x)."""
    log_q = -0.5 * (log_variance + (z - mean).square() / log_variance.exp()).sum(-1)
    return -0.5 * z.square().sum(-1) - log_q


def encode(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    q = model.proposal(x)
    return q.loc, 2 * q.log_scale


@torch.no_grad()
def per_image_loop(model: VAE, x: Tensor, noise: Noise = fresh) -> Tensor:
    """What public libraries do: image by image, chunks of 100 that are encoded again, probabilities, BCE."""
    estimates = []
    for image in range(x.shape[0]):
        chunks = []
        for first in range(0, NUM_SAMPLES, 100):
            repeated = x[image : image + 1].repeat(100, 1, 1, 1)
            mean, log_variance = encode(model, repeated)
            z = mean + noise(image, first, 100) * torch.exp(0.5 * log_variance)
            probabilities = model.decoder.net(z).sigmoid()
            bce = F.binary_cross_entropy(probabilities, repeated.flatten(1), reduction="none").sum(-1)
            chunks.append(log_ratio(model, z, mean, log_variance) - bce)
        estimates.append((torch.cat(chunks).logsumexp(0) - math.log(NUM_SAMPLES)).item())
    return torch.tensor(estimates)


@torch.no_grad()
def eager(model: VAE, x: Tensor, noise: Noise = fresh, chunk: int = 250) -> Tensor:
    """Careful plain PyTorch: one encoder call, logits, chunks."""
    means, log_variances = encode(model, x)
    estimates = []
    for image in range(x.shape[0]):
        mean, log_variance = means[image], log_variances[image]
        chunks = []
        for first in range(0, NUM_SAMPLES, chunk):
            count = min(chunk, NUM_SAMPLES - first)
            z = mean + noise(image, first, count) * torch.exp(0.5 * log_variance)
            logits, data = model.decoder.net(z), x[image].flatten()
            bce = F.binary_cross_entropy_with_logits(logits, data.expand_as(logits), reduction="none").sum(-1)
            chunks.append(log_ratio(model, z, mean, log_variance) - bce)
        estimates.append(torch.cat(chunks).logsumexp(0) - math.log(NUM_SAMPLES))
    return torch.stack(estimates)


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    BASELINE: per_image_loop,
    "eager, chunks of 250": eager,
    "eager, one chunk": lambda model, x, noise=fresh: eager(model, x, noise, NUM_SAMPLES),
    "fastvae": lambda model, x, noise=None: fastvae.log_likelihood(x, model, num_samples=NUM_SAMPLES).log_prob,
}


def case() -> tuple[VAE, Tensor]:
    torch.manual_seed(0)
    model = VAE((1, 28, 28), "bernoulli", latent_size=50, hidden_sizes=(200, 200), activation="tanh").to(DEVICE)
    return model, torch.bernoulli(torch.full((NUM_IMAGES, 1, 28, 28), 0.5, device=DEVICE))


def addressed(image: int, first: int, count: int) -> Tensor:
    """The noise of fastvae, for the check."""
    ids = torch.tensor([image], device=DEVICE)
    return fastvae.ops.normal(0, ids, torch.arange(first, first + count, device=DEVICE), 50)[0]


@pytest.mark.benchmark(group=f"log-likelihood, M={NUM_SAMPLES}, {NUM_IMAGES} images")
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_log_likelihood(benchmark: Any, name: str) -> None:
    model, x = case()
    same_noise = [IMPLEMENTATIONS[n](model, x, addressed).cpu().double() for n in (name, BASELINE)]
    torch.testing.assert_close(*same_noise, rtol=1e-5, atol=0)  # right before fast
    ours, theirs = (lambda f=IMPLEMENTATIONS[n]: f(model, x) for n in (name, BASELINE))
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=1e-3)
    benchmark.pedantic(synchronized(ours), rounds=3)
    operations = 2 * NUM_IMAGES * NUM_SAMPLES * (50 * 200 + 200 * 200 + 200 * 784)  # of the decoder, used once
    benchmark.extra_info.update(
        pairs,
        implementation=name,
        baseline=BASELINE,
        **{
            "ms_per_image": pairs["candidate_s"] / NUM_IMAGES * 1e3,
            "TFLOP/s": operations / pairs["candidate_s"] / 1e12,
        },
    )


@pytest.mark.skipif(not memory.AVAILABLE, reason="reads the peak from Linux's /proc")
@pytest.mark.benchmark(group="log-likelihood, peak memory")
@pytest.mark.parametrize("num_samples", [50, 500] if TINY else [500, 5000, 50_000])
@pytest.mark.parametrize("name", ["eager, one chunk", "fastvae"])
def test_peak_memory(benchmark: Any, name: str, num_samples: int) -> None:
    """In a process of its own: what the evaluation of one image adds to the loaded libraries."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.bench_log_likelihood", name, str(num_samples)]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}"}

    def measure() -> float:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    benchmark.extra_info.update(implementation=f"{name}, M={num_samples}", peak_MiB=benchmark.pedantic(measure))


def peak_mebibytes(name: str, num_samples: int) -> float:
    """The growth of the peak by one evaluation: of CUDA memory, or of the resident set of this process."""
    global NUM_SAMPLES
    model, x = case()
    NUM_SAMPLES = 10
    IMPLEMENTATIONS[name](model, x[:1])  # libraries load on first use
    NUM_SAMPLES = num_samples
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        IMPLEMENTATIONS[name](model, x[:1])
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    memory.forget_peak()
    before = memory.peak_mebibytes()
    IMPLEMENTATIONS[name](model, x[:1])
    return memory.peak_mebibytes() - before


if __name__ == "__main__":
    print(peak_mebibytes(sys.argv[1], int(sys.argv[2])))
