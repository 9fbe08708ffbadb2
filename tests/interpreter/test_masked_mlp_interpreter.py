"""The kernel of masked MLPs, interpreted on the CPU: exactly the values of one full pass for every dimension."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastvae_kernels import masked_mlp as kernels
from torch import Tensor

import fastvae
from fastvae.nn import MADE
from fastvae.ops import masked_mlp_run, plan_masked_mlp
from fastvae.ops.masked_mlp_draws import Named
from fastvae.ops.masked_mlp_run import System


@pytest.fixture(autouse=True)
def _small_blocks_and_fresh_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(masked_mlp_run, "BLOCK", 4)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(before)


def by_passes(made: MADE, noise: Tensor, draw: str, context: Tensor | None) -> Tensor:
    """In float64, a full pass of the network for every dimension."""
    twin = copy.deepcopy(made).double()
    z, x = noise.double(), torch.zeros_like(noise, dtype=torch.float64)
    for _ in range(made.features):
        params = twin(x, None if context is None else context.double())
        if draw == "affine":
            x = params[..., 0] + params[..., 1].exp() * z
        elif draw == "affine_inverse":
            x = (z - params[..., 0]) * (-params[..., 1]).exp()
        elif draw == "bernoulli":
            x = (z < params[..., 0].sigmoid()).double()
        else:
            x = (params.softmax(-1).cumsum(-1)[..., :-1] <= z[..., None]).sum(-1).double()
    return x.detach()


CASES: list[tuple[int, list[int], int, str, dict[str, Any]]] = [
    (1, [3], 3, "affine", {}),
    (5, [], 2, "affine_inverse", {}),
    (7, [10], 17, "affine", {"context_features": 2}),
    (9, [40, 40], 3, "bernoulli", {"activation": "elu"}),
    (6, [9, 9, 9], 5, "affine_inverse", {"residual": True, "activation": "silu"}),
    (5, [8, 8], 33, "categorical", {"residual": True, "context_features": 3, "activation": "tanh"}),
    (7, [190], 3, "affine", {"activation": "gelu"}),  # several tiles of units, windows and products
]


@pytest.mark.parametrize(("features", "hidden", "batch", "draw", "options"), CASES)
def test_values_are_those_of_a_pass_for_every_dimension(
    features: int, hidden: list[int], batch: int, draw: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    num_params = {"bernoulli": 1, "categorical": 4}.get(draw, 2)
    made = MADE(features, hidden, num_params=num_params, order=torch.randperm(features), **options)
    noise = torch.randn(batch, features) if draw.startswith("affine") else torch.rand(batch, features)
    context = torch.randn(batch, made.context_features) if made.context_features else None
    want = by_passes(made, noise, draw, context)
    with fastvae.backend("triton"):
        x, params = made.solve(noise, context, draw)
    if draw.startswith("affine"):
        torch.testing.assert_close(x.double(), want, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(x.double(), want)
    torch.testing.assert_close(params, made(x, context), rtol=1e-5, atol=1e-5)


WIDTH, FEATURES = 11, 6


@pytest.mark.parametrize("rows", [32, 64])
def test_larger_tiles_of_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {n: kernels.config(n, 3) for n in (5000, 9000)}
    assert sorted(c.block_rows for c in found.values()) == [32, 64]
    (c,) = (c for c in found.values() if c.block_rows == rows)
    monkeypatch.setattr(kernels, "config", lambda num_rows, most_units: c)
    made, noise = MADE(6, [33], num_params=2), torch.randn(rows + 3, 6)
    with fastvae.backend("triton"):
        x = made.solve(noise)[0]
    torch.testing.assert_close(x, made.solve(noise)[0], rtol=1e-5, atol=1e-5)


ACTIVATIONS = "elu:0.7 1; gelu 2; gelu_tanh 3; leaky_relu:0.3 4; relu 5; shift 6 2; sigmoid 7; silu 8; softplus:1.5 9"
PROGRAMS = {
    f"linear 0 0 0; {ACTIVATIONS}; tanh 10; linear 11 1 1": (WIDTH, 2 * FEATURES, WIDTH),
    # a gate, a scale, a sum, a last layer that is a sum of two
    "linear 0 0 0; linear 0 1 1; sigmoid 2; multiply 1 3; scale 4 3; add 5 1; linear 6 2 2; linear 0 3 -1; add 7 8": (
        *(WIDTH, WIDTH),
        *(2 * FEATURES, WIDTH),
    ),
}


@pytest.mark.parametrize("program", PROGRAMS, ids=["activations", "gates"])
@pytest.mark.parametrize("batch", [3, 17])
def test_every_operator_gives_the_units_of_the_torch_path(program: str, batch: int) -> None:
    torch.manual_seed(0)
    seen, after = torch.arange(FEATURES), torch.randperm(WIDTH) % FEATURES - 1
    last = (torch.arange(FEATURES) - 1).repeat_interleave(2)
    fewer = after[torch.randperm(WIDTH)]
    first, final = seen <= after[:, None], torch.maximum(after, fewer) <= last[:, None]
    masks = [first, final] if "gelu" in program else [first, seen <= fewer[:, None], final, seen <= last[:, None]]
    plan = plan_masked_mlp(program, masks, FEATURES, 2)
    assert ("select" in plan.program) == ("gelu" not in program)
    weights = [torch.randn(mask.shape) / 6 for mask in masks]
    # every other term has a column for each row of the batch
    terms = [torch.rand(batch, n) if i % 2 else torch.rand(n) for i, n in enumerate(PROGRAMS[program])]
    noise = torch.randn(batch, FEATURES).t().index_select(0, plan.order)
    tensors = (plan.sorted_weights(weights), plan.sorted_terms(terms), list(plan.indices))
    want = System(*tensors, plan.program, plan.offsets, Named("affine")).forward(noise)
    with fastvae.backend("triton"):
        found = torch.ops.fastvae.solve_masked_mlp(noise, *tensors, plan.program, list(plan.offsets), "affine")
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("draw", "num_params"), [("bernoulli", 1), ("affine", 2)])
def test_numbers_made_in_the_kernel_are_those_of_the_library(draw: str, num_params: int) -> None:
    torch.manual_seed(0)
    made = MADE(9, [12], num_params=num_params, order=torch.randperm(9), context_features=2)
    context = torch.randn(19, 2)
    want = made.sample(19, seed=2**63 + 5, context=context, draw=draw, first_id=2**32 - 30)
    with fastvae.backend("triton"):
        found = made.sample(19, seed=2**63 + 5, context=context, draw=draw, first_id=2**32 - 30)
        if draw == "bernoulli":
            assert torch.equal(found, want)
            assert made.sample(0, context=context[:0], draw=draw).shape == (0, 9)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_what_the_kernel_cannot_do_is_said() -> None:
    made = MADE(3, [4], num_params=2, dtype=torch.float64)
    noise = torch.zeros(2, 3)
    with fastvae.backend("triton"):
        with pytest.raises(RuntimeError, match="computes in float32, got float64"):
            made.solve(noise.double())
        with pytest.raises(TypeError, match="give solve_masked_mlp the noise"):
            made.sample(2, draw=abs)  # type: ignore[arg-type]
