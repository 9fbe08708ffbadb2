"""Locally masked convolution beside the unfolded input times a mask: how fast, and in how much memory?

FASTVAE_BENCH=tiny shrinks every case to a rehearsal.
"""

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

from benchmarks import memory
from benchmarks.bench_masked_conv2d import best_rate, graphed
from benchmarks.environment import device
from benchmarks.pairs import interleaved, synchronized
from fastvae import ops, reference

DEVICE = device()
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
SIZE, BATCH = (8, 2) if TINY else (28, 16 if DEVICE == "cpu" else 64)
ROUNDS, MIN_SECONDS = (3, 1e-4) if TINY else (7, 0.01)
ORDERS = ("raster", "s_curve", "hilbert", "random")
# (channels in, channels out, kernel size): a first layer, and the later ones of small and of large models
LAYERS = [(1, 8, 3)] if TINY else [(1, 64, 7), (3, 64, 7), (32, 32, 3), (64, 64, 3), (64, 64, 5), (128, 128, 3)]
DTYPE = torch.float32 if DEVICE == "cpu" else torch.bfloat16
PASSES = ("fwd", "fwd+bwd")
SINGLE = [("hilbert", 1)] if DEVICE == "cpu" and not TINY else []  # one image, as when it is generated
BASELINE, RASTER = "im2col x mask", "masked_conv2d"
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def im2col(x: Tensor, weight: Tensor, bias: Tensor, live: Tensor) -> Tensor:
    """What public code does: ``live`` (C_in * k * k, H * W)."""
    columns = F.unfold(x, weight.shape[-1], padding=weight.shape[-1] // 2) * live
    return (weight.flatten(1) @ columns + bias[:, None]).view(x.shape[0], -1, *x.shape[2:])


def bits_of(name: Any, kernel_size: int, size: int) -> Tensor:
    """(H, W): what each pixel may see, nothing of it outside the image."""
    order = ops.generation_order(name, (size, size), seed=0 if name == "random" else None)
    return ops.tap_bits(order, (size, size), kernel_size, mask="B").to(DEVICE)


def layers(name: Any, in_channels: int, kernel_size: int, size: int, dtype: torch.dtype) -> dict[str, Layer]:
    bits = bits_of(name, kernel_size, size)
    live = reference.unpack_tap_bits(bits, kernel_size).flatten(1).to(dtype).repeat(in_channels, 1)
    found: dict[str, Layer] = {
        BASELINE: lambda *t: im2col(*t, live),
        "fastvae": lambda *t: ops.locally_masked_conv2d(*t, mask=bits),
    }
    if name == "raster":  # the same function by the operator that knows this order alone
        found[RASTER] = lambda *t: ops.masked_conv2d(*t, mask="B")
    return found


def make(
    batch: int, size: int, in_channels: int, out_channels: int, kernel_size: int, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Inputs that need gradients, and the gradient of the output; images need none."""
    made: dict[str, Any] = {"device": DEVICE, "dtype": dtype}
    torch.manual_seed(0)
    x = torch.randn(batch, in_channels, size, size, **made)
    weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size, **made)
    weight /= in_channels**0.5 * kernel_size
    inputs = [x.requires_grad_(in_channels > 3), weight.requires_grad_(), torch.randn(out_channels, **made)]
    return [*inputs[:2], inputs[2].requires_grad_()], torch.randn(batch, out_channels, size, size, **made)


def step(layer: Layer, inputs: list[Tensor], grad_y: Tensor, which: str) -> Callable[[], Any]:
    if which == "fwd":

        def forward() -> Tensor:
            with torch.no_grad():
                return layer(*inputs)

        return forward
    wanted = [t for t in inputs if t.requires_grad]
    return lambda: torch.autograd.grad(layer(*inputs), wanted, grad_y)


def check(layer: Layer, baseline: Layer, exact_layer: Layer, inputs: list[Tensor], grad_y: Tensor) -> None:
    """Right before fast: on two images, at most twice the error of the baseline against float64."""
    few = [inputs[0].detach()[:2].requires_grad_(inputs[0].requires_grad), *inputs[1:]]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in few]
    exact = results(exact_layer, wide, grad_y.double())
    for got, other, want in zip(results(layer, few, grad_y), results(baseline, few, grad_y), exact, strict=True):
        # the gradient of the bias sums over all pixels, and oneDNN does that one after the other
        rounding = torch.finfo(got.dtype).eps * want.abs().max() * max(64, grad_y[:2, 0].numel()) ** 0.5
        assert (got - want).abs().max() <= 2 * (other - want).abs().max() + rounding


def results(layer: Layer, inputs: list[Tensor], grad_y: Tensor) -> list[Tensor]:
    y = layer(*inputs)
    return [y.detach(), *torch.autograd.grad(y, [t for t in inputs if t.requires_grad], grad_y[: y.shape[0]])]


def cases() -> list[Any]:
    return [
        pytest.param(
            implementation,
            which,
            name,
            layer,
            batch,
            marks=pytest.mark.benchmark(
                group=f"locally masked {which}, {name} k={layer[2]} C={layer[0]}-{layer[1]} N={batch}"
            ),
        )
        for which in PASSES
        for layer in LAYERS
        for name, batch in [*((name, BATCH) for name in ORDERS), *SINGLE]
        for implementation in (("fastvae", RASTER) if name == "raster" else ("fastvae",))
    ]


@pytest.mark.parametrize(("implementation", "which", "name", "layer", "batch"), cases())
def test_locally_masked_conv2d(
    benchmark: Any, implementation: str, which: str, name: str, layer: tuple[int, int, int], batch: int
) -> None:
    in_channels, out_channels, kernel_size = layer
    inputs, grad_y = make(batch, SIZE, in_channels, out_channels, kernel_size, DTYPE)
    found = layers(name, in_channels, kernel_size, SIZE, DTYPE)
    exact = layers(name, in_channels, kernel_size, SIZE, torch.float64)[BASELINE]
    check(found[implementation], found[BASELINE], exact, inputs, grad_y)
    ours, theirs = (step(found[n], inputs, grad_y, which) for n in (implementation, BASELINE))
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    benchmark.pedantic(synchronized(ours), rounds=3, iterations=1, warmup_rounds=1)

    live = int(reference.unpack_tap_bits(bits_of(name, kernel_size, SIZE), kernel_size).sum())  # taps of all pixels
    products = 1 if which == "fwd" else 3 if inputs[0].requires_grad else 2
    operations = 2 * batch * live * in_channels * out_channels * products
    rate, limit = operations / pairs["candidate_s"], best_rate(DTYPE, False)
    benchmark.extra_info.update(
        pairs,
        implementation=implementation,
        baseline=BASELINE,
        batch=batch,
        **{"TFLOP/s": rate / 1e12, "limit_TFLOP/s": limit / 1e12, "of_limit": rate / limit},
    )
    if DEVICE == "cuda":
        graphs = interleaved(graphed(ours), graphed(theirs), rounds=ROUNDS, min_seconds=MIN_SECONDS)
        benchmark.extra_info.update({f"graph_{key}": value for key, value in graphs.items()})


# The peak of a process is known to the system only, so each measurement on the CPU takes a process of its own: what
# the pass needs beyond the tensors that are given to it, once what it imports at its first call is there.
PEAK = """
import sys
import torch
torch.set_num_threads(1)
from benchmarks import memory
from benchmarks.bench_locally_masked_conv2d import layers, make, step
which, name, implementation = sys.argv[1:4]
batch, size, in_channels, out_channels, kernel_size = map(int, sys.argv[4:])
layer = layers(name, in_channels, kernel_size, size, torch.float32)[implementation]
step(layer, *make(1, size, in_channels, out_channels, kernel_size, torch.float32), which)()
small, weight = torch.randn(1, 16, 8, 8, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
bits = torch.randint(0, 1 << 9, (8, 8))
torch.ops.fastvae.locally_masked_conv2d(small, weight, None, bits, 1, False).sum().backward()
given = make(batch, size, in_channels, out_channels, kernel_size, torch.float32)
run = step(layer, *given, which)
memory.forget_peak()
before = memory.peak_mebibytes()
kept = run()
print(memory.peak_mebibytes() - before)
"""


def peak_mebibytes(which: str, name: str, implementation: str, batch: int, size: int, layer: tuple[int, ...]) -> float:
    if DEVICE == "cuda":
        inputs, grad_y = make(batch, size, *layer, DTYPE)  # type: ignore[call-arg]
        run = step(layers(name, layer[0], layer[2], size, DTYPE)[implementation], inputs, grad_y, which)
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    root = Path(__file__).parent.parent
    arguments = [which, name, implementation, *map(str, (batch, size, *layer))]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True, cwd=root, env=environment
    )
    return float(done.stdout)


MEMORY_BATCH, MEMORY_LAYERS = (4, [(1, 8, 3)]) if TINY else (64, [(3, 64, 7), (64, 64, 3), (64, 64, 5)])


@pytest.mark.skipif(DEVICE == "cpu" and not memory.AVAILABLE, reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize(
    ("which", "name", "layer"),
    [
        pytest.param(
            which,
            name,
            layer,
            marks=pytest.mark.benchmark(
                group=f"locally masked memory {which}, {name} k={layer[2]} C={layer[0]}-{layer[1]} N={MEMORY_BATCH}"
            ),
        )
        for which in PASSES
        for layer in MEMORY_LAYERS
        for name in ("s_curve", "random")
    ],
)
def test_peak_memory(benchmark: Any, which: str, name: str, layer: tuple[int, int, int]) -> None:
    inputs, grad_y = make(MEMORY_BATCH, SIZE, *layer, DTYPE)
    ours = step(layers(name, layer[0], layer[2], SIZE, DTYPE)["fastvae"], inputs, grad_y, which)
    benchmark.pedantic(synchronized(ours), rounds=1, iterations=1, warmup_rounds=0)
    peak, baseline = (
        peak_mebibytes(which, name, implementation, MEMORY_BATCH, SIZE, layer)
        for implementation in ("fastvae", BASELINE)
    )
    benchmark.extra_info.update(implementation="fastvae", peak_MiB=peak, baseline_peak_MiB=baseline)
    if not TINY:
        benchmark.extra_info["memory_ratio"] = baseline / peak
