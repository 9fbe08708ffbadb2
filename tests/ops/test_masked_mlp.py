"""One-pass sampling of masked MLPs equals as many full passes as there are steps, and so do its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae import reference
from fastvae.ops import (
    NotAutoregressiveError,
    masked_mlp_run,
    normal,
    plan_masked_mlp,
    sample_masked_mlp,
    solve_masked_mlp,
    uniform,
)

PROGRAMS = {
    "linear": "linear 0 0 0",
    "two layers": "linear 0 0 0; elu 1; linear 2 1 1; tanh 3; linear 4 2 2",
    "residual": "linear 0 0 0; linear 1 1 1; silu 2; linear 3 2 -1; add 1 4; leaky_relu:0.3 5; linear 6 3 2",
    "gated": "linear 0 0 0; linear 0 1 1; sigmoid 2; multiply 1 3; scale 4 3; linear 5 2 2",
    "scaled input": "scale 0 1; linear 1 0 0; tanh 2; linear 3 1 2",
    "square and shift": "linear 0 0 0; multiply 1 1; shift 2 1; gelu 3; gelu_tanh 4; linear 5 1 -1",
    "last is no product": "linear 0 0 0; softplus 1; linear 2 1 1; linear 0 2 2; add 3 4; tanh 5",
    "last shifts": "linear 0 0 0; relu 1; linear 2 1 1; shift 3 2; scale 4 3",
}


def bounded(noise: Tensor, params: Tensor) -> Tensor:
    return params[..., 0].tanh() + noise * params[..., 1].sigmoid()


def random_network(program: str, features: int, width: int, num_params: int, layout: Any = "by_dimension") -> Any:
    """A plan whose masks are those of a random acyclic dependency, with weights and terms in float64."""
    position = torch.randperm(features)  # of every dimension in some order
    owner = torch.arange(features).repeat_interleave(num_params)
    if layout == "by_parameter":
        owner = torch.arange(features).repeat(num_params)
    nodes = reference.parse_program(program)
    into_last = {node.args[0] for node in nodes[-1:]} | {len(nodes)}
    while True:  # a node that feeds the last one without a product has its units
        more = {
            source
            for number, node in enumerate(nodes, start=1)
            if number in into_last and node.name != "linear"
            for source in (node.args if node.name in ("add", "multiply") else node.args[:1])
        }
        if more <= into_last:
            break
        into_last |= more
    if nodes[-1].name == "linear":
        into_last = {len(nodes)}
    units = [position.clone()]  # a unit may see what comes before this position
    masks: dict[int, Tensor] = {}
    sizes: dict[int, int] = {}
    for number, node in enumerate(nodes, start=1):
        is_output = number in into_last
        if node.name == "linear":
            reach = position[owner] - 1 if is_output else torch.randint(-1, features, (width,))
            seen = units[node.args[0]]
            masks[node.args[1]] = (seen <= reach[:, None]) & (torch.rand(len(reach), len(seen)) < 0.7)
        else:
            reach = units[node.args[0]]
            if node.name in ("add", "multiply"):
                reach = torch.maximum(reach, units[node.args[1]])
        units.append(reach)
        term = node.args[-1] if node.name in ("linear", "shift", "scale") else -1
        if term >= 0:
            sizes[term] = len(reach)
    plan = plan_masked_mlp(program, [masks[k] for k in sorted(masks)], features, num_params, layout=layout)
    shapes = [*plan.weight_shapes, *((sizes[k],) for k in sorted(sizes))]
    tensors = [(torch.randn(shape, dtype=torch.float64) / 3).requires_grad_() for shape in shapes]
    return plan, tensors[: len(masks)], tensors[len(masks) :]


def jacobian_support(plan: Any, weights: list[Tensor], terms: list[Tensor]) -> Tensor:
    """(D, D): whether the parameters of a dimension move with each dimension."""

    def params(x: Tensor) -> Tensor:  # (D,) in the order of the plan
        tensors = (plan.sorted_weights(weights), plan.sorted_terms(terms), plan.indices)
        return reference.masked_mlp_params(x[:, None], *tensors, plan.program)[plan.indices[0], 0].t()

    x = torch.randn(plan.num_features, dtype=torch.float64)
    return torch.autograd.functional.jacobian(params, x).ne(0).any(1)


@pytest.mark.parametrize("layout", ["by_dimension", "by_parameter"])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=list(PROGRAMS))
def test_values_and_gradients_equal_full_passes(program: str, layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_mlp_run, "BLOCK", 4)
    for features, width, batch in ((1, 1, 3), (3, 1, 1), (9, 14, 17), (10, 40, 3)):
        plan, weights, terms = random_network(program, features, width, 2, layout)
        support = jacobian_support(plan, weights, terms)
        assert not support.triu().any()
        noise = torch.randn(batch, features, dtype=torch.float64, requires_grad=True)
        terms[0] = torch.randn(batch, len(terms[0]), dtype=torch.float64, requires_grad=True)  # a condition
        inputs = [noise, *weights, *terms]
        ours = solve_masked_mlp(noise, plan, weights, terms, bounded)
        with fastvae.backend("reference"):
            want = solve_masked_mlp(noise, plan, weights, terms, bounded)
        torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-12)
        grads = [torch.randn_like(t) for t in want]
        found, expected = (torch.autograd.grad(out, inputs, grads, materialize_grads=True) for out in (ours, want))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * (1 + b.abs().max().item()))


def test_steps_are_the_longest_chain() -> None:
    chain = torch.ones(6, 6, dtype=torch.bool).tril(-1)
    assert plan_masked_mlp("linear 0 0 0", [chain], 6, 1).num_steps == 6
    halves = torch.zeros(6, 6, dtype=torch.bool)
    halves[3:, :3] = True  # a coupling layer
    plan = plan_masked_mlp("linear 0 0 0", [halves], 6, 1)
    assert plan.num_steps == 2
    assert plan.order.tolist() == [0, 1, 2, 3, 4, 5]
    assert plan_masked_mlp("linear 0 0 0", [torch.zeros(6, 6, dtype=torch.bool)], 6, 1).num_steps == 1


def test_masked_weights_and_unused_units_have_no_gradient() -> None:
    mask = torch.tensor([[True, False], [True, True]])  # the second unit sees the last dimension: nobody may see it
    out = torch.tensor([[False, False], [True, False]])
    plan = plan_masked_mlp("linear 0 0 0; tanh 1; linear 2 1 1", [mask, out], 2, 1)
    weights = [torch.randn(2, 2, requires_grad=True) for _ in range(2)]
    terms = [torch.randn(2, requires_grad=True) for _ in range(2)]
    x, _ = solve_masked_mlp(torch.randn(4, 2), plan, weights, terms, lambda z, params: z + params[..., 0])
    grads = torch.autograd.grad(x.square().sum(), [*weights, *terms])
    assert torch.equal(grads[0] != 0, torch.tensor([[True, False], [False, False]]))
    assert torch.equal(grads[1] != 0, out)
    assert torch.equal(grads[2] != 0, torch.tensor([True, False]))


@pytest.mark.parametrize("draw", ["affine", "affine_inverse", bounded])
def test_gradients_match_finite_differences(draw: Any) -> None:
    plan, weights, terms = random_network(PROGRAMS["residual"], 4, 5, 2)
    noise = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    count = len(weights)

    def solve(noise: Tensor, *tensors: Tensor) -> Any:
        return solve_masked_mlp(noise, plan, tensors[:count], tensors[count:], draw)

    torch.autograd.gradcheck(solve, (noise, *weights, *terms))


@pytest.mark.parametrize(("draw", "num_params"), [("bernoulli", 1), ("categorical", 3)])
def test_discrete_values_are_those_of_full_passes(draw: str, num_params: int) -> None:
    plan, weights, terms = random_network(PROGRAMS["two layers"], 40, 23, num_params)
    noise = torch.rand(50, 40, dtype=torch.float64)
    x, params = solve_masked_mlp(noise, plan, weights, terms, draw)
    with fastvae.backend("reference"):
        want, want_params = solve_masked_mlp(noise, plan, weights, terms, draw)
    assert torch.equal(x, want)
    assert x.unique().tolist() == list(range(max(2, num_params)))
    torch.testing.assert_close(params, want_params, rtol=1e-12, atol=1e-12)
    found, expected = (torch.autograd.grad(p.square().sum(), weights) for p in (params, want_params))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("draw", "num_params"), [("affine", 2), ("bernoulli", 1)])
def test_addressed_samples_are_solutions_of_the_librarys_numbers(draw: str, num_params: int) -> None:
    plan, weights, terms = random_network(PROGRAMS["two layers"], 11, 9, num_params)
    terms[1] = torch.randn(6, 9, dtype=torch.float64)
    ids = torch.arange(40, 46)
    numbers = (normal if draw == "affine" else uniform)(
        3, ids, torch.zeros(1, dtype=torch.long), 11, dtype=torch.float64
    )
    x = sample_masked_mlp(6, plan, weights, terms, draw, seed=3, first_id=40)
    assert torch.equal(x, solve_masked_mlp(numbers[:, 0], plan, weights, terms, draw)[0])
    assert not x.requires_grad
    part = sample_masked_mlp(2, plan, weights, [terms[0], terms[1][4:], terms[2]], draw, seed=3, first_id=44)
    torch.testing.assert_close(part, x[4:], rtol=1e-12, atol=1e-12)


def test_rows_share_a_condition_that_broadcasts() -> None:
    plan, weights, terms = random_network(PROGRAMS["two layers"], 6, 8, 2)
    terms[1] = torch.randn(3, 8, dtype=torch.float64)
    noise = torch.randn(4, 3, 6, dtype=torch.float64)
    x, params = solve_masked_mlp(noise, plan, weights, terms)
    assert params.shape == (4, 3, 6, 2)
    for row in range(3):
        alone, _ = solve_masked_mlp(noise[:, row], plan, weights, [terms[0], terms[1][row], terms[2]])
        torch.testing.assert_close(x[:, row], alone, rtol=1e-12, atol=1e-12)
    empty, _ = solve_masked_mlp(noise[:0], plan, weights, terms)
    assert empty.shape == (0, 3, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_and_autocast_are_solved_in_float32(dtype: torch.dtype) -> None:
    plan, weights, terms = random_network(PROGRAMS["two layers"], 12, 20, 2)
    narrow = [[(0.3 * t.detach()).to(dtype) for t in tensors] for tensors in (weights, terms)]
    noise = torch.randn(3, 12).to(dtype)
    exact, _ = solve_masked_mlp(noise.double(), plan, *[[t.double() for t in tensors] for tensors in narrow])
    x, _ = solve_masked_mlp(noise, plan, *narrow)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), exact, rtol=1e-5, atol=1e-5)
    for name in ("torch", "reference"):
        with fastvae.backend(name), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(solve_masked_mlp(noise, plan, *narrow)[0], x)


def test_is_a_well_formed_operator() -> None:
    plan, weights, terms = random_network(PROGRAMS["residual"], 5, 6, 2)
    noise = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    tensors = [plan.sorted_weights(weights), plan.sorted_terms(terms)]
    tensors = [[t.detach().requires_grad_() for t in group] for group in tensors]
    arguments = (noise, *tensors, list(plan.indices), plan.program, list(plan.offsets), "affine")
    torch.library.opcheck(torch.ops.fastvae.solve_masked_mlp, arguments)


def test_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    plan, weights, terms = random_network(PROGRAMS["two layers"], 5, 6, 2)
    noise = torch.randn(2, 5, dtype=torch.float64)
    compiled = torch.compile(lambda z: solve_masked_mlp(z, plan, weights, terms), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(noise), solve_masked_mlp(noise, plan, weights, terms))


def test_forward_mode_and_vmap_are_right_not_zero() -> None:
    plan, weights, terms = random_network(PROGRAMS["two layers"], 5, 6, 2)
    noise, tangent = torch.randn(2, 2, 5, dtype=torch.float64)

    def solve(z: Tensor) -> Tensor:
        return solve_masked_mlp(z, plan, weights, terms)[0]

    _, moved = torch.func.jvp(solve, (noise,), (tangent,))
    step = 1e-6 * tangent
    torch.testing.assert_close(moved, (solve(noise + step) - solve(noise - step)) / 2e-6, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.vmap(solve)(noise), solve(noise))


def test_inputs_stay_as_they_are() -> None:
    plan, weights, terms = random_network(PROGRAMS["two layers"], 5, 6, 2)
    noise = torch.randn(2, 5, dtype=torch.float64)
    before = [t.clone() for t in (noise, *weights, *terms)]
    solve_masked_mlp(noise, plan, weights, terms)[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (noise, *weights, *terms), strict=True))


STRICT = torch.ones(3, 3, dtype=torch.bool).tril(-1)
BAD_PLANS: list[tuple[str, list[Tensor], int, str]] = [
    ("linear 0 0 0", [torch.ones(3, 3, dtype=torch.bool)], 1, "dimension 0 depend on the dimension itself"),
    ("linear 0 0 0", [~torch.eye(3, dtype=torch.bool)], 1, "depend on each other in a circle"),
    ("linear 0 0 0", [STRICT.repeat(2, 1)], 2, "in the layout 'by_parameter'"),
    ("linear 0 0 0", [STRICT], 2, "6 numbers, got 3"),
    ("linear 0 0 0; linear 1 1 1", [STRICT, torch.ones(3, 4, dtype=torch.bool)], 1, "must have 3 columns, got 4"),
    ("tanh 0", [], 1, "dimension 0 depend on the dimension itself"),
]


@pytest.mark.parametrize(("program", "masks", "num_params", "says"), BAD_PLANS)
def test_what_cannot_be_planned_is_refused(program: str, masks: list[Tensor], num_params: int, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        plan_masked_mlp(program, masks, 3, num_params)
    assert isinstance(caught.value, NotAutoregressiveError) == ("not autoregressive" in str(caught.value))


PLAN = plan_masked_mlp("linear 0 0 0", [STRICT], 3, 1)
GOOD: dict[str, Any] = {
    "noise": torch.zeros(2, 3),
    "plan": PLAN,
    "weights": [torch.zeros(3, 3)],
    "terms": [torch.zeros(3)],
    "draw": "bernoulli",
}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"noise": torch.zeros(2, 4)}, ValueError, r"noise must have shape \(..., 3\), got \(2, 4\)"),
    ({"noise": torch.zeros(2, 3, dtype=torch.long)}, TypeError, "noise must be a floating point tensor, got torch.int"),
    ({"plan": STRICT}, TypeError, "plan must come from plan_masked_mlp, got Tensor"),
    ({"weights": []}, ValueError, "takes 1 weights and 1 terms, got 0 and 1"),
    ({"weights": [torch.zeros(3, 2)]}, ValueError, r"weights\[0\] must have the shape of its mask, \(3, 3\)"),
    ({"terms": [torch.zeros(5, 3)]}, ValueError, r"terms\[0\] must have shape \(3,\) or \(2, 3\), got \(5, 3\)"),
    ({"terms": [torch.zeros(3, device="meta")]}, ValueError, "must be on the device of noise, cpu, got meta"),
    ({"draw": "affine"}, ValueError, "draw 'affine' takes 2 parameter"),
    ({"draw": "gumbel"}, ValueError, "draw must be one of .* or a callable"),
]


@pytest.mark.parametrize(("changed", "error", "says"), BAD)
def test_bad_input(changed: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        solve_masked_mlp(**{**GOOD, **changed})


BAD_SAMPLES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_samples": -1}, ValueError, r"num_samples must be an integer in \[0, "),
    ({"seed": 2**64}, ValueError, r"seed must be an integer in \[0, "),
    ({"first_id": 2**32 - 1}, ValueError, "rows must have numbers below"),
    ({"draw": bounded}, TypeError, "give solve_masked_mlp the noise"),
    ({"draw": "affine"}, ValueError, "draw 'affine' takes 2 parameter"),
    ({"weights": []}, ValueError, "takes 1 weights and 1 terms, got 0 and 1"),
    ({"terms": [torch.zeros(5, 3)]}, ValueError, r"terms\[0\] must have shape \(3,\) or \(2, 3\), got \(5, 3\)"),
]


@pytest.mark.parametrize(("changed", "error", "says"), BAD_SAMPLES)
def test_bad_samples(changed: dict[str, Any], error: type[Exception], says: str) -> None:
    good = {key: value for key, value in GOOD.items() if key != "noise"} | {"num_samples": 2}
    with pytest.raises(error, match=says):
        sample_masked_mlp(**{**good, **changed})
