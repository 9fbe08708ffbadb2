"""Fused linear layers: the same numbers as the layers themselves, only where they may stand in, and gone afterwards."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastvae.evaluation.fused_layers import fused_layers
from fastvae.ops.onednn import has_fused_linear

needs_onednn = pytest.mark.skipif(not has_fused_linear(), reason="needs oneDNN and a CPU with AVX-512")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(7, 40),
        nn.Tanh(),
        nn.Linear(40, 33, bias=False),
        nn.ReLU(),
        nn.Sequential(nn.Linear(33, 20), nn.Sigmoid(), nn.Linear(20, 20)),
        nn.ELU(),
        nn.Linear(20, 3),
    )


@pytest.mark.parametrize("shape", [(500, 7), (100, 5, 7), (3, 7), (7,), (0, 7), (0, 5, 7)])
@torch.no_grad()
def test_numbers_are_the_same_to_rounding(shape: tuple[int, ...]) -> None:
    net, x = network(), torch.randn(shape) * 3
    exact = net.double()(x.double())
    net = net.float()
    with fused_layers([net]):
        fused = net(x)
    assert fused.shape == exact.shape
    torch.testing.assert_close(fused.double(), exact, rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_a_tensor_in_another_layout_is_taken_too() -> None:
    net, x = network(), torch.randn(7, 6, 50).permute(1, 2, 0)
    want = net(x)
    with fused_layers([net]):
        torch.testing.assert_close(net(x), want, rtol=1e-5, atol=2e-6)


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operators(net: nn.Module) -> Counter[str]:
    with Operators() as mode:
        net(torch.randn(100, 7))
    return mode.calls


@needs_onednn
@torch.no_grad()
def test_the_layers_are_really_replaced_and_put_back() -> None:
    net = network()
    with fused_layers([net]):
        fused = operators(net)
    plain = operators(net)
    assert fused["_linear_pointwise"] == 5
    assert fused["tanh"] == fused["relu"] == fused["sigmoid"] == fused["addmm"] == 0
    assert plain["_linear_pointwise"] == 0
    assert plain["tanh"] == plain["sigmoid"] == 1


@needs_onednn
@torch.no_grad()
def test_a_layer_whose_forward_somebody_replaced_is_left_alone() -> None:
    net = network()
    net[0].forward = lambda x: torch.zeros(*x.shape[:-1], 40)  # type: ignore[method-assign]
    want = net(torch.ones(100, 7))
    with fused_layers([net]):
        torch.testing.assert_close(net(torch.ones(100, 7)), want)


def test_gradients_hooks_and_double_precision_take_the_layers_themselves() -> None:
    net, x = network(), torch.randn(100, 7, requires_grad=True)
    seen: list[torch.Tensor] = []
    with fused_layers([net]):
        (grad,) = torch.autograd.grad(net(x).sum(), x)
    (want,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(grad, want)
    net[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with fused_layers([net]), torch.no_grad():
        net(x)
        assert torch.equal(net.double()(x.double()), network().double()(x.double()))
    assert len(seen) == 2


def test_is_undone_when_the_evaluation_fails() -> None:
    net = network()
    with pytest.raises(KeyError), fused_layers([net]):
        raise KeyError
    assert "forward" not in vars(net)


@torch.no_grad()
def test_an_input_of_the_wrong_width_gives_the_error_of_the_layer() -> None:
    net = network()
    with fused_layers([net]), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(torch.randn(100, 8))


@torch.no_grad()
def test_compiled_models_are_left_alone() -> None:
    net, x = network(), torch.randn(100, 7)
    compiled = torch.compile(net, backend="eager")
    want = compiled(x)
    with fused_layers([compiled]):
        assert "forward" not in vars(net)
        assert torch.equal(compiled(x), want)


@torch.no_grad()
def test_layers_that_a_compiled_function_uses_run_as_written() -> None:
    net, x = network(), torch.randn(100, 7)
    want = net(x)
    graphs = []

    def noting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: net(x) + 1, backend=noting)
    with fused_layers([net]):
        torch.testing.assert_close(compiled(x), want + 1)
    assert graphs
    assert not any("_linear_pointwise" in graph.code for graph in graphs)
    net.compile(backend="eager")
    with fused_layers([nn.ModuleList([net])]):
        assert "forward" not in vars(net)
        assert torch.equal(net(x), want)
