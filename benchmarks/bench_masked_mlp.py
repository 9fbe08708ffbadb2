"""How long does the inverse of a masked autoregressive flow take, next to one full pass for every dimension?

And NADE, forward and backward, next to the loop over its steps that people write. Shapes and options: D = 784 with two
hidden layers of 1000 units and D = 64 with two of 256, 64 rows; NADE with D = 784 and H = 500.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zuko
from torch import Tensor

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


NADE_CASES = [
    pytest.param(
        *shape, which, marks=pytest.mark.benchmark(group=f"NADE {which}, D={shape[0]} H={shape[1]} batch {shape[2]}")
    )
    for shape in ([(10, 8, 3)] if TINY else [(784, 500, 64)])
    for which in ("fwd", "fwd+bwd")
]


@pytest.mark.parametrize(("features", "hidden", "batch", "which"), NADE_CASES)
def test_nade(benchmark: Any, features: int, hidden: int, batch: int, which: str) -> None:
    torch.manual_seed(0)
    nade = NADE(features, hidden, device=DEVICE)
    parameters = list(nade.parameters())
    x = torch.bernoulli(torch.full((batch, features), 0.3, device=DEVICE))
    grad = torch.randn_like(x)

    def step(function: Callable[..., Tensor]) -> Callable[[], Any]:
        def forward() -> Tensor:
            with torch.no_grad():
                return function(x, *parameters)

        return forward if which == "fwd" else lambda: torch.autograd.grad(function(x, *parameters), parameters, grad)

    ours, theirs = (step(function) for function in (ops.nade_logits, reference.nade_logits))
    # right before fast, with rounding that grows with the number of added rows
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-4 * batch)
    pairs = interleaved(ours, theirs, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    benchmark(synchronized(ours))
    benchmark.extra_info.update(pairs, implementation="fastvae", baseline="loop over dimensions", device=DEVICE)
