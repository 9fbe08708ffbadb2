"""How long does the inverse of a masked autoregressive flow take, next to one full pass for every dimension?

And NADE, forward and backward, next to the loop over its steps that people write, with the memory of both. Shapes and
options: D = 784 with two hidden layers of 1000 units and D = 64 with two of 256, 64 rows; NADE with D = 784 and
H = 500.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.pairs import interleaved, synchronized
from fastvae import ops, reference
from fastvae.nn import MADE, NADE
from fastvae.sampling import compile_inverse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
SHAPES = [(12, 20, 3)] if TINY else [(784, 1000, 64), (64, 256, 64)]
ROUNDS = 3 if TINY else 7
MIN_SECONDS = 0.0 if TINY else 0.05
PASSES = 16  # of the baseline in one turn: every pass costs the same


Inverse = Callable[[Tensor], Tensor]


def flow_of_zuko(features: int, hidden: int) -> tuple[Inverse, Inverse, Inverse]:
    """Our inverse, the library's own for ``PASSES`` passes, and the forward direction."""
    zuko = pytest.importorskip("zuko")  # a machine without it still measures the rest
    step = zuko.flows.MaskedAutoregressiveTransform(features, hidden_features=(hidden, hidden)).to(DEVICE)
    inverse = compile_inverse(step.hyper, features, draw=lambda y, params: step.univariate(*params.unbind(-1)).inv(y))
    some_passes = step()
    some_passes.passes = min(PASSES, features)
    return lambda y: inverse(y)[0], some_passes._inverse, lambda x: step()(x)


def flow_of_ours(features: int, hidden: int) -> tuple[Inverse, Inverse, Inverse]:
    """The same for our own network and an affine transform."""
    made = MADE(features, [hidden, hidden], num_params=2, device=DEVICE)

    def by_passes(y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        for _ in range(min(PASSES, features)):
            shift, log_scale = made(x).unbind(-1)
            x = shift + log_scale.exp() * y
        return x

    def forward(x: Tensor) -> Tensor:
        shift, log_scale = made(x).unbind(-1)
        return (x - shift) * (-log_scale).exp()

    return lambda y: made.solve(y)[0], by_passes, forward


FLOWS = {"network of zuko": flow_of_zuko, "network of ours": flow_of_ours}
MAF_CASES = [
    pytest.param(
        *shape, name, marks=pytest.mark.benchmark(group=f"inverse of a MAF, D={shape[0]} 2x{shape[1]} batch {shape[2]}")
    )
    for shape in SHAPES
    for name in FLOWS
]


@torch.no_grad()
@pytest.mark.parametrize(("features", "hidden", "batch", "name"), MAF_CASES)
def test_inverse(benchmark: Any, features: int, hidden: int, batch: int, name: str) -> None:
    torch.manual_seed(0)
    inverse, by_passes, forward = FLOWS[name](features, hidden)
    y = torch.randn(batch, features, device=DEVICE)
    # right before fast: the forward direction, one parallel pass, gives the noise back
    torch.testing.assert_close(forward(inverse(y)), y, rtol=1e-4, atol=1e-4)
    pairs = interleaved(lambda: inverse(y), lambda: by_passes(y), rounds=ROUNDS, min_seconds=MIN_SECONDS)
    benchmark(synchronized(lambda: inverse(y)))
    passes = min(PASSES, features)
    for key in ("ratio", "ratio_q1", "ratio_q3", "baseline_s"):
        pairs[key] *= features / passes
    benchmark.extra_info.update(
        pairs,
        implementation=f"fastvae, {name}",
        baseline="one pass per dimension",
        baseline_note=f"{passes} of {features} passes a turn, scaled by {features / passes:g}",
        device=DEVICE,
        serial_steps=features,
    )


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES[:1])
@pytest.mark.benchmark(group="inverse of a MAF, all passes of zuko")
def test_all_passes(benchmark: Any, shape: tuple[int, int, int]) -> None:
    """The library's own inverse once in full, to confirm the scaled figures."""
    features, hidden, batch = shape
    torch.manual_seed(0)
    zuko = pytest.importorskip("zuko")  # a machine without it still measures the rest
    step = zuko.flows.MaskedAutoregressiveTransform(features, hidden_features=(hidden, hidden)).to(DEVICE)
    inverse = compile_inverse(step.hyper, features, draw=lambda y, params: step.univariate(*params.unbind(-1)).inv(y))
    y = torch.randn(batch, features, device=DEVICE)
    want = benchmark.pedantic(synchronized(lambda: step().inv(y)), rounds=1)
    torch.testing.assert_close(inverse(y)[0], want, rtol=1e-4, atol=1e-4)
    benchmark.extra_info.update(implementation="zuko", serial_steps=features, device=DEVICE)


