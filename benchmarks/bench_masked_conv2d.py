"""Masked convolution beside what people write: how much of the work that the mask throws away is saved?

FASTVAE_BENCH=tiny shrinks every case to a rehearsal, FASTVAE_BENCH=full measures the whole grid of shapes, dtypes and
passes (most of an hour on a CPU); FASTVAE_BENCH_COMPILE=1 adds torch.compile of the baselines everywhere (minutes).
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

import fastvae
from benchmarks.environment import device
from benchmarks.pairs import interleaved, synchronized
from fastvae import ops, reference

DEVICE = device()
TINY, FULL = (os.environ.get("FASTVAE_BENCH") == name for name in ("tiny", "full"))
COMPILE = os.environ.get("FASTVAE_BENCH_COMPILE") == "1"
IMAGES = 2 if TINY else 16 if DEVICE == "cpu" else 64  # of 28 x 28 pixels; as many pixels of other sizes
ROUNDS, MIN_SECONDS = (3, 1e-4) if TINY else (11, 0.02) if DEVICE == "cpu" else (7, 0.005)
# (kernel size, channels, height and width)
SHAPES = [(k, channels, 28) for k in (3, 5, 7) for channels in (64, 128)]
if DEVICE == "cpu":
    SHAPES += [(3, 32, 28), (3, 120, 28), (3, 256, 28), (3, 64, 32), (3, 64, 64)]
if FULL:
    SHAPES = [(k, channels, size) for k in (3, 5, 7) for channels in (32, 64, 120, 128, 256) for size in (28, 32, 64)]
# one image, as when it is generated
SINGLE = [(3, 16, 28), (3, 64, 28), (5, 128, 32)] if DEVICE == "cpu" and not TINY else []
if TINY:
    SHAPES = [(3, 16, 8)]
DTYPES = (
    {"float32": torch.float32}
    if DEVICE == "cpu"
    else {"bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
)
if FULL and DEVICE == "cuda":
    DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}
PASSES = ("fwd", "bwd", "fwd+bwd") if DEVICE == "cpu" or FULL else ("fwd", "fwd+bwd")
BASELINE = "masked weight"
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def masked_weight(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """What public code does."""
    return F.conv2d(x, weight * mask, bias, padding=weight.shape[-1] // 2)


def cropped(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """The strong alternative: no rows below the centre."""
    reach = weight.shape[-1] // 2
    return F.conv2d(F.pad(x, (0, 0, reach, 0)), (weight * mask)[:, :, : reach + 1], bias, padding=(0, reach))


def above_and_left(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """Exactly the live taps of mask B, in two convolutions."""
    reach = weight.shape[-1] // 2
    above = F.conv2d(F.pad(x, (0, 0, reach, -1)), weight[:, :, :reach], bias, padding=(0, reach))
    return above + F.conv2d(F.pad(x, (reach, 0)), weight[:, :, reach : reach + 1, : reach + 1])


def layers(kernel_size: int, dtype: torch.dtype) -> dict[str, Layer]:
    mask = reference.raster_mask(kernel_size, "B", dtype=dtype, device=torch.device(DEVICE))

    def kernels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with fastvae.backend("triton"):
            return ops.masked_conv2d(x, weight, bias, mask="B")

    found: dict[str, Layer] = {
        BASELINE: lambda *t: masked_weight(*t, mask),
        "fastvae": lambda *t: ops.masked_conv2d(*t, mask="B"),
        "cropped": lambda *t: cropped(*t, mask),
        "above + left": lambda *t: above_and_left(*t, mask),
    }
    if DEVICE == "cuda":
        found["fastvae kernels"] = kernels
    for name in (BASELINE, "cropped") if COMPILE else ():
        found[f"compiled {name}"] = compiled(found[name])
    return found


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For one shape: code for shapes that vary is slower, and after a few of them nothing is compiled any more."""
    return torch.compile(function, mode="max-autotune-no-cudagraphs" if COMPILE else None, dynamic=False)


