"""NADE on the CPU: equal to its loop, normalised, differentiable, O(BH) in memory, clear about bad input."""

from typing import Any

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae import reference
from fastvae.nn import NADE
from fastvae.ops import nade_blocks, nade_log_prob, nade_logits, nade_sample

SHAPES = [(1, 1, 1), (3, 5, 1), (17, 30, 7), (2, 9, 40)]


def inputs(batch: int, features: int, hidden: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    x = torch.bernoulli(torch.full((batch, features), 0.4, dtype=torch.float64)).to(dtype)
    shapes = [(features, hidden), (hidden,), (features, hidden), (features,)]
    return x, [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_gradients_and_samples_equal_the_loop(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nade_blocks, "_MOST_ROWS", 8)
    x, parameters = inputs(*shape)
    order = torch.randperm(shape[1])
    exchanged = [p if p.shape == (shape[2],) else p[order] for p in parameters]
    ours = nade_logits(x, *parameters, order)
    want = torch.empty_like(x).index_copy(1, order, reference.nade_logits(x[:, order], *exchanged))
    torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(x)
    found, expected = (torch.autograd.grad(l, parameters, grad, materialize_grads=True) for l in (ours, want))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    noise = torch.rand_like(x)
    drawn = nade_sample(noise, *parameters, order)
    assert torch.equal(drawn[:, order], reference.nade_sample(noise[:, order], *exchanged))
    assert torch.equal(drawn, (noise < nade_logits(drawn, *parameters, order).sigmoid()).double())


@pytest.mark.parametrize("features", [1, 5, 12])
def test_probabilities_of_all_states_sum_to_one(features: int) -> None:
    _, parameters = inputs(1, features, 9)
    states = torch.cartesian_prod(*[torch.arange(2)] * features).view(-1, features)
    total = nade_log_prob(states, *parameters, torch.randperm(features)).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)


def test_error_and_that_of_its_gradient_are_at_most_twice_those_of_the_loop() -> None:
    x, exact = inputs(10, 300, 50)
    want = reference.nade_logits(x, *exact)
    grad = torch.randn_like(want)
    grads = torch.autograd.grad(want, exact, grad)
    narrow = [p.detach().float().requires_grad_() for p in exact]
    errors = []
    for function in (nade_logits, reference.nade_logits):
        logits = function(x.float(), *narrow)
        found = [logits, *torch.autograd.grad(logits, narrow, grad.float())]
        errors.append([(a - b).abs().max() for a, b in zip(found, (want, *grads), strict=True)])
    # the parameters themselves are rounded: both errors contain that
    assert all(ours <= 2 * theirs for ours, theirs in zip(*errors, strict=True))


def test_gradients_match_finite_differences() -> None:
    x, parameters = inputs(3, 4, 3)
    torch.autograd.gradcheck(lambda *p: nade_log_prob(x, *p), parameters)
    relaxed = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: nade_logits(x, *parameters), relaxed)


def test_hidden_units_of_all_dimensions_are_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    scratch = nade_blocks._scratch

    def watched(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        result = scratch(x, weight)
        sizes.append(sum(t.numel() for t in result))
        return result

    monkeypatch.setattr(nade_blocks, "_scratch", watched)
    x, parameters = inputs(64, 200, 64, torch.float32)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = nade_logits(x, *parameters)
    assert 0 < sum(saved.values()) <= x.numel() + sum(p.numel() for p in parameters)
    logits.sum().backward()
    assert max(sizes) <= 2 * nade_blocks._MOST_DIMENSIONS * 64 * 64


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_data_of_any_dtype_and_shape(dtype: torch.dtype) -> None:
    x, parameters = inputs(12, 6, 5, torch.float32)
    want = nade_log_prob(x, *parameters)
    torch.testing.assert_close(nade_log_prob(x.view(3, 4, 6).to(dtype), *parameters), want.view(3, 4))
    assert nade_log_prob(x[:0], *parameters).shape == (0,)


def test_half_parameters_and_autocast_are_computed_in_float32() -> None:
    x, parameters = inputs(4, 6, 5, torch.bfloat16)
    want = reference.nade_logits(x.double(), *[p.double() for p in parameters])
    ours = nade_logits(x, *parameters)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), want, rtol=1e-6, atol=1e-6)
    for name in ("torch", "reference"):
        with fastvae.backend(name), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(nade_logits(x.float(), *[p.float() for p in parameters]), ours)