@pytest.mark.parametrize("shape", SHAPES[-1:])
def test_gradient_of_draws(benchmark: Any, shape: tuple[int, int, int]) -> None:
    """Reparameterised draws and their gradient, as a proposal needs them in training."""
    features, hidden, batch = shape
    benchmark.group = f"draws with gradient, D={features} 2x{hidden} batch {batch}"
    torch.manual_seed(0)
    made = MADE(features, [hidden, hidden], num_params=2, device=DEVICE)
    parameters = list(made.parameters())
    noise, grad = torch.randn(2, batch, features, device=DEVICE)

    def by_passes() -> Tensor:
        x = torch.zeros_like(noise)
        for _ in range(features):
            shift, log_scale = made(x).unbind(-1)
            x = shift + log_scale.exp() * noise
        return x

    ours, theirs = (
        lambda draw=draw: torch.autograd.grad(draw(), parameters, grad)
        for draw in (lambda: made.solve(noise)[0], by_passes)
    )
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-4 * batch)
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    benchmark(synchronized(ours))
    benchmark.extra_info.update(pairs, implementation="fastvae", baseline="one pass per dimension", device=DEVICE)


NADE_CASES = [
    pytest.param(
        *shape, which, marks=pytest.mark.benchmark(group=f"NADE {which}, D={shape[0]} H={shape[1]} batch {shape[2]}")
    )
    for shape in ([(10, 8, 3)] if TINY else [(784, 500, 64)])
    for which in ("fwd", "fwd+bwd")
]


def nade_step(function: Callable[..., Tensor], features: int, hidden: int, batch: int, which: str) -> Callable[[], Any]:
    """One forward pass, with or without the gradients of all parameters."""
    torch.manual_seed(0)
    parameters = list(NADE(features, hidden, device=DEVICE).parameters())
    x = torch.bernoulli(torch.full((batch, features), 0.3, device=DEVICE))
    grad = torch.randn_like(x)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(x, *parameters)

    return forward if which == "fwd" else lambda: torch.autograd.grad(function(x, *parameters), parameters, grad)


NADES = {"fastvae": ops.nade_logits, "loop over dimensions": reference.nade_logits}


@pytest.mark.parametrize(("features", "hidden", "batch", "which"), NADE_CASES)
def test_nade(benchmark: Any, features: int, hidden: int, batch: int, which: str) -> None:
    ours, theirs = (nade_step(function, features, hidden, batch, which) for function in NADES.values())
    # right before fast, with rounding that grows with the number of added rows
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-4 * batch)
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    benchmark(synchronized(ours))
    benchmark.extra_info.update(pairs, implementation="fastvae", baseline="loop over dimensions", device=DEVICE)


MEMORY_CASES = [(name, batch) for batch in ((3,) if TINY else (64, 512)) for name in NADES]


@pytest.mark.skipif(DEVICE == "cpu" and not memory.AVAILABLE, reason="reads the peak from Linux's /proc")
@pytest.mark.benchmark(group="NADE fwd+bwd, peak memory")
@pytest.mark.parametrize(("name", "batch"), MEMORY_CASES)
def test_nade_peak_memory(benchmark: Any, name: str, batch: int) -> None:
    """In a process of its own: what one step adds to libraries, data and parameters."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.bench_masked_mlp", name, str(batch)]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}"}

    def measure() -> float:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    peak = benchmark.pedantic(measure, rounds=1)
    features, hidden = (10, 8) if TINY else (784, 500)
    benchmark.extra_info.update(
        implementation=f"{name}, batch {batch}",
        peak_MiB=peak,
        hidden_units_MiB=batch * hidden * 4 / 2**20,  # (B, H)
        all_hidden_units_MiB=batch * features * hidden * 4 / 2**20,  # (B, D, H), which a graph of all steps keeps
        gradients_MiB=(2 * features * hidden + features + hidden) * 4 / 2**20,
    )


def peak_mebibytes(name: str, batch: int) -> float:
    """The growth of the peak by one step: of CUDA memory, or of the resident set of this process."""
    features, hidden = (10, 8) if TINY else (784, 500)
    nade_step(NADES[name], 3, 3, 2, "fwd+bwd")()  # libraries load on first use
    run = nade_step(NADES[name], features, hidden, batch, "fwd+bwd")
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
