"""Log-likelihoods with 50 to a million importance samples: how long does an image take, and how much memory?

The standard case: binary 28x28 images, one stochastic layer of 50 units, networks with two hidden layers of 200 tanh.
Against the loop of public libraries, all samples at once, careful PyTorch in chunks (the best of several ways), and the
matrix products of the decoder alone, by the fastest routine found in the same run: ``of_limit`` is their time over that
of the whole. FASTVAE_BENCH_COMPILE=1 adds torch.compile of the chunk; FASTVAE_BENCH=tiny shrinks every case.
"""

import functools
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
COMPILE = os.environ.get("FASTVAE_BENCH_COMPILE") == "1"
# (samples, images): about a second of the slowest way, and enough images that planning an evaluation, a few ms, weighs
# little, as it does in the standard case of 10,000; beyond MOST the others are timed at MOST and scaled
CASES = (
    [(50, 4), (200, 2)]
    if TINY
    else [(50, 128), (500, 32), (5000, 8), (50_000, 1), (1_000_000, 1)]
    if DEVICE == "cpu"
    else [(50, 10_000), (500, 1000), (5000, 100), (50_000, 10), (1_000_000, 1)]
)
MOST = 100 if TINY else 50_000
ROUNDS = 3 if TINY else 7
CHUNKS = [128, 512] if TINY else [125, 250, 500, 1000, 2500] if DEVICE == "cpu" else [2500, 10_000, 50_000]
BASELINE = "per-image loop"
Noise = Callable[[int, int, int], Tensor]  # (image, first sample, how many) -> (how many, 50)


def fresh(image: int, first: int, count: int) -> Tensor:
    return torch.randn(count, 50, device=DEVICE)


def addressed(image: int, first: int, count: int) -> Tensor:
    """The noise of fastvae, for the check."""
    ids = torch.tensor([image], device=DEVICE)
    return fastvae.ops.normal(0, ids, torch.arange(first, first + count, device=DEVICE), 50)[0]


