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
from fastvae.sampling import compile_inverse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = os.environ.get("FASTVAE_BENCH") == "tiny"
SHAPES = [(12, 20, 3)] if TINY else [(784, 1000, 64), (64, 256, 64)]
ROUNDS = 3 if TINY else 7
PASSES = 16  # of the baseline in one turn: every pass costs the same


def flow(features: int, hidden: int) -> Any:
    torch.manual_seed(0)
    return zuko.flows.MaskedAutoregressiveTransform(features, hidden_features=(hidden, hidden)).to(DEVICE)


def inverse_of(step: Any) -> Callable[[Tensor], Tensor]:
    inverse = compile_inverse(
        step.hyper, len(step.order), draw=lambda y, params: step.univariate(*params.unbind(-1)).inv(y)
    )
    return lambda y: inverse(y)[0]


def check(step: Any, inverse: Callable[[Tensor], Tensor], y: Tensor) -> None:
    """Right before fast: the forward direction, a single parallel pass, gives back the noise."""
    with torch.no_grad():
        again = step()(inverse(y))
        torch.testing.assert_close(again, y, rtol=1e-3, atol=1e-3 * float(y.abs().max()))


def by_passes(step: Any, passes: int, features: int) -> Callable[[Tensor], Tensor]:
    """The flow library's own inverse, with fewer passes than it takes."""
    transform = step()
    transform.passes = passes
    assert passes <= features
    return transform._inverse


@pytest.mark.benchmark(group="inverse of a MAF")
@pytest.mark.parametrize(("features", "hidden", "batch"), SHAPES)
def test_inverse(benchmark: Any, features: int, hidden: int, batch: int) -> None:
    benchmark.group = f"inverse of a MAF, D={features} 2x{hidden}, batch {batch}"
    step = flow(features, hidden)
    y = torch.randn(batch, features, device=DEVICE)
    inverse = inverse_of(step)
    check(step, inverse, y)
    passes = min(PASSES, features)
    baseline = by_passes(step, passes, features)
    with torch.no_grad():
        pairs = interleaved(lambda: inverse(y), lambda: baseline(y), rounds=ROUNDS, min_seconds=0.05)
        benchmark(synchronized(lambda: inverse(y)))
    for key in ("ratio", "ratio_q1", "ratio_q3", "baseline_s"):
        pairs[key] *= features / passes
    benchmark.extra_info.update(
        pairs,
        implementation="fastvae",
        baseline="zuko, one pass per dimension",
        baseline_note=f"{passes} of {features} passes a turn, scaled by {features / passes:g}",
        device=DEVICE,
        serial_steps=features,
    )
