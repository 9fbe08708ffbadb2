"""A last linear layer, or 1x1 convolution, with its likelihood in one operator: against the two apart, and against the
product alone.

FASTVAE_BENCH=tiny shrinks every case to a rehearsal; FASTVAE_BENCH_COMPILE=1 adds torch.compile of the plain code
(minutes on a CPU).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory
from benchmarks.bench_likelihoods import pixelcnn_pp
from benchmarks.environment import device
from benchmarks.pairs import interleaved, synchronized
from fastvae import ops, reference
from fastvae.distributions import (
    CategoricalLikelihood,
    Likelihood,
    LogisticMixtureLikelihood,
    checked_data,
    likelihood_of_conv1x1,
)

DEVICE = device()
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
COMPILE = os.environ.get("FASTVAE_BENCH_COMPILE") == "1"
ROUNDS, MIN_SECONDS = (3, 1e-4) if TINY else (9, 0.01)
INNER = 8 if TINY else 200
SAMPLES = 40 if TINY else 5000 if DEVICE == "cpu" else 100_000
SIDE = 4 if TINY else 32
IMAGES = 2 if TINY else 16 if DEVICE == "cpu" else 512  # that enter a 1x1 convolution, of 64 channels
BASELINE = "eager"
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A layer with a likelihood: how many values an image has, parameters for each, rows, and functions of (h, weight,
    bias, x). A layer of pixels is a convolution to the eager code."""

    size: int
    per_value: int
    samples: int
    plain: Function
    fused: Function
    exact: Function

    def make(self) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        h = torch.randn(self.samples, 1, INNER, device=DEVICE).tanh()
        weight = torch.randn(self.size * self.per_value, INNER, device=DEVICE) * 0.05
        return h, weight, torch.zeros(len(weight), device=DEVICE), torch.ones(1, self.size, device=DEVICE)


@dataclass(frozen=True)
class ConvCase(Case):
    """``size`` channels of an image, ``per_value`` parameters for each, or for all three together."""

    def make(self) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        outputs, inner = self.per_value * (1 if self.per_value == 100 else self.size), 8 if TINY else 64
        h = torch.randn(self.samples, inner, SIDE, SIDE, device=DEVICE).tanh()
        weight = torch.randn(outputs, inner, device=DEVICE) * 0.05
        x = torch.randint(0, 256, (self.samples, self.size, SIDE, SIDE), device=DEVICE).float()
        return h, weight, torch.zeros(outputs, device=DEVICE), x


def bernoulli(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    out = F.linear(h, weight, bias)
    return -F.binary_cross_entropy_with_logits(out, x.expand_as(out), reduction="none").sum(-1)


def gaussian(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    loc, log_scale = F.linear(h, weight, bias).chunk(2, -1)
    return torch.distributions.Normal(loc, log_scale.exp(), validate_args=False).log_prob(x).sum(-1)


def categorical(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    logits = F.linear(h, weight, bias).unflatten(-1, (x.shape[-1], 256)).log_softmax(-1)
    return logits.gather(-1, x.long().expand(logits.shape[:-1])[..., None]).sum((-1, -2))


def linear(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return F.linear(h, weight, bias)


def conv(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(h, weight[..., None, None], bias)


def conv_categorical(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    logits = conv(h, weight, bias, x).unflatten(1, (x.shape[1], 256))
    return -F.cross_entropy(logits.movedim(2, 1), x.long(), reduction="none").flatten(1).sum(1)


def conv_mixture(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return pixelcnn_pp(x, conv(h, weight, bias, x))


def of_pixels(function: Function) -> Function:
    """``function`` of rows that are pixels."""

    def call(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        rows, data = (values.flatten(-2).transpose(-1, -2) for values in (h, x))
        return function(rows, weight, bias, data).sum(-1)

    return call


def of_head(family: Likelihood) -> Function:
    """What the head of a 1x1 convolution computes."""

    def call(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        with checked_data():  # the eager code checks nothing
            return likelihood_of_conv1x1(family, h, weight, bias, x.shape[1]).log_prob(x)

    return call


CASES: dict[str, Case] = {
    "bernoulli": Case(
        784, 1, SAMPLES, bernoulli,
        ops.linear_bernoulli_log_prob,
        lambda *t: reference.linear_bernoulli_log_prob(*t, 1),
    ),
    "gaussian": Case(
        784, 2, SAMPLES, gaussian,
        ops.linear_gaussian_log_prob,
        lambda *t: reference.linear_gaussian_log_prob(*t, None, 1, -2),
    ),
    "categorical-256": Case(
        4 if TINY else 48, 256, SAMPLES // 10, categorical,
        ops.linear_categorical_log_prob,
        lambda *t: reference.linear_categorical_log_prob(*t, 1, -1),
    ),
    f"categorical-256 of a 1x1 convolution, {IMAGES // 4 or 1} x 3 x {SIDE} x {SIDE}": ConvCase(
        3, 256, IMAGES // 4 or 1, conv_categorical,
        of_head(CategoricalLikelihood(256)),
        of_pixels(lambda *t: reference.linear_categorical_log_prob(*t, 1, -1)),
    ),
    f"10 logistics of a 1x1 convolution, {IMAGES} x 3 x {SIDE} x {SIDE}": ConvCase(
        3, 100, IMAGES, conv_mixture,
        of_head(LogisticMixtureLikelihood(10, 256)),
        of_pixels(lambda *t: reference.linear_logistic_mixture_log_prob(*t, 256, 1)),
    ),
}  # fmt: skip
for family in ("bernoulli", "gaussian", "categorical-256"):  # more than a gradient should keep
    many = CASES[family].samples * 8
    CASES[f"{family}, {many} rows"] = replace(CASES[family], samples=many)


@cache
def implementations(case: str) -> dict[str, Function]:
    found = {BASELINE: CASES[case].plain, "fastvae": CASES[case].fused}
    if COMPILE:
        found["compiled"] = torch.compile(CASES[case].plain, dynamic=False)  # as fast as it can be at each size
    product = conv if isinstance(CASES[case], ConvCase) else linear
    return found | {"product alone": product}


def with_gradients(function: Function, tensors: tuple[Tensor, ...]) -> Callable[[], Any]:
    *inputs, x = tensors
    inputs = [value.clone().requires_grad_() for value in inputs]
    return lambda: torch.autograd.grad(function(*inputs, x).sum(), inputs)


@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, marks=pytest.mark.benchmark(group=f"last layer with likelihood, {case}"))
        for case in CASES
        for name in implementations(case)
    ],
)
def test_linear_likelihood(benchmark: Any, name: str, case: str, direction: str) -> None:
    tensors, functions = CASES[case].make(), implementations(case)
    h, weight, bias, x = tensors
    if name != "product alone":
        few = (h[:20], weight, bias, x if len(x) == 1 else x[:20])
        exact = CASES[case].exact(*(value.double() for value in few))
        torch.testing.assert_close(functions[name](*few).double(), exact, rtol=1e-4, atol=1e-2)
    if direction == "forward":
        ours, theirs = (torch.no_grad()(lambda f=functions[n]: f(*tensors)) for n in (name, BASELINE))
    else:
        ours, theirs = (with_gradients(functions[n], tensors) for n in (name, BASELINE))
    pairs = interleaved(ours, theirs, rounds=3 if case.endswith("rows") else ROUNDS, min_seconds=MIN_SECONDS)
    benchmark.pedantic(synchronized(ours), rounds=3)
    products = 1 if direction == "forward" else 3
    operations = 2 * products * h.numel() * weight.shape[0]
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
