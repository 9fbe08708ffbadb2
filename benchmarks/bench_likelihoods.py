"""Likelihoods of given parameters beside what people write: how near to one read of the parameters?

The limit is bytes per second of a copy: forward must read the parameters, backward read them again and write their
gradients. FASTVAE_BENCH=tiny shrinks every case to a rehearsal, FASTVAE_BENCH_COMPILE=1 adds torch.compile of the usual
formula on a CPU (minutes); on a card it is always there.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_masked_conv2d import graphed, peak_mebibytes
from benchmarks.environment import device
from benchmarks.pairs import interleaved, synchronized
from fastvae import ops, reference

DEVICE = device()
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
COMPILE = os.environ.get("FASTVAE_BENCH_COMPILE") == "1" or (DEVICE == "cuda" and not TINY)
ROUNDS, MIN_SECONDS = (3, 1e-4) if TINY else (7, 0.02)
ROWS = 8 if TINY else 4096 if DEVICE == "cpu" else 65_536  # of binary or continuous images
IMAGES = 2 if TINY else 16 if DEVICE == "cpu" else 128  # of 256 levels
COLOURS = 2 if TINY else 64 if DEVICE == "cpu" else 512  # for the mixture, which has fewer parameters
SIDE = 8 if TINY else 32
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One likelihood: data and parameters, and functions of them that give (N,) nats; the first one is usual."""

    make: Callable[[], tuple[Tensor, ...]]
    ours: Function
    definition: Function
    eager: dict[str, Function]


