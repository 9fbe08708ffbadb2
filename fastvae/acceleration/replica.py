"""A stand-in for a module, on which its forward can be tried without touching the module."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Replica", "is_mask", "mask_names", "replicate"]


class Replica:
    """A module of the same class with other tensors.

    Attributes:
        module: the stand-in.
        leaves: its trainable tensors by name, random: also where the original has zeros.
    """

    def __init__(self, module: nn.Module, leaves: dict[str, Tensor]) -> None:
        self.module, self.leaves = module, leaves

    def state(self) -> dict[str, Any]:
        """Everything that a forward could change, by name; tensors as copies."""
        return {name: _copied(value) for name, value in _attributes(self.module)}


def replicate(module: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> Replica:
    """The stand-in of ``module`` in ``dtype``.

    Parameters, and weights that a hook computes, become random leaves; masks and whole numbers become copies; other
    tensors become random; containers are copied one level deep; all else is shared.
    """
    leaves: dict[str, Tensor] = {}
    return Replica(_replicate(module, "", dtype, generator, leaves), leaves)


def is_mask(value: Any, kernel_size: tuple[int, ...]) -> bool:
    """Whether this is a tensor of zeros and ones, shaped like a kernel, with both in it."""
    if not isinstance(value, Tensor) or value.ndim not in (2, 3, 4) or value.requires_grad or value.is_meta:
        return False
    if tuple(value.shape[-2:]) != tuple(kernel_size) or value.numel() == 0:
        return False
    value = value.detach()
    zeros, ones = value == 0, value == 1
    return bool((zeros | ones).all()) and bool(zeros.any()) and bool(ones.any())


def mask_names(module: nn.Module, kernel_size: tuple[int, ...]) -> list[str]:
    """The attributes, buffers and frozen parameters of ``module`` itself that are masks of its kernel."""
    found = {**vars(module), **module._parameters, **module._buffers}
    return [name for name, value in found.items() if is_mask(value, kernel_size)]


def _replicate(
    module: nn.Module, path: str, dtype: torch.dtype, generator: torch.Generator, leaves: dict[str, Tensor]
) -> nn.Module:
    twin = object.__new__(type(module))
    kernel_size = getattr(module, "kernel_size", ())

    def other(name: str, value: Any) -> Any:
        if isinstance(value, list | dict | set):
            return type(value)(value) if type(value) in (list, dict, set) else value
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point() or is_mask(value, kernel_size):
            return value.detach().clone()
        if not isinstance(value, nn.Parameter) and name not in ("weight", "bias"):
            # another buffer: a gain of one would show nothing
            return torch.rand(value.shape, generator=generator, dtype=dtype, device="cpu").to(value.device) + 0.5
        random = torch.randn(value.shape, generator=generator, dtype=dtype, device="cpu").to(value.device)
        leaf = nn.Parameter(random) if isinstance(value, nn.Parameter) else random.requires_grad_()
        leaves[path + name] = leaf
        return leaf

    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers"):
            twin.__dict__[name] = {key: other(key, held) for key, held in value.items()}
        elif name == "_modules":
            twin.__dict__[name] = {
                key: None if held is None else _replicate(held, f"{path}{key}.", dtype, generator, leaves)
                for key, held in value.items()
            }
        else:
            twin.__dict__[name] = other(name, value)
    return twin


def _attributes(module: nn.Module, path: str = "") -> list[tuple[str, Any]]:
    own = {**vars(module), **module._parameters, **module._buffers}
    registries = ("_parameters", "_buffers", "_modules")
    found = [(path + name, value) for name, value in own.items() if name not in registries]
    for name, child in module._modules.items():
        if child is not None:
            found += _attributes(child, f"{path}{name}.")
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return type(value)(value) if type(value) in (list, dict, set) else value
