"""How long does an exact image take, next to one full pass of the network per pixel?

The network is the one of the README: 28 x 28 binary pixels, a 7x7 convolution (mask A), seven residual blocks with 3x3
convolutions (mask B), 64 channels. Naive sampling runs the same network, so it gains from our convolutions too.
"""

import pytest
import torch

from benchmarks.pairs import interleaved, synchronized
from fastvae import compile_sampler
from fastvae.models import PixelCNN
from fastvae.sampling import Sampler

GROUP = "sampling 28x28, 7x7 A + 7 blocks, 64 channels, float32"
PIXELS = 28 * 28
ROUNDS = 5
BATCHES = [1, 16, 64, *([256, 4096] if torch.cuda.is_available() else [])]
PREFIX = 8  # pixels that naive sampling draws in one turn: every pixel costs it the same full pass


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = PixelCNN((1, 28, 28), "bernoulli", channels=64, num_blocks=7, first_kernel_size=7, kernel_size=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)  # sharper than at the start of training: a wrong value would show
    return compile_sampler(net.to(device))


def describe(benchmark, sampler: Sampler, batch: int) -> None:
    seconds = benchmark.stats["median"]
    benchmark.extra_info.update(
        {
            "batch": batch,
            "implementation": f"fastvae, batch {batch}",
            "device": str(next(sampler.model.parameters()).device),
            "serial_steps": sampler.plan.num_steps,
            "naive_steps": PIXELS,
            "ms_per_image": 1e3 * seconds / batch,
            "images_per_second": batch / seconds,
            "GFLOP/s": 2e-9 * sampler.plan.macs * batch / seconds,
        }
    )


@pytest.mark.benchmark(group=GROUP)
@pytest.mark.parametrize("batch", BATCHES)
def test_fastvae(benchmark, sampler: Sampler, batch: int) -> None:
    certificate = sampler(batch, seed=1, verify=True).certificate  # exact before fast; also plans the batch size
    assert certificate.ok
    call = synchronized(lambda: sampler(batch, seed=1))
    benchmark(call)
    pairs = interleaved(call, lambda: sampler.naive(batch, seed=1, num_pixels=PREFIX), rounds=ROUNDS, min_seconds=0.0)
    for key in ("ratio", "ratio_q1", "ratio_q3", "baseline_s"):
        pairs[key] *= PIXELS / PREFIX
    describe(benchmark, sampler, batch)
    benchmark.extra_info.update(
        {
            **pairs,
            "baseline": "naive",
            "baseline_note": f"{PREFIX} of {PIXELS} pixels a turn, {ROUNDS} turns, scaled by {PIXELS / PREFIX:g}",
            "certificate": str(certificate),
        }
    )


@pytest.mark.benchmark(group=GROUP)
def test_naive_in_full(benchmark, sampler: Sampler) -> None:
    """All pixels of one image, to confirm the scaled figures."""
    ours = sampler(1, seed=1)
    naive = benchmark.pedantic(synchronized(lambda: sampler.naive(1, seed=1)), rounds=1)
    assert (naive.samples == ours.samples).float().mean() > 0.99  # rounding may decide a value where u meets the cdf
    benchmark.extra_info.update(
        {
            "batch": 1,
            "implementation": "naive, batch 1",
            "ms_per_image": 1e3 * benchmark.stats["median"],
            "serial_steps": PIXELS,
        }
    )


@pytest.mark.benchmark(group="planning a sampler")
def test_compile(benchmark, sampler: Sampler) -> None:
    """Trace and plan, and the memory and calls of the first batch of 16."""
    assert compile_sampler(sampler.model)(16, verify=True).certificate.ok
    benchmark.pedantic(lambda: compile_sampler(sampler.model)(16), rounds=5)