def normal(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    return torch.distributions.Normal(loc, log_scale.exp(), validate_args=False).log_prob(x).sum(-1)


def square(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    noise = (x - loc) * (-log_scale).exp()
    return (-0.5 * noise.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def bce(x: Tensor, logits: Tensor) -> Tensor:
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def cross_entropy(x: Tensor, logits: Tensor) -> Tensor:
    return -F.cross_entropy(logits.movedim(2, 1), x, reduction="none").flatten(1).sum(1)


def gathered(x: Tensor, logits: Tensor) -> Tensor:
    return logits.log_softmax(2).gather(2, x.unsqueeze(2)).flatten(1).sum(1)


def pixelcnn_pp(x: Tensor, params: Tensor) -> Tensor:
    """The authors' formula for three channels and 256 levels, with its threshold and clamp: ``x`` (N, 3, H, W)."""
    x, params = (x / 127.5 - 1).permute(0, 2, 3, 1).unsqueeze(-1), params.permute(0, 2, 3, 1)
    components = params.shape[-1] // 10
    logits, rest = params[..., :components], params[..., components:].unflatten(-1, (3, 3 * components))
    means, log_scales, coefficients = rest.chunk(3, -1)  # (N, H, W, 3, K) each
    log_scales, coefficients = log_scales.clamp(min=-7.0), coefficients.tanh()
    red, green = x[..., 0, :], x[..., 1, :]
    mean_green = means[..., 1, :] + coefficients[..., 0, :] * red
    mean_blue = means[..., 2, :] + coefficients[..., 1, :] * red + coefficients[..., 2, :] * green
    centred = x - torch.stack((means[..., 0, :], mean_green, mean_blue), -2)
    inverse = (-log_scales).exp()
    above, below, middle = inverse * (centred + 1 / 255), inverse * (centred - 1 / 255), inverse * centred
    mass = above.sigmoid() - below.sigmoid()
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
    inner = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    log_mass = torch.where(x < -0.999, above - F.softplus(above), torch.where(x > 0.999, -F.softplus(below), inner))
    return (log_mass.sum(-2) + logits.log_softmax(-1)).logsumexp(-1).sum((1, 2))


def colours() -> tuple[Tensor, ...]:
    x = torch.randint(0, 256, (COLOURS, 3, SIDE, SIDE), device=DEVICE)
    params = torch.randn(COLOURS, 10, 10, SIDE, SIDE, device=DEVICE) * 0.5
    params[:, [2, 5, 8]] -= 2.0  # log-scales as they are after some training
    return x, params.flatten(1, 2)


def continuous(*scale: int) -> tuple[Tensor, ...]:
    x, loc = torch.randn(1, 784, device=DEVICE), torch.randn(ROWS, 784, device=DEVICE)
    return x, loc, torch.randn(scale, device=DEVICE) * 0.3


CASES = {
    f"Bernoulli, {ROWS} x 784": Case(
        lambda: (torch.rand(1, 784, device=DEVICE).round(), torch.randn(ROWS, 784, device=DEVICE) * 3),
        lambda *t: ops.bernoulli_log_prob(*t, event_dims=1),
        lambda *t: reference.bernoulli_log_prob(*t, 1),
        {"binary_cross_entropy_with_logits": bce},
    ),
    f"Gaussian, a scale per value, {ROWS} x 784": Case(
        lambda: continuous(ROWS, 784),
        lambda *t: ops.gaussian_log_prob(*t, event_dims=1),
        lambda *t: reference.gaussian_log_prob(*t, 1),
        {"Normal.log_prob": normal, "squares": square},
    ),
    f"Gaussian, one scale, {ROWS} x 784": Case(
        continuous,
        lambda *t: ops.gaussian_log_prob(*t, event_dims=1),
        lambda *t: reference.gaussian_log_prob(*t, 1),
        {"Normal.log_prob": normal, "squares": square},
    ),
    f"categorical of 256 levels, {IMAGES} x 3 x {SIDE} x {SIDE}": Case(
        lambda: (
            torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), device=DEVICE),
            torch.randn(IMAGES, 3, 256, SIDE, SIDE, device=DEVICE) * 3,
        ),
        ops.categorical_log_prob,
        lambda *t: reference.categorical_log_prob(*t, 3, -3),
        {"cross_entropy": cross_entropy, "log_softmax, gather": gathered},
    ),
    f"10 logistics of 256 levels, {COLOURS} x 3 x {SIDE} x {SIDE}": Case(
        colours,
        ops.logistic_mixture_log_prob,
        lambda *t: reference.logistic_mixture_log_prob(*t, 256),
        {"PixelCNN++": pixelcnn_pp, "definition in log space": lambda *t: reference.logistic_mixture_log_prob(*t, 256)},
    ),
}


def implementations(case: str) -> dict[str, Function]:
    found = {"fastvae": CASES[case].ours, **CASES[case].eager}
    if COMPILE:
        usual = next(iter(CASES[case].eager))
        found[f"compiled {usual}"] = compiled(case, usual)
    return found


@cache
def compiled(case: str, name: str) -> Function:
    return torch.compile(CASES[case].eager[name], dynamic=False)  # as fast as it can be at each size


@cache
def copied_bytes_per_second() -> float:
    """The limit: bytes read and written by a copy of 256 MB, which no cache holds."""
    source = torch.ones(2**14 if TINY else 2**26, device=DEVICE)
    target = torch.zeros_like(source)
    seconds = interleaved(lambda: target.copy_(source), lambda: None, rounds=5, min_seconds=MIN_SECONDS)["candidate_s"]
    return 2 * source.nbytes / seconds


def step(function: Function, x: Tensor, params: list[Tensor], which: str) -> Callable[[], Any]:
    if which == "fwd":

        def forward() -> Tensor:
            with torch.no_grad():
                return function(x, *params)

        return forward
    ones = torch.ones(max(len(values) for values in params if values.ndim), device=DEVICE)
    return lambda: torch.autograd.grad(function(x, *params), params, ones)


def check(function: Function, definition: Function, x: Tensor, params: list[Tensor]) -> None:
    """Right before fast, against float64, on two rows."""
    few = [values.detach()[:2] if values.ndim else values.detach() for values in params]
    x = x[:2]
    given, exact = [t.requires_grad_() for t in few], [t.double().requires_grad_() for t in few]
    ours, want = function(x, *given), definition(x, *exact)
    torch.testing.assert_close(ours.double(), want, rtol=1e-4, atol=1e-2)
    grads = zip(torch.autograd.grad(ours.sum(), given), torch.autograd.grad(want.sum(), exact), strict=True)
    assert all((got - exact_grad).norm() <= 1e-2 * exact_grad.norm() for got, exact_grad in grads)


@pytest.mark.parametrize(
    ("name", "case", "which"),
    [
        pytest.param(name, case, which, marks=pytest.mark.benchmark(group=f"{case}, {which}"))
        for which in ("fwd", "fwd+bwd")
        for case in CASES
        for name in implementations(case)
    ],
)
def test_likelihood(benchmark: Any, name: str, case: str, which: str) -> None:
    found, baseline = implementations(case), next(iter(CASES[case].eager))
    torch.manual_seed(0)
    x, *params = CASES[case].make()
    params = [values.requires_grad_() for values in params]
    check(found[name], CASES[case].definition, x, params)
    ours, theirs = (step(found[n], x, params, which) for n in (name, baseline))
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    iterations = max(1, round(MIN_SECONDS / pairs["candidate_s"]))
    benchmark.pedantic(synchronized(ours), rounds=5, iterations=iterations, warmup_rounds=1)
    num_bytes = sum(values.nbytes for values in params) * (1 if which == "fwd" else 3)
    rate, limit = num_bytes / pairs["candidate_s"], copied_bytes_per_second()
    benchmark.extra_info.update(
        pairs,
        implementation=name,
        baseline=baseline,
        **{"GB/s": rate / 1e9, "limit_GB/s": limit / 1e9, "of_limit": rate / limit},
    )
    if DEVICE == "cuda":
        benchmark.extra_info["peak_MiB"] = peak_mebibytes(ours)
        if not name.startswith("compiled"):
            graphs = interleaved(graphed(ours), graphed(theirs), rounds=ROUNDS, min_seconds=MIN_SECONDS)
            benchmark.extra_info.update({f"graph_{key}": value for key, value in graphs.items()})
