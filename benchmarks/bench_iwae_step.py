"""One step of IWAE training with K samples: how long does it take, and how much memory?

The standard case: binary 28x28 images, one stochastic layer of 50 units, networks with two hidden layers of 200 tanh,
20 images, Adam. FASTVAE_BENCH=tiny shrinks every case to a rehearsal.
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
from torch.distributions import Normal

import fastvae
from benchmarks import memory
from benchmarks.environment import device
from benchmarks.pairs import interleaved, synchronized
from fastvae.models import VAE
from fastvae.objectives import iwae

DEVICE = device()
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
NUM_IMAGES = 3 if TINY else 20 if DEVICE == "cpu" else 100
NUM_SAMPLES = [1, 5, 40] if TINY else [1, 5, 50, 5000]
MANY = NUM_SAMPLES[-1]
MAX_BYTES = 2**18 if TINY else 2**24 if DEVICE == "cpu" else 2**30
BASELINE = "autograd of logsumexp"
Bound = Callable[..., Tensor]  # (model, x, K, noise or None) -> (N,) nats


def plain(model: VAE, x: Tensor, num_samples: int, noise: Tensor | None = None) -> Tensor:
    """What public code does: one encoder call, every sample at once, logsumexp, autograd."""
    q = model.proposal(x)
    mean, scale = q.loc, q.log_scale.exp()
    if noise is None:
        noise = torch.randn(num_samples, *mean.shape, device=x.device)
    z = mean + scale * noise
    logits = model.decoder.net(z)
    data = x.flatten(1).expand_as(logits)
    log_p = -F.binary_cross_entropy_with_logits(logits, data, reduction="none").sum(-1)
    log_prior = Normal(torch.zeros_like(mean), torch.ones_like(scale)).log_prob(z).sum(-1)
    log_q = Normal(mean, scale).log_prob(z).sum(-1)
    return (log_p + log_prior - log_q).logsumexp(0) - math.log(num_samples)


def ours(estimator: Any, max_bytes: int | None) -> Bound:
    def bound(model: VAE, x: Tensor, num_samples: int, noise: Tensor | None = None) -> Tensor:
        seed = None if noise is None else 0  # the noise of the check is that of seed 0
        return iwae(model, x, num_samples, estimator=estimator, max_bytes=max_bytes, seed=seed)

    return bound


IMPLEMENTATIONS: dict[str, Bound] = {
    BASELINE: plain,
    "fastvae": ours("iwae", None),
    "fastvae, DReG": ours("dreg", None),
    "fastvae, in chunks": ours("iwae", MAX_BYTES),
    "fastvae, DReG in chunks": ours("dreg", MAX_BYTES),
}
CASES = [
    (name, k) for k in NUM_SAMPLES for name in IMPLEMENTATIONS if ("chunks" in name) == (k == MANY) or name == BASELINE
]


def case() -> tuple[VAE, Tensor]:
    torch.manual_seed(0)
    model = VAE((1, 28, 28), "bernoulli", latent_size=50, hidden_sizes=(200, 200), activation="tanh").to(DEVICE)
    return model, torch.bernoulli(torch.full((NUM_IMAGES, 1, 28, 28), 0.5, device=DEVICE))


def step(bound: Bound, num_samples: int) -> Callable[[], None]:
    """A training step of a model of its own."""
    model, x = case()
    adam = torch.optim.Adam(model.parameters(), 1e-3)

    def run() -> None:
        adam.zero_grad(set_to_none=True)
        (-bound(model, x, num_samples).mean()).backward()
        adam.step()

    return run


def check(bound: Bound, num_samples: int) -> None:
    """The same bound and gradient of the decoder (where all estimators agree) from the same noise."""
    model, x = case()
    ids, rows = torch.arange(NUM_IMAGES, device=DEVICE), torch.arange(num_samples, device=DEVICE)
    noise = fastvae.ops.normal(0, ids, rows, 50).transpose(0, 1)
    found = []
    for function in (bound, plain):
        value = function(model, x, num_samples, noise)
        found.append([value.detach(), *torch.autograd.grad(value.mean(), list(model.decoder.parameters()))])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize(("name", "num_samples"), CASES)
def test_training_step(benchmark: Any, name: str, num_samples: int) -> None:
    benchmark.group = f"IWAE training step, K={num_samples}, {NUM_IMAGES} images"
    check(IMPLEMENTATIONS[name], num_samples)  # right before fast
    candidate, baseline = (step(IMPLEMENTATIONS[n], num_samples) for n in (name, BASELINE))
    large = num_samples == MANY and not TINY
    pairs = interleaved(candidate, baseline, rounds=3 if large or TINY else 9, min_seconds=1e-3 if large else 0.02)
    benchmark.pedantic(synchronized(candidate), rounds=1 if large else 3)
    forward = 2 * num_samples * NUM_IMAGES * (50 * 200 + 200 * 200 + 200 * 784)  # of the decoder
    benchmark.extra_info.update(
        pairs,
        implementation=name,
        baseline=BASELINE,
        **{"TFLOP/s": 3 * forward / pairs["candidate_s"] / 1e12},  # what one graph computes: chunks repeat a third
    )


@pytest.mark.skipif(not memory.AVAILABLE, reason="reads the peak from Linux's /proc")
@pytest.mark.benchmark(group="IWAE training step, peak memory")
@pytest.mark.parametrize(
    ("name", "num_samples"),
    [(name, k) for name in (BASELINE, "fastvae", "fastvae, DReG in chunks") for k in NUM_SAMPLES[-2:]],
)
def test_peak_memory(benchmark: Any, name: str, num_samples: int) -> None:
    """In a process of its own: what a step adds to libraries, weights and moments."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.bench_iwae_step", name, str(num_samples)]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}"}

    def measure() -> float:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    benchmark.extra_info.update(
        implementation=f"{name}, K={num_samples}", peak_MiB=benchmark.pedantic(measure, rounds=1)
    )


def peak_mebibytes(name: str, num_samples: int) -> float:
    """The growth of the peak by one step: of CUDA memory, or of the resident set of this process."""
    step(IMPLEMENTATIONS[name], 1)()  # libraries load on first use
    run = step(IMPLEMENTATIONS[name], num_samples)
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    memory.forget_peak()
    before = memory.peak_mebibytes()
    run()
    return memory.peak_mebibytes() - before


if __name__ == "__main__":
    print(peak_mebibytes(sys.argv[1], int(sys.argv[2])))
