"""``accelerate``: the fast masked convolution for models that people already have."""

from typing import Any

import torch
from torch import nn

from fastvae.nn import MaskedConv2d

from .layer import Accelerated, Plan, describe_mask, swap_class
from .probe import probe
from .replica import is_mask
from .report import Report, Skipped, Swapped
from .verify import NoTensorError, Observation, check_example, difference, observe
from .walk import walk

__all__ = ["accelerate"]

_SCRIPTED = "it is compiled by TorchScript, whose code cannot be changed; torch.compile takes accelerated models"


def accelerate(model: nn.Module, example_input: Any = None) -> Report:
    """Let every masked convolution in ``model`` take the fast way, in place.

    Found are ``nn.Conv2d`` subclasses with a mask of zeros and ones among their tensors: a buffer, a plain attribute or
    a frozen parameter, of shape (k, k), (C_in, k, k), (1, 1, k, k), (C_out, C_in, k, k) or another that broadcasts.
    Whether the layer *is* a masked convolution is not guessed: its forward is tried on a stand-in with random weights
    and images, and only one whose outputs and gradients are those of ``F.conv2d`` with the weight times the mask is
    swapped. All else is left alone and reported; so is a layer that calls ``super(self.__class__, self)``.

    A swapped layer is the same object: same parameters (optimisers keep working), state dict, hooks, attributes;
    an instance of its class. It can be copied, pickled, moved, compiled, parametrised. It follows a mask that is loaded
    or edited; only in compiled code, an edit in place shows after the next call that is not compiled. On the CPU its
    values are compared in every call; on CUDA, which would have to wait, an edit that PyTorch does not count
    (``mask.data.copy_``) goes unnoticed. ``torch.jit.script`` takes the original model only: restore it before.

    It also trains the same. A style that overwrites masked weights by zero in every forward
    (``self.weight.data *= self.mask``) still does, and its masked taps still get the gradient of the unmasked
    convolution, which the norm of gradient clipping, a weight norm's gain and layer-wise optimisers see.

    Calls that are not served take the original forward: further arguments, images without a batch axis, transforms of
    ``torch.func``, a layer whose plain attributes were changed since, one so small that nothing is to be gained.

    Args:
        model: any module; lists and dictionaries of modules in plain attributes are searched too.
        example_input: a tensor, a tuple of arguments or a dict of named ones. If given, the model is called with it
            before and after, and all outputs and gradients are compared. The model is not changed by these calls.

    Returns:
        A report of what was swapped and what was not and why; ``report.restore()`` undoes the swap.

    Raises:
        TypeError: if ``model`` is no ``nn.Module``, or ``example_input`` or the output it leads to holds no tensor.
        RuntimeError: if the model cannot be called with the example; or if outputs or gradients on it differ:
            everything is as before then, and the message names the first layer that differs.

    Example:
        >>> import torch
        >>> class Masked(nn.Conv2d):
        ...     def __init__(self, *args, **options):
        ...         super().__init__(*args, **options)
        ...         self.register_buffer("mask", torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]]))
        ...     def forward(self, x):
        ...         return nn.functional.conv2d(x, self.weight * self.mask, self.bias, padding=1)
        >>> model = nn.Sequential(Masked(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 3, 1))
        >>> print(accelerate(model, torch.randn(2, 3, 8, 8)))
        swapped 1, verified on the example
          0: 3x3, mask A, masked weight
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    call = None if example_input is None else check_example(example_input)
    plans, skipped, paths = _examine(model)
    watched = {module: paths[module][0] for module in plans}
    before = None if call is None else _observe_example(model, call, watched)
    report = Report([], skipped, call is not None)
    for module, plan in plans.items():
        _swap(report, module, plan, paths[module])
    if call is None or before is None:
        return report
    try:
        wrong = difference(before, observe(model, *call, watched), set(watched.values()))
    except BaseException:
        report.restore()
        raise
    if wrong is not None:
        report.restore()
        raise RuntimeError(
            f"the accelerated model does not compute the same on example_input: {wrong}; it was restored"
        )
    return report


def _observe_example(model: nn.Module, call: tuple[Any, Any], watched: dict[nn.Module, str]) -> Observation:
    try:
        return observe(model, *call, watched)
    except NoTensorError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"the model, not changed yet, cannot be called with example_input: {type(error).__name__}: {error}"
        ) from error


def _examine(model: nn.Module) -> tuple[dict[nn.Module, Plan], list[Skipped], dict[nn.Module, list[str]]]:
    plans: dict[nn.Module, Plan] = {}
    skipped: list[Skipped] = []
    paths: dict[nn.Module, list[str]] = {}
    for path, module in walk(model):
        if module in paths:
            paths[module].append(path)
            continue
        paths[module] = [path]
        found = _plan_or_reason(module)
        if isinstance(found, Plan):
            plans[module] = found
        elif found is not None:
            skipped.append(Skipped(path, type(module).__name__, found))
    return plans, skipped, paths


def _plan_or_reason(module: nn.Module) -> Plan | str | None:
    """The plan of a layer that can be swapped, why it cannot, or None where nobody would expect it."""
    if isinstance(module, Accelerated):
        return "accelerated already"
    if isinstance(module, torch.jit.ScriptModule):
        return _SCRIPTED if any(p.ndim == 4 for p in module.parameters(recurse=False)) else None
    if not isinstance(module, nn.Conv2d):
        return _reason_of_another_kind(module)
    if isinstance(module, MaskedConv2d):
        return "a fast layer of fastvae already"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        return "its parameters are not initialised yet; call the model once before"
    if tuple(module.kernel_size) == (1, 1):
        return None
    return probe(module)


def _reason_of_another_kind(module: nn.Module) -> str | None:
    sizes = {tuple(p.shape[-2:]) for p in module.parameters() if p.ndim == 4 and p.requires_grad}
    own = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
    if any(is_mask(value, size) for value in own for size in sizes):
        return "it holds a mask but is no nn.Conv2d"
    return None


def _swap(report: Report, module: nn.Module, plan: Plan, paths: list[str]) -> None:
    try:
        swap_class(module, plan)
    except Exception as error:  # a class may forbid subclasses
        report.skipped.append(Skipped(paths[0], type(module).__name__, f"its class cannot be changed: {error}"))
        return
    size: Any = module.kernel_size
    entry = Swapped(paths[0], tuple(paths[1:]), _style(plan), describe_mask(plan.taps, size), size)
    report.swapped.append(entry)
    report.modules.append(module)


def _style(plan: Plan) -> str:
    if plan.zeroes_weight:
        return "mask in place" if plan.keeps_gradient else "mask in place and out of place"
    return "masked weight, gradient unmasked" if plan.keeps_gradient else "masked weight"