def log_ratio(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log r(z) - log q(z | x)."""
    log_q = -0.5 * (log_variance + (z - mean).square() / log_variance.exp()).sum(-1)
    return -0.5 * z.square().sum(-1) - log_q


def encode(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    q = model.proposal(x)
    return q.loc, 2 * q.log_scale


@torch.no_grad()
def per_image_loop(model: VAE, x: Tensor, num_samples: int, noise: Noise = fresh) -> Tensor:
    """What public libraries do: image by image, chunks of 100 that are encoded again, probabilities, BCE."""
    estimates = []
    for image in range(x.shape[0]):
        chunks = []
        for first in range(0, num_samples, 100):
            count = min(100, num_samples - first)
            repeated = x[image : image + 1].repeat(count, 1, 1, 1)
            mean, log_variance = encode(model, repeated)
            z = mean + noise(image, first, count) * torch.exp(0.5 * log_variance)
            probabilities = model.decoder.net(z).sigmoid()
            bce = F.binary_cross_entropy(probabilities, repeated.flatten(1), reduction="none").sum(-1)
            chunks.append(log_ratio(z, mean, log_variance) - bce)
        estimates.append((torch.cat(chunks).logsumexp(0) - math.log(num_samples)).item())
    return torch.tensor(estimates)


def chunk_with_bce(net: Any, data: Tensor, mean: Tensor, log_variance: Tensor, eps: Tensor) -> Tensor:
    z = mean + eps * torch.exp(0.5 * log_variance)
    logits = net(z)
    bce = F.binary_cross_entropy_with_logits(logits, data.expand_as(logits), reduction="none").sum(-1)
    return log_ratio(z, mean, log_variance) - bce


def chunk_with_softplus(net: Any, data: Tensor, mean: Tensor, log_variance: Tensor, eps: Tensor) -> Tensor:
    """One pass over the logits less: the data enter as a matrix product."""
    z = mean + eps * torch.exp(0.5 * log_variance)
    logits = net(z)
    return log_ratio(z, mean, log_variance) + logits @ data - F.softplus(logits).sum(-1)


@functools.cache
def compiled_chunk() -> Callable[..., Tensor]:
    return torch.compile(chunk_with_softplus)


@torch.no_grad()
def eager(
    model: VAE,
    x: Tensor,
    num_samples: int,
    noise: Noise = fresh,
    chunk: int = 250,
    log_weights: Callable[..., Tensor] = chunk_with_bce,
) -> Tensor:
    """Careful plain PyTorch: one encoder call, logits, chunks, no wait for the device."""
    means, log_variances = encode(model, x)
    estimates = []
    for image in range(x.shape[0]):
        data, chunks = x[image].flatten(), []
        for first in range(0, num_samples, chunk):
            eps = noise(image, first, min(chunk, num_samples - first))
            chunks.append(log_weights(model.decoder.net, data, means[image], log_variances[image], eps))
        estimates.append(torch.cat(chunks).logsumexp(0) - math.log(num_samples))
    return torch.stack(estimates)


@functools.cache
def best_eager(compiled: bool = False) -> dict[str, Any]:
    """The chunk size and the formula that are fastest here."""
    formulas = [compiled_chunk()] if compiled else [chunk_with_bce, chunk_with_softplus]
    model, x = case(1)
    ways = [{"chunk": chunk, "log_weights": formula} for chunk in CHUNKS for formula in formulas]
    samples = MOST if DEVICE == "cuda" else max(CHUNKS)
    return min(ways, key=lambda way: seconds(lambda: eager(model, x, samples, **way)))


def best_of_eager(model: VAE, x: Tensor, num_samples: int, noise: Noise = fresh) -> Tensor:
    return eager(model, x, num_samples, noise, **best_eager())


def best_of_compiled(model: VAE, x: Tensor, num_samples: int, noise: Noise = fresh) -> Tensor:
    return eager(model, x, num_samples, noise, **best_eager(compiled=True))


def ours(model: VAE, x: Tensor, num_samples: int, noise: Noise = fresh) -> Tensor:
    return fastvae.log_likelihood(x, model, num_samples=num_samples).log_prob


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    BASELINE: per_image_loop,
    "eager, one chunk": lambda model, x, num_samples, noise=fresh: eager(model, x, num_samples, noise, num_samples),
    "eager, best chunk": best_of_eager,
    **({"compiled, best chunk": best_of_compiled} if COMPILE else {}),
    "fastvae": ours,
}


def case(num_images: int) -> tuple[VAE, Tensor]:
    torch.manual_seed(0)
    model = VAE((1, 28, 28), "bernoulli", latent_size=50, hidden_sizes=(200, 200), activation="tanh").to(DEVICE)
    return model, torch.bernoulli(torch.full((num_images, 1, 28, 28), 0.5, device=DEVICE))


def products_in_torch(layers: list[torch.nn.Linear], z: Tensor) -> Callable[[], None]:
    """The decoder's matrix products alone, into buffers that are there already."""
    weights = [layer.weight.t() for layer in layers]
    buffers = [z, *(z.new_empty(z.shape[0], weight.shape[1]) for weight in weights)]

    def run() -> None:
        for source, weight, target in zip(buffers, weights, buffers[1:], strict=False):
            torch.mm(source, weight, out=target)

    return run


def products_in_onednn(layers: list[torch.nn.Linear], z: Tensor) -> Callable[[], None]:
    def run() -> None:
        h = z
        for layer in layers:
            h = torch.ops.mkldnn._linear_pointwise(h, layer.weight, None, "none", [], "")

    return run


@functools.cache
def best_products() -> tuple[Callable[..., Callable[[], None]], int]:
    """The routine and the number of rows at once that are fastest here."""
    onednn = DEVICE == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    routines = [products_in_torch, *([products_in_onednn] if onednn else [])]
    sizes = [64] if TINY else [128, 256, 512, 1024] if DEVICE == "cpu" else [2**13, 2**15, 2**17]
    ways = [(routine, rows) for routine in routines for rows in sizes]
    return min(ways, key=lambda way: seconds(products(*way)) / way[1])


def products(routine: Callable[..., Callable[[], None]], rows: int) -> Callable[[], None]:
    model, _ = case(1)
    layers = [layer for layer in model.decoder.net if isinstance(layer, torch.nn.Linear)]
    run = routine(layers, torch.randn(rows, 50, device=DEVICE))
    return torch.no_grad()(run)


def limit(rows: int) -> Callable[[], None]:
    """The matrix products of ``rows`` decoder rows, in whole blocks and the rest."""
    routine, block = best_products()
    whole = products(routine, block)
    rest = products(routine, rows % block) if rows % block else lambda: None

    def run() -> None:
        for _ in range(rows // block):
            whole()
        rest()

    return run


def seconds(call: Callable[[], Any]) -> float:
    """Of one call, the median of five rounds."""
    return interleaved(call, call, rounds=5, min_seconds=0.01)["candidate_s"]


@functools.cache
def checked(name: str, num_samples: int, num_images: int) -> bool:
    """Right before fast: equal to the loop on the same noise."""
    model, x = case(num_images)
    reference = IMPLEMENTATIONS[BASELINE if num_samples <= MOST else "eager, best chunk"]
    same_noise = [f(model, x, num_samples, addressed).cpu().double() for f in (IMPLEMENTATIONS[name], reference)]
    torch.testing.assert_close(*same_noise, rtol=1e-5, atol=0)
    return True


def times_of(name: str, num_samples: int, num_images: int) -> dict[str, float]:
    """Interleaved pairs with the loop, and with the matrix products; scaled where there are very many samples."""
    model, x = case(num_images)
    few = min(num_samples, MOST)
    samples = num_samples if name == "fastvae" else few
    rounds = ROUNDS if num_samples < MOST else 3
    ours = functools.partial(IMPLEMENTATIONS[name], model, x, samples)
    loop = functools.partial(IMPLEMENTATIONS[BASELINE], model, x, few)
    pairs = interleaved(ours, loop, rounds=rounds, min_seconds=1e-3)
    if num_samples > MOST:
        of_limit = seconds(limit(few * num_images)) / pairs["candidate_s"]
    else:
        of_limit = interleaved(ours, limit(few * num_images), rounds=rounds, min_seconds=1e-3)["ratio"]
    if name == "fastvae":  # drift between tests is larger than the difference
        careful = functools.partial(best_of_eager, model, x, few)
        pairs["best_eager_ratio"] = interleaved(ours, careful, rounds=rounds, min_seconds=1e-3)["ratio"] * samples / few
    for key in ("ratio", "ratio_q1", "ratio_q3"):
        pairs[key] *= samples / few
    pairs["candidate_s"] *= num_samples / samples
    pairs["baseline_s"] *= num_samples / few
    return pairs | {"of_limit": of_limit * samples / few}


@pytest.mark.parametrize(
    ("num_samples", "num_images"),
    [
        pytest.param(m, n, marks=pytest.mark.benchmark(group=f"log-likelihood, M={m}, {n} image{'s' * (n > 1)}"))
        for m, n in CASES
    ],
)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_log_likelihood(benchmark: Any, name: str, num_samples: int, num_images: int) -> None:
    if num_samples > MOST and "one chunk" in name:
        pytest.skip(f"the logits alone would take {num_samples * 784 * 4 / 2**30:.1f} GiB")
    assert checked(name, num_samples if name == "fastvae" else min(num_samples, MOST), num_images)
    model, x = case(num_images)
    pairs = times_of(name, num_samples, num_images)
    samples = num_samples if name == "fastvae" else min(num_samples, MOST)
    benchmark.pedantic(
        synchronized(lambda: IMPLEMENTATIONS[name](model, x, samples)), rounds=3 if num_samples < MOST else 1
    )
    routine, rows = best_products()
    operations = 2 * num_images * num_samples * (50 * 200 + 200 * 200 + 200 * 784)  # of the decoder, used once
    benchmark.extra_info.update(
        pairs,
        implementation=name,
        baseline=BASELINE,
        limit=f"{routine.__name__}, {rows} rows at once",
        ms_per_image=pairs["candidate_s"] / num_images * 1e3,
        **{"TFLOP/s": operations / pairs["candidate_s"] / 1e12},
    )
    if "best chunk" in name:
        way = best_eager("compiled" in name)
        formula = getattr(way["log_weights"], "__name__", "chunk_with_softplus")
        benchmark.extra_info["way"] = f"{formula}, {way['chunk']} samples at once"
    if num_samples > MOST:
        benchmark.extra_info["note"] = (
            f"the products and all but fastvae timed on {MOST} samples and scaled by {num_samples / MOST:g}"
        )


MEMORY = {
    BASELINE: [5000],
    "eager, one chunk": [500, 5000, 50_000],
    "eager, best chunk": [5000],
    "fastvae": [50, 500, 5000, 50_000, 1_000_000],
}
if TINY:
    MEMORY = {"eager, one chunk": [500], "fastvae": [50, 500]}


@pytest.mark.skipif(not memory.AVAILABLE, reason="reads the peak from Linux's /proc")
@pytest.mark.benchmark(group="log-likelihood, peak memory")
@pytest.mark.parametrize(("name", "num_samples"), [(name, m) for name, each in MEMORY.items() for m in each])
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
    model, x = case(1)
    # libraries load on first use; the best chunk is not looked for here, which would take its own memory
    ways = {"eager, best chunk": lambda model, x, num_samples: eager(model, x, num_samples, chunk=500)}
    call = ways.get(name, IMPLEMENTATIONS[name])
    call(model, x, 10)
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call(model, x, num_samples)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    memory.forget_peak()
    before = memory.peak_mebibytes()
    call(model, x, num_samples)
    return memory.peak_mebibytes() - before


if __name__ == "__main__":
    print(peak_mebibytes(sys.argv[1], int(sys.argv[2])))
