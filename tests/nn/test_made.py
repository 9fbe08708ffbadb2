"""MADE and MaskedLinear: the past, all of it and nothing else; the condition; values that fit their own parameters."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastvae
from fastvae.nn import MADE, MaskedLinear

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def support(made: MADE, context: Tensor | None = None) -> Tensor:
    """(D, D): whether the parameters of each dimension move with each dimension, both in the order of generation."""
    x = torch.randn(made.features, **DOUBLE)
    jacobian = torch.autograd.functional.jacobian(lambda x: made(x, context), x)
    return jacobian.ne(0).any(1)[made.order][:, made.order]


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("features", "hidden"), [(1, [3]), (5, []), (5, [1]), (6, [20, 20]), (7, [30, 30, 30])])
def test_a_dimension_sees_earlier_ones_only(features: int, hidden: list[int], residual: bool, seed: Any) -> None:
    order = torch.randperm(features)
    made = MADE(features, hidden, num_params=2, order=order, activation="tanh", residual=residual, seed=seed, **DOUBLE)
    seen = support(made)
    assert not seen.triu().any()
    if hidden != [1] and seed is None:
        assert torch.equal(seen, torch.ones_like(seen).tril(-1))
    noise = torch.randn(3, features, **DOUBLE)
    x, params = made.solve(noise)
    torch.testing.assert_close(made(x), params, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(params[..., 0] + params[..., 1].exp() * noise, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual", [False, True])
def test_the_condition_reaches_every_dimension_and_broadcasts(residual: bool) -> None:
    made = MADE(4, [12, 12], num_params=2, context_features=3, residual=residual, **DOUBLE)
    context = torch.randn(5, 3, requires_grad=True, **DOUBLE)
    for dimension in range(4):
        (grad,) = torch.autograd.grad(made(torch.zeros(5, 4, **DOUBLE), context)[:, dimension].sum(), context)
        assert (grad != 0).all()
    assert not support(made, context[0].detach()).triu().any()
    noise = torch.randn(2, 5, 4, **DOUBLE)
    x, params = made.solve(noise, context)
    torch.testing.assert_close(made(x, context), params, rtol=1e-12, atol=1e-12)
    # the first dimension depends on it by way of hidden units, not only linearly
    first = [made(torch.zeros(4, **DOUBLE), scale * context[0])[0, 0].item() for scale in (-1.0, 0.0, 1.0)]
    assert abs(first[0] + first[2] - 2 * first[1]) > 1e-6


def test_gradients_of_draws_are_those_of_full_passes() -> None:
    made = MADE(6, [9, 9], num_params=2, context_features=2, residual=True, activation="silu", **DOUBLE)
    noise, context = torch.randn(4, 6, **DOUBLE), torch.randn(4, 2, **DOUBLE)
    inputs = [noise.requires_grad_(), context.requires_grad_(), *made.parameters()]

    def by_passes() -> Tensor:
        x = torch.zeros_like(noise)
        for _ in range(6):
            shift, log_scale = made(x, context).unbind(-1)
            x = shift + log_scale.exp() * noise
        return x

    weight = torch.randn(4, 6, **DOUBLE)
    found, want = (
        torch.autograd.grad((weight * x).sum(), inputs) for x in (made.solve(noise, context)[0], by_passes())
    )
    for ours, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("draw", "num_params"), [("bernoulli", 1), ("categorical", 4), ("affine", 2)])
def test_a_row_does_not_depend_on_its_batch(draw: str, num_params: int) -> None:
    made = MADE(9, [16], num_params=num_params, order=torch.randperm(9), context_features=2, **DOUBLE)
    context = torch.randn(17, 2, **DOUBLE)
    whole = made.sample(17, seed=3, context=context, draw=draw)
    for first, count in ((0, 1), (1, 3), (4, 13)):
        rows = slice(first, first + count)
        part = made.sample(count, seed=3, context=context[rows], draw=draw, first_id=first)
        torch.testing.assert_close(part, whole[rows], rtol=1e-12, atol=1e-12)
    assert not torch.equal(made.sample(17, seed=4, context=context, draw=draw), whole)
    assert not whole.requires_grad


def test_samples_have_the_distribution_of_the_network() -> None:
    made = MADE(3, [8], order=[2, 0, 1])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4.0)
    x = torch.cartesian_prod(*[torch.arange(2.0)] * 3)
    log_p = fastvae.ops.bernoulli_log_prob(x, made(x)[..., 0], event_dims=1)
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0))
    drawn = made.sample(20000, seed=0, draw="bernoulli")
    counts = (drawn @ torch.tensor([4.0, 2.0, 1.0])).long().bincount(minlength=8)
    expected = 20000 * log_p.exp()
    chi_square = ((counts - expected).square() / expected).sum()
    assert chi_square < 24.3  # 99.9 % of the chi-square distribution with 7 degrees of freedom


def test_state_is_that_of_linear_layers_and_copies_work() -> None:
    made = MADE(5, [7], num_params=2, context_features=2)
    names = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert sorted(made.state_dict()) == sorted([*names, "conditions.0.weight", "conditions.1.weight"])
    noise, context = torch.randn(2, 5), torch.randn(2, 2)
    want = made.solve(noise, context)[0]
    assert torch.equal(copy.deepcopy(made).solve(noise, context)[0], want)
    torch.testing.assert_close(copy.deepcopy(made).double().solve(noise.double(), context.double())[0].float(), want)
    assert made.to("meta").plan.order.device.type == "meta"


def test_compiles_and_trains() -> None:
    torch.compiler.reset()
    made = MADE(5, [8, 8], num_params=2, residual=True)
    x, noise = torch.randn(2, 3, 5)
    both = torch.compile(lambda x, noise: (made(x), made.solve(noise)[0]), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(both(x, noise), (made(x), made.solve(noise)[0]))
    made.solve(noise)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_a_masked_linear_layer_is_a_linear_layer_of_its_masked_weight() -> None:
    mask = torch.rand(4, 6) < 0.5
    layer = MaskedLinear(6, 4, mask=mask)
    dense = nn.Linear(6, 4)
    layer.load_state_dict(dense.state_dict())
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, dense.weight * mask, dense.bias))
    layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad != 0, mask)
    assert torch.equal(layer.weight, dense.weight)  # stored whole
    mask.zero_()  # a copy was kept
    assert layer.mask.any()


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: MADE(0, [3]), ValueError, "features must be a positive integer, got 0"),
    (lambda: MADE(3, [3, 2.5]), ValueError, "hidden_features must be a positive integer, got 2.5"),
    (lambda: MADE(3, [3], context_features=-1), ValueError, "context_features must be zero or a positive integer"),
    (lambda: MADE(3, [3], order=[0, 1, 1]), ValueError, r"order must be a permutation of 0..2, got \[0, 1, 1\]"),
    (lambda: MADE(3, [3], activation="sine"), ValueError, "activation must be one of .* got 'sine'"),
    (lambda: MADE(3, [3, 4], residual=True), ValueError, r"hidden layers of one size, got \(3, 4\)"),
    (lambda: MADE(3, [3])(torch.zeros(2, 4)), ValueError, r"x must have shape \(..., 3\), got \(2, 4\)"),
    (lambda: MADE(3, [3])(torch.zeros(2, 3), torch.zeros(2, 1)), ValueError, "context must be None, got shape"),
    (lambda: MADE(3, [3], context_features=2)(torch.zeros(2, 3)), ValueError, "context is missing"),
    (lambda: MADE(3, [3]).solve(torch.zeros(2, 3)), ValueError, "draw 'affine' takes 2 parameter"),
    (lambda: MADE(3, [3]).sample(2, draw=abs), TypeError, "give solve_masked_mlp the noise that a callable takes"),  # type: ignore[arg-type]
    (lambda: MaskedLinear(2, 3, mask=torch.ones(2, 3).bool()), ValueError, r"shape \(3, 2\), got \(2, 3\)"),
    (lambda: MaskedLinear(2, 3, mask=torch.ones(3, 2)), TypeError, "mask must be a boolean tensor, got torch.float32"),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD)
def test_what_does_not_fit_is_refused_by_name(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
