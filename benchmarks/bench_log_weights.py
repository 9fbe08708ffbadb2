"""The two operators of many-sample evaluation: the state update, and the Bernoulli log-likelihood of given logits."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastvae
from benchmarks.environment import device
from benchmarks.pairs import interleaved, synchronized
from fastvae import ops, reference

DEVICE = device()
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
ROUNDS, MIN_SECONDS = (3, 1e-4) if TINY else (11, 0.01)
SHAPES = [(20, 3)] if TINY else [(4096, 1), (4096, 32), (500, 1000)]
ROWS = 20 if TINY else 512 if DEVICE == "cpu" else 65_536


def plain_update(state: Tensor, log_w: Tensor) -> Tensor:
    with fastvae.backend("torch"):
        return ops.update_log_weights(state, log_w)


@pytest.mark.skipif(DEVICE == "cpu" and not TINY, reason="on the CPU the operator is the definition")
@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=pytest.mark.benchmark(group=f"state update, {s[0]} x {s[1]}")) for s in SHAPES]
)
@pytest.mark.parametrize("name", ["torch", "fastvae"])
def test_update_log_weights(benchmark: Any, name: str, shape: tuple[int, int]) -> None:
    implementations = {"torch": plain_update, "fastvae": ops.update_log_weights}
    log_w = torch.randn(shape, device=DEVICE) * 3 - 90
    state = ops.empty_log_weights(shape[1], DEVICE)
    want = reference.update_log_weights(state, log_w)
    torch.testing.assert_close(implementations[name](state, log_w), want, rtol=5e-6, atol=1e-5)
    ours, theirs = (lambda f=implementations[n]: f(state, log_w) for n in (name, "torch"))
    measure(benchmark, ours, theirs, name, "torch", log_w.nbytes)


def bce(x: Tensor, logits: Tensor) -> Tensor:
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def product(x: Tensor, logits: Tensor) -> Tensor:
    return (x * logits).sum(-1) - F.softplus(logits).sum(-1)


LIKELIHOODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "binary_cross_entropy_with_logits": bce,
    "x l - softplus": product,
    "fastvae": lambda x, logits: ops.bernoulli_log_prob(x, logits, event_dims=1),
}


@pytest.mark.benchmark(group=f"Bernoulli log-likelihood, {ROWS} x 784")
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_bernoulli_log_prob(benchmark: Any, name: str) -> None:
    baseline = "binary_cross_entropy_with_logits"
    x = torch.bernoulli(torch.full((1, 784), 0.5, device=DEVICE))
    logits = torch.randn(ROWS, 1, 784, device=DEVICE) * 5
    exact = reference.bernoulli_log_prob(x, logits.double(), 1)
    torch.testing.assert_close(LIKELIHOODS[name](x, logits).double(), exact, rtol=1e-5, atol=1e-3)
    ours, theirs = (lambda f=LIKELIHOODS[n]: f(x, logits) for n in (name, baseline))
    measure(benchmark, ours, theirs, name, baseline, logits.nbytes)


def measure(
    benchmark: Any, ours: Callable[[], Any], theirs: Callable[[], Any], name: str, baseline: str, num_bytes: int
) -> None:
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    benchmark.pedantic(synchronized(ours), rounds=5, iterations=10, warmup_rounds=1)
    benchmark.extra_info.update(
        pairs, implementation=name, baseline=baseline, **{"GB/s": num_bytes / pairs["candidate_s"] / 1e9}
    )
