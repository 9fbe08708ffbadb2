"""How long does an exact image take, next to one full pass of the network per pixel?

Networks for 28 x 28 binary pixels, 64 channels: the one of the README, a 7x7 convolution (mask A) and seven residual
blocks with 3x3 convolutions (mask B); gated nets of eight layers with two stacks, whose vertical one sees rows above
only, or its own row too and is linked to the row below; one with layers at half the resolution. Naive sampling runs the
same network, so it gains from our convolutions too; on CUDA its passes are replayed from a graph. FASTVAE_BENCH=tiny
rehearses with small networks.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.handwritten_sampler import HandwrittenSampler, graphed
from benchmarks.pairs import interleaved, synchronized
from fastvae import compile_sampler, ops
from fastvae.models import PixelCNN
from fastvae.nn import CausalStack, MaskedConv2d
from fastvae.sampling import Sampler

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
SIDE, CHANNELS, LAYERS = (8, 8, 2) if TINY else (28, 64, 8)
SHAPE, PIXELS = (1, SIDE, SIDE), SIDE * SIDE
ROUNDS = 3 if TINY else 5
PREFIX = 8  # pixels that naive sampling draws in one turn: every pixel costs it the same full pass
BACKENDS = ["torch", "cuda_graph", "triton"] if DEVICE == "cuda" else ["torch"]


class UpperRows(nn.Module):
    """Gated stacks whose vertical layers read only rows above, so that no shift is needed; links before their gates."""

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for index in range(num_layers):
            source, size = (1, 7) if index == 0 else (channels, 3)
            self.layers.append(nn.ModuleDict({
                "vertical": MaskedConv2d(source, 2 * channels, size, mask="vertical-strict"),
                "horizontal": MaskedConv2d(source, 2 * channels, (1, size), mask="B" if index else "A"),
                "link": nn.Conv2d(2 * channels, 2 * channels, 1),
                "mix": nn.Conv2d(channels, channels, 1),
            }))  # fmt: skip
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        vertical = horizontal = x
        for index, layer in enumerate(self.layers):
            above = layer["vertical"](vertical)
            mixed = layer["mix"](_gate(layer["horizontal"](horizontal) + layer["link"](above)))
            horizontal = horizontal + mixed if index else mixed
            vertical = _gate(above)
        return self.last(horizontal.relu())


def _gate(h: Tensor) -> Tensor:
    f, g = h.chunk(2, 1)
    return f.tanh() * g.sigmoid()


class OwnRow(nn.Module):
    """The library's gated stacks: the vertical one sees its own row, the link takes the row above."""

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.stack = CausalStack(1, channels, num_layers)
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.stack(x).relu())


class Strided(nn.Module):
    """In the way of PixelCNN++: layers at half the resolution between those at the full one, and a skip."""

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.first = MaskedConv2d(1, channels, 7, mask="A")
        self.down = nn.Conv2d(channels, channels, 2, stride=2)
        self.coarse = nn.ModuleList(MaskedConv2d(channels, channels, 3, mask="B") for _ in range(num_layers - 2))
        self.mixed = MaskedConv2d(channels, channels, 3, mask="B")
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        full = self.first(x).relu()
        half = self.down(F.pad(full, (1, 0, 1, 0))).relu()  # the window ends at the pixel itself
        for layer in self.coarse:
            half = half + layer(half).relu()
        return self.last(self.mixed(full + F.interpolate(half, scale_factor=2)).relu())


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain 7x7 A + 3x3": lambda: PixelCNN(SHAPE, "bernoulli", CHANNELS, LAYERS - 1),
    "gated, upper rows": lambda: UpperRows(CHANNELS, LAYERS),
    "gated, own row": lambda: OwnRow(CHANNELS, LAYERS),
    "strided": lambda: Strided(CHANNELS, LAYERS),
}
BATCHES = {name: [1, 16, 64, 256, 4096] if DEVICE == "cuda" else [1, 16] for name in NETS}
BATCHES["plain 7x7 A + 3x3"] = [1, 16, 64, *([256, 4096] if DEVICE == "cuda" else [])]


@cache
def sampler_of(name: str, backend: str, schedule: Any = "auto") -> Sampler:
    torch.manual_seed(0)
    net = NETS[name]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)  # sharper than at the start of training: a wrong value would show
    return compile_sampler(net.to(DEVICE), SHAPE, "bernoulli", backend=backend, schedule=schedule)


class Replayed(nn.Module):
    """The network of naive sampling on CUDA."""

    def __init__(self, sampler: Sampler, batch: int) -> None:
        super().__init__()
        self.replay = graphed(sampler.model, (batch, *SHAPE))

    def forward(self, images: Tensor) -> Tensor:
        return self.replay(images)


def naive_of(sampler: Sampler, batch: int) -> Callable[[], Any]:
    """Draws the first ``PREFIX`` pixels."""
    if DEVICE == "cpu":
        return lambda: sampler.naive(batch, seed=1, num_pixels=PREFIX)
    from fastvae.sampling import naive_samples
    from fastvae.sampling.draw import Bernoulli

    network, uniform = Replayed(sampler, batch), numbers(batch)
    return lambda: naive_samples(network, Bernoulli(), uniform, num_pixels=PREFIX)


def numbers(batch: int) -> Tensor:
    """The uniform numbers of seed 1, (B, 1, H, W)."""
    ids, pixels = (torch.arange(count, device=DEVICE) for count in (batch, PIXELS))
    return ops.uniform(1, ids, pixels, 1).view(batch, *SHAPE)


