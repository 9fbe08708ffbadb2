"""One-pass inverses of more masked MLPs, in natural and random orders, equal one full pass per dimension."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import zuko
from masked_mlps_in_more_styles import (
    Flipped,
    GatedBySplits,
    JoinedMADE,
    OrderAgnosticMADE,
    Permuted,
    RandomResidual,
    TwoHeads,
    TwoHeadsInARow,
)
from torch import Tensor, nn

from fastvae.sampling import UnsupportedModelError, compile_inverse

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
D = 7

# net, layout of its parameters, the dimensions in the order in which they are made
STYLES: dict[str, tuple[Callable[[], nn.Module], str, list[int] | None]] = {
    "natural order": (lambda: OrderAgnosticMADE(D, [16, 16], 2 * D, natural_ordering=True), "by_parameter", None),
    "joined": (lambda: JoinedMADE(D, 20), "by_parameter", list(range(D))),
    "two heads": (lambda: TwoHeads(D, 12, 2), "by_dimension", list(range(D))),
    "two heads in a row": (lambda: TwoHeadsInARow(D, 12, 2), "by_parameter", list(range(D))),
    "flipped": (lambda: Flipped(D, 12, 2), "by_parameter", list(range(D))[::-1]),
    "permuted": (lambda: Permuted(D, 12, torch.tensor([3, 0, 6, 1, 5, 2, 4])), "by_parameter", [3, 0, 6, 1, 5, 2, 4]),
    "gated by splits": (lambda: GatedBySplits(D, 10), "by_parameter", list(range(D))),
    **{
        f"random residual {seed}": (
            lambda seed=seed: RandomResidual(D, 30, 2, torch.tensor([2, 4, 6, 0, 1, 3, 5]), seed),
            "by_dimension",
            None,
        )
        for seed in range(2)
    },
}


def params_of(net: Callable[..., Tensor], layout: str, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
    flat = net(x, *context).reshape(len(x), -1)
    return flat.unflatten(1, (D, 2)).unbind(-1) if layout == "by_dimension" else flat.chunk(2, 1)  # type: ignore[return-value]


def by_passes(net: Callable[..., Tensor], layout: str, noise: Tensor, *context: Tensor) -> Tensor:
    x = torch.zeros_like(noise)
    for _ in range(D):
        shift, log_scale = params_of(net, layout, x, *context)
        x = shift + log_scale.exp() * noise
    return x


@pytest.mark.parametrize("style", STYLES)
def test_equals_a_pass_for_every_dimension(style: str) -> None:
    make, layout, order = STYLES[style]
    net = make().double()
    inverse = compile_inverse(net, D, layout=layout)  # type: ignore[arg-type]
    noise = torch.randn(4, D, **DOUBLE, requires_grad=True)
    x, want = inverse(noise)[0], by_passes(net, layout, noise)
    torch.testing.assert_close(x, want, **EXACT)
    inputs = [noise, *net.parameters()]
    found, expected = (torch.autograd.grad(t.sin().sum(), inputs) for t in (x, want))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    if order is not None:
        assert inverse.plan.num_steps == D
        assert inverse.plan.order.tolist() == order


def test_the_next_masks_and_orders_are_planned_when_they_are_set() -> None:
    net = OrderAgnosticMADE(D, [25], 2 * D, num_masks=4).double()
    inverse = compile_inverse(net, D, layout="by_parameter")
    noise = torch.randn(3, D, **DOUBLE)
    orders = []
    for _ in range(4):
        torch.testing.assert_close(inverse(noise)[0], by_passes(net, "by_parameter", noise), **EXACT)
        orders.append(inverse.plan.order.tolist())
        net.update_masks()
    assert len({tuple(order) for order in orders}) == 4


def test_a_new_permutation_is_planned_when_it_is_set() -> None:
    net = Permuted(D, 12, torch.randperm(D)).double()
    inverse = compile_inverse(net, D, layout="by_parameter")
    permutation = torch.randperm(D)
    net.permutation.copy_(permutation)
    net.inverse_permutation.copy_(permutation.argsort())
    noise = torch.randn(3, D, **DOUBLE)
    torch.testing.assert_close(inverse(noise)[0], by_passes(net, "by_parameter", noise), **EXACT)
    assert inverse.plan.order.tolist() == permutation.tolist()


def test_a_context_that_joins_in_place() -> None:
    net = JoinedMADE(D, 20, num_cond_inputs=3).double()
    inverse = compile_inverse(net, D, context_features=3, layout="by_parameter")
    noise, context = torch.randn(4, D, **DOUBLE), torch.randn(4, 3, **DOUBLE, requires_grad=True)
    x, want = inverse(noise, context)[0], by_passes(net, "by_parameter", noise, context)
    torch.testing.assert_close(x, want, **EXACT)
    found, expected = (torch.autograd.grad(t.sin().sum(), [context, *net.parameters()]) for t in (x, want))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("context", [0, 3])
def test_the_density_of_any_point_under_an_inverse_autoregressive_flow(context: int) -> None:
    """z = m(e) + exp(l(e)) e is parallel; e of a given z takes one pass, and so does log q(z)."""
    net = JoinedMADE(D, 20, context).double()
    contexts = [torch.randn(4, context, **DOUBLE, requires_grad=True)] if context else []
    inverse = compile_inverse(net, D, context_features=context, draw="affine_inverse", layout="by_parameter")
    noise = torch.randn(4, D, **DOUBLE)

    def to_data(noise: Tensor) -> Tensor:
        shift, log_scale = params_of(net, "by_parameter", noise, *contexts)
        return shift + log_scale.exp() * noise

    z = to_data(noise).detach().requires_grad_()
    found, params = inverse(z, *contexts)
    torch.testing.assert_close(found, noise, **EXACT)
    normal = torch.distributions.Normal(torch.zeros((), **DOUBLE), 1.0)
    log_q = normal.log_prob(found).sum(1) - params[..., 1].sum(1)

    slow = torch.zeros_like(z)
    for _ in range(D):
        shift, log_scale = params_of(net, "by_parameter", slow, *contexts)
        slow = (z - shift) * (-log_scale).exp()
    shift, log_scale = params_of(net, "by_parameter", slow, *contexts)
    want = normal.log_prob(slow).sum(1) - log_scale.sum(1)
    torch.testing.assert_close(log_q, want, **EXACT)
    inputs = [z, *contexts, *net.parameters()]
    grads = [torch.autograd.grad(value.sum(), inputs) for value in (log_q, want)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-10)


def test_both_directions_of_a_flow_of_zuko_with_a_context() -> None:
    flow = zuko.flows.MAF(D, 2, transforms=3, randperm=True, hidden_features=(16, 16)).double()
    context, y = torch.randn(5, 2, **DOUBLE), torch.randn(5, D, **DOUBLE)
    x = y
    steps = [step for step in flow.transform.transforms if hasattr(step, "hyper")]
    for step in reversed(steps):  # from noise to data
        inverse = compile_inverse(
            step.hyper,
            D,
            context_features=2,
            concatenated=True,
            draw=lambda y, params, step=step: step.univariate(*params.unbind(-1)).inv(y),
        )
        x = inverse(x, context)[0]
    torch.testing.assert_close(x, flow(context).transform.inv(y), **EXACT)
    torch.testing.assert_close(flow(context).transform(x), y, rtol=1e-9, atol=1e-9)


class Wrong(TwoHeads):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__(D, 12, 2)
        self.change = body

    def forward(self, x: Tensor) -> Tensor:
        return self.change(super().forward(x).flatten(1))


REFUSED: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda p: p[:, p[0].argsort()], "select.*is not understood"),
    (lambda p: torch.stack([p, p]), "stacks along another dimension"),
    (lambda p: p.roll(2, 1), "not autoregressive|roll.*is not understood"),
    (lambda p: p[:, 1:], "13 numbers for each row, which is no multiple of features"),
]


class OrderedByContext(TwoHeads):
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.head(self.body(x), 0)[:, context[0].argsort()]


def test_an_order_that_follows_from_the_context_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="by an index that is no constant"):
        compile_inverse(OrderedByContext(D, 12, 2), D, context_features=D)


@pytest.mark.parametrize(("change", "says"), REFUSED)
def test_what_is_no_masked_mlp_is_refused(change: Callable[[Tensor], Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        compile_inverse(Wrong(change), D)
    assert "multiple" in says or isinstance(caught.value, UnsupportedModelError)
