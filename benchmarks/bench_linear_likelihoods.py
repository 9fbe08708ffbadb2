"""A last linear layer with its likelihood in one operator: against the two apart, and against the product alone.

FASTVAE_BENCH=tiny shrinks every case to a rehearsal; FASTVAE_BENCH_COMPILE=1 adds torch.compile of the plain code.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory
from benchmarks.environment import device
from benchmarks.pairs import interleaved, synchronized
from fastvae import ops, reference

DEVICE = device()
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
ROUNDS, MIN_SECONDS = (3, 1e-4) if TINY else (9, 0.01)
INNER = 8 if TINY else 200
SAMPLES = 40 if TINY else 5000 if DEVICE == "cpu" else 100_000
FAMILIES = ["bernoulli", "gaussian", "categorical-256"]
BASELINE = "eager"


def plain(family: str, h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """The layer, then the likelihood, as one writes them."""
    out = F.linear(h, weight, bias)
    if family == "bernoulli":
        return -F.binary_cross_entropy_with_logits(out, x.expand_as(out), reduction="none").sum(-1)
    if family == "gaussian":
        loc, log_scale = out.chunk(2, -1)
        return torch.distributions.Normal(loc, log_scale.exp(), validate_args=False).log_prob(x).sum(-1)
    logits = out.unflatten(-1, (x.shape[-1], 256)).log_softmax(-1)
    return logits.gather(-1, x.long().expand(logits.shape[:-1])[..., None]).sum((-1, -2))


def fused(family: str, h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    if family == "bernoulli":
        return ops.linear_bernoulli_log_prob(h, weight, bias, x)
    if family == "gaussian":
        return ops.linear_gaussian_log_prob(h, weight, bias, x)
    return ops.linear_categorical_log_prob(h, weight, bias, x)


def exact(family: str, h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    h, weight, bias = h.double(), weight.double(), bias.double()
    if family == "bernoulli":
        return reference.linear_bernoulli_log_prob(h, weight, bias, x, 1)
    if family == "gaussian":
        return reference.linear_gaussian_log_prob(h, weight, bias, x, None, 1, -2)
    return reference.linear_categorical_log_prob(h, weight, bias, x, 1, -1)


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {BASELINE: plain, "fastvae": fused}
if os.environ.get("FASTVAE_BENCH_COMPILE") == "1":
    IMPLEMENTATIONS["compiled"] = torch.compile(plain)


def case(family: str) -> tuple[Tensor, ...]:
    """784 values of one image, or 48 for the 256 levels; samples that give parameters of about the same size."""
    torch.manual_seed(0)
    size, per_value = {"bernoulli": (784, 1), "gaussian": (784, 2), "categorical-256": (48, 256)}[family]
    size, samples = (4, SAMPLES) if TINY else (size, SAMPLES // (1 if per_value < 3 else 10))
    h = torch.randn(samples, 1, INNER, device=DEVICE).tanh()
    weight = torch.randn(size * per_value, INNER, device=DEVICE) * 0.05
    return h, weight, torch.zeros(size * per_value, device=DEVICE), torch.ones(1, size, device=DEVICE)


def with_gradients(call: Callable[..., Tensor], family: str, tensors: tuple[Tensor, ...]) -> Callable[[], Any]:
    *inputs, x = tensors
    inputs = [value.clone().requires_grad_() for value in inputs]
    return lambda: torch.autograd.grad(call(family, *inputs, x).sum(), inputs)


@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.benchmark(group=f"last layer with likelihood, {f}")) for f in FAMILIES],
)
@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, "product alone"])
def test_linear_likelihood(benchmark: Any, name: str, family: str, direction: str) -> None:
    tensors = case(family)
    h, weight, bias, x = tensors
    implementation = IMPLEMENTATIONS.get(name, lambda _, h, weight, bias, x: F.linear(h, weight, bias))
    if name != "product alone":
        few = (h[:20], weight, bias, x)
        torch.testing.assert_close(implementation(family, *few).double(), exact(family, *few), rtol=1e-4, atol=1e-2)
    if direction == "forward":
        ours, theirs = (torch.no_grad()(lambda f=f: f(family, *tensors)) for f in (implementation, plain))
    else:
        ours, theirs = (with_gradients(f, family, tensors) for f in (implementation, plain))
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    benchmark.pedantic(synchronized(ours), rounds=3)
    products = 1 if direction == "forward" else 3
    operations = 2 * products * h.shape[0] * weight.numel()
    benchmark.extra_info.update(
        pairs,
        implementation=f"{name}, {direction}",
        baseline=BASELINE,
        **{"TFLOP/s": operations / pairs["candidate_s"] / 1e12, "peak_MiB": peak_mebibytes(ours)},
    )


def peak_mebibytes(call: Callable[[], Any]) -> float | None:
    """What one call adds to the peak: of CUDA memory, or of the resident set where Linux counts it."""
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not memory.AVAILABLE:
        return None
    memory.forget_peak()
    before = memory.peak_mebibytes()
    call()
    return memory.peak_mebibytes() - before