def test_are_well_formed_operators() -> None:
    x, parameters = inputs(3, 5, 4, torch.float32)
    torch.library.opcheck(torch.ops.fastvae.nade_logits, (x, *parameters))
    torch.library.opcheck(torch.ops.fastvae.nade_sample, (torch.rand_like(x), *[p.detach() for p in parameters]))


def test_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    nade = NADE(6, 5, order=torch.randperm(6))
    x = nade.sample(4)
    compiled = torch.compile(nade.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), nade.log_prob(x))


def test_forward_mode_and_vmap_are_right_not_zero() -> None:
    x, parameters = inputs(3, 5, 4)
    weight, *rest = [p.detach() for p in parameters]
    tangent = torch.randn_like(weight)
    _, moved = torch.func.jvp(lambda w: nade_logits(x, w, *rest), (weight,), (tangent,))
    step = 1e-6 * tangent
    difference = nade_logits(x, weight + step, *rest) - nade_logits(x, weight - step, *rest)
    torch.testing.assert_close(moved, difference / 2e-6, rtol=1e-5, atol=1e-6)
    mapped = torch.vmap(lambda x: nade_logits(x, weight, *rest))(x[:, None])
    torch.testing.assert_close(mapped[:, 0], nade_logits(x, weight, *rest))


def test_module_any_order_state_and_addressed_samples() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    nade = NADE(5, 8, order=order, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(nade, torch.rand(5, dtype=torch.float64))
    seen = jacobian.ne(0)[order][:, order]
    assert torch.equal(seen, torch.ones_like(seen).tril(-1))
    assert list(nade.state_dict()) == ["weight", "hidden_bias", "output_weight", "output_bias"]
    whole = nade.sample(17, seed=5)
    assert torch.equal(torch.cat([nade.sample(3, seed=5), nade.sample(14, seed=5, first_id=3)]), whole)
    assert not torch.equal(nade.sample(17, seed=6), whole)


@pytest.mark.parametrize("features", [1, 2, 7])
def test_probabilities_sum_to_one_in_any_order(features: int) -> None:
    x = torch.cartesian_prod(*[torch.arange(2)] * features).view(-1, features)
    for order in (None, torch.randperm(features)):
        _, parameters = inputs(1, features, 5)
        total = nade_log_prob(x, *parameters, order).exp().sum()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=1e-12)
        # the gradient of a sum that is always one
        for grad in torch.autograd.grad(total, parameters, materialize_grads=True):
            assert grad.abs().max() < 1e-12


def test_samples_have_the_distribution_of_the_model() -> None:
    nade = NADE(3, 4, order=[1, 2, 0])
    with torch.no_grad():
        for parameter in nade.parameters():
            parameter.normal_()
        states = torch.cartesian_prod(*[torch.arange(2.0)] * 3)
        expected = 20000 * nade.log_prob(states).exp()
    counts = (nade.sample(20000) @ torch.tensor([4.0, 2.0, 1.0])).long().bincount(minlength=8)
    assert ((counts - expected).square() / expected).sum() < 24.3  # 99.9 % with 7 degrees of freedom


X, PARAMETERS = inputs(2, 3, 4, torch.float32)
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: nade_logits(X[:, :2], *PARAMETERS), ValueError, r"x must have shape \(..., 3\), got \(2, 2\)"),
    (lambda: nade_sample(X[:, :2], *PARAMETERS), ValueError, r"uniform must have shape"),
    (lambda: nade_logits(X, X[0], *PARAMETERS[1:]), ValueError, r"weight must have shape \(D, H\), got \(3,\)"),
    (
        lambda: nade_logits(X, PARAMETERS[0], X[0], *PARAMETERS[2:]),
        ValueError,
        r"hidden_bias must have shape \(4,\), got \(3,\)",
    ),
    (
        lambda: nade_logits(X, *PARAMETERS[:3], PARAMETERS[3].double()),
        TypeError,
        "output_bias must be floating point and have one dtype, torch.float32, got torch.float64",
    ),
    (lambda: nade_logits(X, *PARAMETERS, torch.ones(3)), TypeError, r"order must be int64 of shape \(3,\)"),
    (lambda: nade_logits(X.to("meta"), *PARAMETERS), ValueError, "x must be on the device of weight, cpu, got meta"),
    (lambda: NADE(0, 3), ValueError, "features must be a positive integer, got 0"),
    (lambda: NADE(3, 3, order=[0, 1, 3]), ValueError, "order must be a permutation of 0..2"),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD)
def test_bad_input(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
