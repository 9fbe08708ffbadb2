"""One-pass inverses compiled from masked MLPs of other libraries equal one full pass per dimension."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zuko
from masked_mlps_in_the_wild import BlockMADE, ChunkedMADE, Masked, WeightNormedHeads, degrees_of
from torch import Tensor, nn

from fastvae.nn import MADE
from fastvae.sampling import UnsupportedModelError, compile_inverse

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def by_passes(net: Callable[..., Tensor], noise: Tensor, *context: Tensor, chunked: bool = False) -> Tensor:
    x = torch.zeros_like(noise)
    for _ in range(noise.shape[-1]):
        params = net(x, *context)
        shift, log_scale = params.chunk(2, -1) if chunked else params.unflatten(-1, (-1, 2)).unbind(-1)
        x = shift + log_scale.exp() * noise
    return x


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_a_flow_of_zuko(context: int, residual: bool) -> None:
    order = torch.randperm(7)
    step = zuko.flows.MaskedAutoregressiveTransform(
        7, context, order=order, hidden_features=(20, 20), activation=nn.ELU, residual=residual
    ).double()
    inverse = compile_inverse(
        step.hyper,
        7,
        context_features=context,
        concatenated=context > 0,
        draw=lambda y, params: step.univariate(*params.unbind(-1)).inv(y),
    )
    y = torch.randn(5, 7, **DOUBLE)
    contexts = [torch.randn(5, context, **DOUBLE)] if context else []
    x, _ = inverse(y, *contexts)
    torch.testing.assert_close(x, step(*contexts).inv(y), **EXACT)
    assert inverse.plan.num_steps == 7
    torch.testing.assert_close(inverse.plan.rank, order)


def test_a_coupling_takes_two_steps_and_a_spline_is_a_draw() -> None:
    flow = zuko.flows.NSF(6, 0, transforms=1, bins=4, passes=2, hidden_features=(16,)).double()
    step = flow.transform.transforms[0]
    sizes = [4, 4, 3]

    def draw(y: Tensor, params: Tensor) -> Tensor:
        return step.univariate(*params.split(sizes, -1)).inv(y)

    inverse = compile_inverse(step.hyper, 6, draw=draw)
    assert inverse.plan.num_steps == 2
    y = torch.randn(4, 6, **DOUBLE, requires_grad=True)
    x, want = inverse(y)[0], step().inv(y)
    torch.testing.assert_close(x, want, **EXACT)
    parameters = [y, *step.hyper.parameters()]
    found, expected = (torch.autograd.grad(t.square().sum(), parameters) for t in (x, want))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("context", [0, 2])
def test_residual_blocks_with_a_gating_context(context: int) -> None:
    net = BlockMADE(6, 11, 2, context, dropout=0.5).double().eval()
    inverse = compile_inverse(net, 6, context_features=context)
    noise = torch.randn(3, 4, 6, **DOUBLE, requires_grad=True)
    contexts = [torch.randn(4, context, **DOUBLE, requires_grad=True)] if context else []
    x, params = inverse(noise, *contexts)
    flat = [c.expand(3, 4, -1).flatten(0, 1) for c in contexts]
    want = by_passes(net, noise.flatten(0, 1), *flat).view_as(noise)
    torch.testing.assert_close(x, want, **EXACT)
    torch.testing.assert_close(params.flatten(0, 1).flatten(1), net(x.flatten(0, 1), *flat), **EXACT)
    inputs = [noise, *contexts, *net.parameters()]
    found, expected = (torch.autograd.grad(t.sin().sum(), inputs) for t in (x, want))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_in_place_masks_and_parameters_one_after_the_other() -> None:
    net = ChunkedMADE(9, 7).double()
    before = net.first.weight.clone()
    with pytest.raises(UnsupportedModelError, match="in the layout 'by_parameter'"):
        compile_inverse(net, 9)
    inverse = compile_inverse(net, 9, layout="by_parameter")
    noise = torch.randn(17, 9, **DOUBLE)
    x, _ = inverse(noise)
    torch.testing.assert_close(x, by_passes(net, noise, chunked=True), **EXACT)
    weight = net.first.weight
    (grad,) = torch.autograd.grad(inverse(noise)[0].sum(), weight)
    assert torch.equal(grad != 0, net.first.mask > 0)
    assert torch.equal(weight, before * net.first.mask)  # by the model's own forward


def test_weight_norm_gates_and_numbers() -> None:
    net = WeightNormedHeads(8, 12).double()
    inverse = compile_inverse(net, 8)
    noise = torch.randn(3, 8, **DOUBLE)
    x, want = inverse(noise)[0], by_passes(net, noise)
    torch.testing.assert_close(x, want, **EXACT)
    parameters = list(net.parameters())
    found, expected = (torch.autograd.grad(t.square().sum(), parameters) for t in (x, want))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_batch_norm_with_fixed_statistics_is_part_of_the_net() -> None:
    net = ChunkedMADE(5, 9, Masked, lambda: nn.BatchNorm1d(9)).double()
    net(torch.randn(50, 5, **DOUBLE))  # statistics that are not those of the start
    with pytest.raises(UnsupportedModelError, match="normalises by the statistics of the batch"):
        compile_inverse(net, 5, layout="by_parameter")
    inverse = compile_inverse(net.eval(), 5, layout="by_parameter")
    noise = torch.randn(4, 5, **DOUBLE)
    torch.testing.assert_close(inverse(noise)[0], by_passes(net, noise, chunked=True), **EXACT)


def test_our_own_network_is_one_of_them() -> None:
    made = MADE(6, [10, 10], num_params=2, context_features=2, residual=True, **DOUBLE)
    inverse = compile_inverse(made, 6, context_features=2)
    noise, context = torch.randn(4, 6, **DOUBLE), torch.randn(2, **DOUBLE)
    torch.testing.assert_close(inverse(noise, context), made.solve(noise, context), **EXACT)


def test_changed_weights_are_used_and_changed_masks_planned() -> None:
    net = BlockMADE(5, 8, 2).double().eval()
    nn.init.zeros_(net.final.weight)  # not masked: only zero as yet
    inverse = compile_inverse(net, 5)
    noise = torch.randn(2, 5, **DOUBLE)
    torch.testing.assert_close(inverse(noise)[0], by_passes(net, noise), **EXACT)
    nn.init.normal_(net.final.weight)
    torch.testing.assert_close(inverse(noise)[0], by_passes(net, noise), **EXACT)
    assert inverse.plan.num_steps == 5
    net.final.mask.zero_()
    assert inverse(noise)[0].shape == (2, 5)
    assert inverse.plan.num_steps == 1
    net.train()
    net.blocks[0].dropout.p = 0.3
    with pytest.raises(UnsupportedModelError, match=r"draws random numbers.*eval\(\)"):
        inverse(noise)


class Dense(nn.Module):
    def __init__(self, features: int, body: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        degrees = degrees_of(features, 8, "hidden")
        self.body = body
        self.first = Masked(degrees_of(features, features, "input"), degrees)
        self.last = Masked(degrees, degrees_of(features, 2 * features, "output"), strict=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))


REFUSED: list[tuple[Any, str]] = [
    (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)), "dimension 0 depend on the dimension itself"),
    (Dense(4, nn.Linear(8, 8)), "not autoregressive"),
    (Dense(4, nn.LayerNorm(8)), "native_layer_norm.*is not understood"),
    (Dense(4, lambda h: h.softmax(1)), "softmax.*is not understood; understood are linear layers"),
    (Dense(4, lambda h: h / h.exp()), "exp.*is not understood"),
    (Dense(4, lambda h: F.glu(h, 1).repeat(1, 2)), "repeat.*is not understood"),
    (Dense(4, lambda h: h.t().t()), "aten.t.default.*is not understood"),
    (Dense(5), "10 numbers for each row, which is no multiple of features = 4"),
]


@pytest.mark.parametrize(("net", "says"), REFUSED)
def test_what_is_no_masked_mlp_is_refused(net: nn.Module, says: str) -> None:
    features = 4
    if "no multiple" in says:
        net = nn.Sequential(Masked(torch.arange(4), torch.arange(10)))
    with pytest.raises(ValueError, match=says):
        compile_inverse(net, features)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: compile_inverse(torch.relu, 3), TypeError, "net must be a torch.nn.Module, got builtin"),  # type: ignore[arg-type]
    (lambda: compile_inverse(MADE(3, [4]), 0), ValueError, r"features must be in \[1, "),
    (lambda: compile_inverse(MADE(3, [4]), 3, concatenated=True), ValueError, "concatenated needs context_features"),
    (lambda: compile_inverse(MADE(3, [4]), 3), ValueError, "draw 'affine' takes 2 parameter"),
    (lambda: compile_inverse(MADE(3, [4], num_params=2), 3)(torch.zeros(2, 4)), ValueError, "noise must have shape"),
    (lambda: compile_inverse(MADE(3, [4], num_params=2), 3)([0.0]), TypeError, "noise must be a torch.Tensor"),
    (
        lambda: compile_inverse(MADE(3, [4], num_params=2), 3)(torch.zeros(2, 3), torch.zeros(2, 3)),
        ValueError,
        r"takes a context, none, got one of shape \(2, 3\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD)
def test_bad_arguments(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