def prepare(monkeypatch: pytest.MonkeyPatch, dtype: str, which: str) -> None:
    """The precision of float32 products, and nothing compiled for the shapes of other cases."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", dtype == "tf32")
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.compiler.reset()
    torch._functorch.config.donated_buffer = which != "bwd"  # else a compiled backward pass runs once only


NAMES = list(layers(3, torch.float32))


@cache
def best_rate(dtype: torch.dtype, tf32: bool) -> float:
    """The limit: products and sums per second of the faster of a large matrix product and a large dense convolution."""
    size, channels = (256, 32) if TINY else (1536, 256) if DEVICE == "cpu" else (8192, 512)
    side, batch = (8, 2) if TINY else (28, IMAGES)
    a = torch.randn(size, size, device=DEVICE, dtype=dtype)
    layout = torch.channels_last if DEVICE == "cuda" else torch.contiguous_format
    x = torch.randn(batch, channels, side, side, device=DEVICE, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(channels, channels, 3, 3, device=DEVICE, dtype=dtype)
    seconds = interleaved(lambda: a @ a, lambda: F.conv2d(x, weight, padding=1), rounds=5, min_seconds=MIN_SECONDS)
    # at the border a convolution has fewer products; the few percent are left out
    return max(2 * size**3 / seconds["candidate_s"], 2 * batch * side**2 * channels**2 * 9 / seconds["baseline_s"])


def batch_of(size: int) -> int:
    """Images of ``size`` x ``size`` pixels that have as many pixels as ``IMAGES`` of 28 x 28."""
    return max(1, round(IMAGES * (28 / size) ** 2))


def step(layer: Layer, inputs: list[Tensor], grad_y: Tensor, which: str) -> Callable[[], Any]:
    """One pass as a function of nothing."""
    if which == "fwd":
        return lambda: layer(*inputs)
    if which == "bwd":
        y = layer(*inputs)
        return lambda: torch.autograd.grad(y, inputs, grad_y, retain_graph=True)
    return lambda: torch.autograd.grad(layer(*inputs), inputs, grad_y)


def check(layer: Layer, baseline: Layer, inputs: list[Tensor], grad_y: Tensor, *, images: int = 2) -> None:
    """Right before fast: on a few images, at most twice the error of the baseline against float64."""
    few = [inputs[0][:images], *inputs[1:]]
    whole = layers(inputs[1].shape[-1], torch.float64)[BASELINE]
    wide = [t.detach().double().requires_grad_() for t in few]
    exact = [whole(*wide), *torch.autograd.grad(whole(*wide), wide, grad_y[:images].double())]
    for got, other, want in zip(results(layer, few, grad_y), results(baseline, few, grad_y), exact, strict=True):
        rounding = 8 * torch.finfo(got.dtype).eps * want.abs().max()
        assert (got - want).abs().max() <= 2 * (other - want).abs().max() + rounding


def results(layer: Layer, inputs: list[Tensor], grad_y: Tensor) -> list[Tensor]:
    y = layer(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y[: y.shape[0]])]


def graphed(function: Callable[[], Any]) -> Callable[[], None]:
    """``function`` recorded once and replayed without launch costs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def peak_mebibytes(function: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def cases() -> list[Any]:
    return [
        pytest.param(
            name,
            which,
            kernel_size,
            channels,
            size,
            dtype,
            batch,
            marks=pytest.mark.benchmark(
                group=f"masked convolution {which} {dtype}, k={kernel_size} C={channels} {size}x{size}"
                + (", one image" if batch == 1 else "")
            ),
        )
        for dtype in DTYPES
        # all passes of a shape, so that the first minutes tell something
        for kernel_size, channels, size, batch in [(*s, batch_of(s[2])) for s in SHAPES] + [(*s, 1) for s in SINGLE]
        if dtype != "float32" or DEVICE == "cpu" or FULL or kernel_size == 3  # three tf32 products are slow
        for which in PASSES
        for name in NAMES
    ]


@pytest.mark.parametrize(("name", "which", "kernel_size", "channels", "size", "dtype", "batch"), cases())
def test_masked_conv2d(
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    which: str,
    kernel_size: int,
    channels: int,
    size: int,
    dtype: str,
    batch: int,
) -> None:
    prepare(monkeypatch, dtype, which)
    layout = torch.channels_last if DEVICE == "cuda" else torch.contiguous_format  # what each is usually given
    made = {"device": DEVICE, "dtype": DTYPES[dtype]}
    torch.manual_seed(0)
    x = torch.randn(batch, channels, size, size, **made).to(memory_format=layout)
    weight = torch.randn(channels, channels, kernel_size, kernel_size, **made) / (channels**0.5 * kernel_size)
    inputs = [t.requires_grad_() for t in (x, weight, torch.randn(channels, **made))]
    grad_y = torch.randn(batch, channels, size, size, **made).to(memory_format=layout)
    found = layers(kernel_size, DTYPES[dtype])

    images = batch if name.startswith("compiled") else 2  # fewer would be compiled once more
    check(found[name], found[BASELINE], inputs, grad_y, images=images)
    ours, theirs = (step(found[n], inputs, grad_y, which) for n in (name, BASELINE))
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    iterations = max(1, round(MIN_SECONDS / pairs["candidate_s"]))
    benchmark.pedantic(synchronized(ours), rounds=5, iterations=iterations, warmup_rounds=1)

    live = reference.count_live_taps(kernel_size, "B")
    operations = 2 * batch * size**2 * channels**2 * live * {"fwd": 1, "bwd": 2, "fwd+bwd": 3}[which]
    rate, limit = operations / pairs["candidate_s"], best_rate(DTYPES[dtype], dtype == "tf32")
    benchmark.extra_info.update(
        pairs,
        implementation=name,
        baseline=BASELINE,
        batch=batch,
        **{"TFLOP/s": rate / 1e12, "limit_TFLOP/s": limit / 1e12, "of_limit": rate / limit},
    )
    if DEVICE == "cuda":
        benchmark.extra_info["peak_MiB"] = peak_mebibytes(ours)
        if which != "bwd":
            graphs = interleaved(graphed(ours), graphed(theirs), rounds=ROUNDS, min_seconds=MIN_SECONDS)
            benchmark.extra_info.update({f"graph_{key}": value for key, value in graphs.items()})
