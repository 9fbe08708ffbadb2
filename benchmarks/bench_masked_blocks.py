"""Gated and residual blocks beside what people write: what does one pass save, from the mask to the gate?

The options are those of bench_masked_conv2d.py, and FASTVAE_BENCH=full measures its grid. On a card torch.compile of
the cropped block is always there; FASTVAE_BENCH_COMPILE=1 tunes it longer and adds that of the masked weight.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastvae
from benchmarks.bench_masked_conv2d import (
    BASELINE,
    COMPILE,
    DEVICE,
    DTYPES,
    FULL,
    MIN_SECONDS,
    PASSES,
    ROUNDS,
    TINY,
    batch_of,
    best_rate,
    compiled,
    cropped,
    graphed,
    masked_weight,
    peak_mebibytes,
    prepare,
    step,
)
from benchmarks.bench_masked_conv2d import (
    SHAPES as GRID,
)
from benchmarks.pairs import interleaved, synchronized
from fastvae import ops, reference

SHAPES = [(3, 16, 8)] if TINY else [(3, 64, 28), (3, 128, 28), (5, 64, 32)] + [(7, 32, 28)] * (DEVICE == "cpu")
NAMED = DTYPES if FULL else dict([next(iter(DTYPES.items()))])  # float32 on a CPU, bfloat16 on a card
Block = Callable[..., Tensor]


def blocks(kind: str, kernel_size: int, dtype: torch.dtype) -> dict[str, Block]:
    """Functions of x, weight, bias and the map that conditions or is added."""
    mask = reference.raster_mask(kernel_size, "B", dtype=dtype, device=torch.device(DEVICE))

    def written_with(convolve: Callable[..., Tensor]) -> Block:
        def gated(x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor) -> Tensor:
            f, g = (convolve(x, weight, bias, mask) + condition).chunk(2, 1)
            return f.tanh() * g.sigmoid()

        def residual(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor) -> Tensor:
            return added + convolve(x, weight, bias, mask).relu()

        return gated if kind == "gated" else residual

    def ours(*t: Tensor) -> Tensor:
        return ops.gated_masked_conv2d(*t, mask="B") if kind == "gated" else ops.masked_residual(*t, mask="B")

    def kernels(*t: Tensor) -> Tensor:
        with fastvae.backend("triton"):
            return ours(*t)

    found = {BASELINE: written_with(masked_weight), "fastvae": ours, "cropped": written_with(cropped)}
    if DEVICE == "cuda":
        found["fastvae kernels"] = kernels
    for convolve in (masked_weight, cropped) if COMPILE else (cropped,) if DEVICE == "cuda" and not TINY else ():
        name = BASELINE if convolve is masked_weight else "cropped"
        found[f"compiled {name}"] = compiled(written_with(convolve))
    return found


def check(
    block: Block, baseline: Block, exact: Block, inputs: list[Tensor], grad_y: Tensor, most_error: float = 2
) -> None:
    """Right before fast: at most ``most_error`` times the error of the baseline against float64."""
    wide = [t.detach().double().requires_grad_() for t in inputs]
    wants = [exact(*wide), *torch.autograd.grad(exact(*wide), wide, grad_y.double())]
    found = [[f(*inputs), *torch.autograd.grad(f(*inputs), inputs, grad_y)] for f in (block, baseline)]
    for got, other, want in zip(*found, wants, strict=True):
        rounding = 8 * torch.finfo(got.dtype).eps * want.abs().max()
        assert (got - want).abs().max() <= most_error * (other - want).abs().max() + rounding


def cases() -> list[Any]:
    return [
        pytest.param(
            name,
            kind,
            which,
            *shape,
            dtype,
            marks=pytest.mark.benchmark(
                group=f"{kind} block {which} {dtype}, k={shape[0]} C={shape[1]} {shape[2]}x{shape[2]}"
            ),
        )
        for dtype in NAMED
        for shape in (GRID if FULL else SHAPES)
        for kind in ("gated", "residual")
        if kind == "gated" or shape[0] < 7 or FULL
        for which in PASSES
        for name in blocks(kind, 3, torch.float32)
    ]


@pytest.mark.parametrize(("name", "kind", "which", "kernel_size", "channels", "size", "dtype"), cases())
def test_masked_block(
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
    which: str,
    kernel_size: int,
    channels: int,
    size: int,
    dtype: str,
) -> None:
    prepare(monkeypatch, dtype, which)
    layout = torch.channels_last if DEVICE == "cuda" else torch.contiguous_format  # what each is usually given
    made: dict[str, Any] = {"device": DEVICE, "dtype": DTYPES[dtype]}
    torch.manual_seed(0)
    batch, out = batch_of(size), 2 * channels if kind == "gated" else channels
    x = torch.randn(batch, channels, size, size, **made).to(memory_format=layout)
    weight = torch.randn(out, channels, kernel_size, kernel_size, **made) / (channels**0.5 * kernel_size)
    other = torch.randn(batch, out, size, size, **made).to(memory_format=layout)
    inputs = [t.requires_grad_() for t in (x, weight, torch.randn(out, **made), other)]
    grad_y = torch.randn(batch, channels, size, size, **made).to(memory_format=layout)
    found = blocks(kind, kernel_size, DTYPES[dtype])

    exact = blocks(kind, kernel_size, torch.float64)[BASELINE]
    most_error = 2 if name.startswith("fastvae") else 8  # others' own rounding is theirs, as long as they compute this
    check(found[name], found[BASELINE], exact, inputs, grad_y, most_error)
    ours, theirs = (step(found[n], inputs, grad_y, which) for n in (name, BASELINE))
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    iterations = max(1, round(MIN_SECONDS / pairs["candidate_s"]))
    benchmark.pedantic(synchronized(ours), rounds=5, iterations=iterations, warmup_rounds=1)

    live = reference.count_live_taps(kernel_size, "B")
    operations = 2 * batch * size**2 * channels * out * live * {"fwd": 1, "bwd": 2, "fwd+bwd": 3}[which]
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
