"""Fully connected layers through oneDNN while a model is evaluated: float32 on CPUs with AVX-512."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastvae.ops import onednn

__all__ = ["fused_layers"]

_FUSED = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.Sigmoid: "sigmoid"}


@contextmanager
def fused_layers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside this context every ``nn.Sequential`` in ``modules`` runs its linear layers and the activations after them
    as one operator each; so does its method ``hidden``, all layers but the last, where a class of ours has one.

    oneDNN uses AVX-512 where PyTorch's BLAS does not, and applies the activation while the result is in registers:
    less than half the time for a decoder of three layers. Results differ by rounding only. What does not qualify
    (gradients, hooks, other dtypes, few rows) runs as it always does.
    """
    changed = []
    if onednn.has_fused_linear():
        for module in modules:
            parts = list(module.modules())
            if any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in parts):
                continue  # torch.compile has its own fusion, and would compile again
            for part in parts:
                sequential = type(part).forward is nn.Sequential.forward
                if isinstance(part, nn.Sequential) and sequential and "forward" not in vars(part):
                    part.forward = _fused_forward(list(part))  # type: ignore[method-assign]
                    if hasattr(part, "hidden"):
                        part.hidden = _fused_forward(list(part)[:-1])  # type: ignore[assignment]
                    changed.append(part)
    try:
        yield
    finally:
        for part in changed:
            vars(part).pop("forward", None)
            vars(part).pop("hidden", None)


def _fused_forward(net: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    steps = _steps(net)

    def forward(x: Tensor) -> Tensor:
        for layer, activation, rest in steps:
            if isinstance(layer, nn.Linear) and activation and _qualifies(x, layer):
                x = onednn.linear(x, layer.weight, layer.bias, activation)
            else:
                x = layer(x)
                x = x if rest is None else rest(x)
        return x

    return forward


def _steps(net: Sequence[nn.Module]) -> list[tuple[nn.Module, str, nn.Module | None]]:
    """(layer, name of what oneDNN applies after it or "" if it cannot take the layer, the module that does it)."""
    steps: list[tuple[nn.Module, str, nn.Module | None]] = []
    taken = False
    for layer, after in zip(net, [*net[1:], None], strict=True):
        if taken:
            taken = False
        elif type(layer) is not nn.Linear or _hooked(layer):
            steps.append((layer, "", None))
        elif after is not None and type(after) in _FUSED and not _hooked(after):
            steps.append((layer, _FUSED[type(after)], after))
            taken = True
        else:
            steps.append((layer, "none", None))
    return steps


def _hooked(module: nn.Module) -> bool:
    """Whether something else already stands between the layer and its caller."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _qualifies(x: Tensor, layer: nn.Linear) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: what a compiler cannot trace would run, and find none at work
        and type(x) is Tensor
        and type(layer.weight) is nn.Parameter
        and x.dtype == layer.weight.dtype == torch.float32
        and x.device.type == layer.weight.device.type == "cpu"
        and x.ndim >= 2
        and x.shape[-1] == layer.in_features
        and x.numel() >= onednn.FEWEST_ROWS * layer.in_features > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