def group(name: str) -> str:
    return f"sampling {SIDE}x{SIDE}, {name}, {LAYERS} layers, {CHANNELS} channels, float32"


CASES = [
    pytest.param(name, backend, batch, marks=pytest.mark.benchmark(group=group(name)))
    for name in NETS
    for backend in BACKENDS
    for batch in BATCHES[name]
]


def describe(benchmark: Any, sampler: Sampler, batch: int, implementation: str) -> None:
    seconds = benchmark.stats["median"]
    assert sampler.plan is not None
    benchmark.extra_info.update(
        batch=batch,
        implementation=f"{implementation}, batch {batch}",
        device=DEVICE,
        serial_steps=sampler.plan.num_steps,
        naive_steps=PIXELS,
        ms_per_image=1e3 * seconds / batch,
        images_per_second=batch / seconds,
        **{"GFLOP/s": 2e-9 * sampler.plan.macs * batch / seconds},
    )


@pytest.mark.parametrize(("name", "backend", "batch"), CASES)
def test_fastvae(benchmark: Any, name: str, backend: str, batch: int) -> None:
    sampler = sampler_of(name, backend)
    certificate = sampler(batch, seed=1, verify=True).certificate  # exact before fast; also plans the batch size
    assert certificate is not None
    assert certificate.ok
    call = synchronized(lambda: sampler(batch, seed=1))
    benchmark(call)
    pairs = interleaved(call, naive_of(sampler, batch), rounds=ROUNDS, min_seconds=0.0)
    for key in ("ratio", "ratio_q1", "ratio_q3", "baseline_s"):
        pairs[key] *= PIXELS / PREFIX
    describe(benchmark, sampler, batch, f"fastvae {backend}")
    benchmark.extra_info.update(
        pairs,
        baseline="naive" if DEVICE == "cpu" else "naive, graphed",
        baseline_note=f"{PREFIX} of {PIXELS} pixels a turn, {ROUNDS} turns, scaled by {PIXELS / PREFIX:g}",
        certificate=str(certificate),
    )


@pytest.mark.benchmark(group=group("plain 7x7 A + 3x3"))
@pytest.mark.parametrize("batch", BATCHES["plain 7x7 A + 3x3"])
def test_rows_beside_the_wavefront(benchmark: Any, batch: int) -> None:
    """Cached values, one pixel after the other, whole rows where they depend on finished ones only."""
    rows, wavefront = (sampler_of("plain 7x7 A + 3x3", "torch", name) for name in ("row", "wavefront"))
    assert (rows(batch, seed=1).samples == wavefront(batch, seed=1).samples).float().mean() > 0.99
    calls = [synchronized(lambda sampler=sampler: sampler(batch, seed=1)) for sampler in (rows, wavefront)]
    pairs = interleaved(*calls, rounds=ROUNDS, min_seconds=0.0)
    benchmark(calls[0])
    describe(benchmark, rows, batch, "fastvae torch, row by row")
    benchmark.extra_info.update(pairs, baseline="fastvae torch, wavefront")


@pytest.mark.benchmark(group=group("plain 7x7 A + 3x3"))
@pytest.mark.parametrize("batch", BATCHES["plain 7x7 A + 3x3"])
def test_overhead_of_the_generic_path(benchmark: Any, batch: int) -> None:
    """A loop written by hand for this one net; the ratio is what the generic path takes longer."""
    sampler = sampler_of("plain 7x7 A + 3x3", "torch")
    net = sampler.model
    assert isinstance(net, PixelCNN)
    by_hand, uniform = HandwrittenSampler(net, batch), numbers(batch)
    images, nats = by_hand(uniform)
    ours = sampler(batch, noise=uniform)
    assert (images == ours.samples).float().mean() > 0.99  # rounding may decide a value where u meets the cdf
    assert ours.log_prob is not None
    torch.testing.assert_close(nats.mean(), ours.log_prob.mean(), rtol=1e-2, atol=1e-2)
    pairs = interleaved(
        synchronized(lambda: by_hand(uniform)), synchronized(lambda: sampler(batch, noise=uniform)), rounds=ROUNDS
    )
    benchmark(synchronized(lambda: by_hand(uniform)))
    describe(benchmark, sampler, batch, "written by hand")
    benchmark.extra_info.update(pairs, baseline="fastvae torch, given noise")


@pytest.mark.benchmark(group=group("plain 7x7 A + 3x3"))
def test_naive_in_full(benchmark: Any) -> None:
    """All pixels of one image, to confirm the scaled figures."""
    sampler = sampler_of("plain 7x7 A + 3x3", "torch")
    ours = sampler(1, seed=1)
    naive = benchmark.pedantic(synchronized(lambda: sampler.naive(1, seed=1)), rounds=1)
    assert (naive.samples == ours.samples).float().mean() > 0.99  # rounding may decide a value where u meets the cdf
    benchmark.extra_info.update(
        batch=1,
        implementation="naive, batch 1",
        ms_per_image=1e3 * benchmark.stats["median"],
        serial_steps=PIXELS,
    )


@pytest.mark.benchmark(group="planning a sampler")
def test_compile(benchmark: Any) -> None:
    """Trace and plan, and the memory and calls of the first batch of 16."""
    net = sampler_of("plain 7x7 A + 3x3", "torch").model
    assert compile_sampler(net, SHAPE, "bernoulli")(16, verify=True).certificate.ok
    benchmark.pedantic(lambda: compile_sampler(net, SHAPE, "bernoulli")(16), rounds=5)
