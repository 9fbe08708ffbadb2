"""Does the whole model still compute the same? Outputs and gradients on an example, before and after."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from .exact import exact_products
from .walk import walk

__all__ = ["NoTensorError", "Observation", "check_example", "difference", "observe"]

# relative to the largest value of a tensor; a gradient sums over many more terms than an output
_OUTPUTS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
_GRADIENTS = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}


class NoTensorError(TypeError):
    """The output of a model holds nothing to compare."""


class Observation:
    """One forward and backward of a model.

    Attributes:
        layers: (path, output) of every call of a watched layer, in the order of the calls.
        outputs: the tensors in the model's output.
        gradients: by name of the parameter, those of a random weighted sum of the outputs; inputs are ``input 0``, ...
    """

    def __init__(self, layers: list[tuple[str, Tensor]], outputs: list[Tensor], gradients: dict[str, Tensor | None]):
        self.layers, self.outputs, self.gradients = layers, outputs, gradients


def check_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and named arguments of a call with this example.

    Raises:
        TypeError: if it is no tensor and neither a tuple nor a dictionary that holds one.
    """
    if isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    else:
        args, kwargs = example if isinstance(example, tuple) else (example,), {}
    if not any(isinstance(leaf, Tensor) for leaf in tree_flatten((args, kwargs))[0]):
        raise TypeError(
            "example_input must be a tensor, or a tuple or dict of arguments that holds one, "
            f"got {type(example).__name__}"
        )
    return args, kwargs


def observe(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], watched: Mapping[nn.Module, str]
) -> Observation:
    """Run the model once; its tensors, its gradients and the random numbers are left bit for bit as they were.

    Raises:
        NoTensorError: if the output holds no floating point tensor.
    """
    layers: list[tuple[str, Tensor]] = []
    inputs: list[Tensor] = []

    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().clone()
        if value.is_floating_point():
            inputs.append(value.requires_grad_())
        return value

    with _untouched(model), exact_products(), _watching(watched, layers):
        args, kwargs = tree_map(fresh, (args, kwargs))
        outputs = [leaf for leaf in tree_flatten(model(*args, **kwargs))[0] if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in outputs if leaf.is_floating_point()]
        if not outputs:
            raise NoTensorError(
                "the output of the model holds no floating point tensor to compare; leave example_input out"
            )
        gradients = _gradients(model, inputs, outputs)
        outputs = [output.detach().clone() for output in outputs]
    return Observation(layers, outputs, gradients)


def difference(before: Observation, after: Observation, swapped: set[str]) -> str | None:
    """What differs first, in the order of the computation; None if all is equal within rounding."""
    outputs = [_distance(a, b, _OUTPUTS) for a, b in zip(before.outputs, after.outputs, strict=False)]
    # where terms cancel (a bias in front of a batch norm) only rounding is left, of the size of the other gradients
    largest = max(
        (float(g.detach().abs().amax()) for g in before.gradients.values() if g is not None and g.numel()), default=0.0
    )
    gradients = {
        name: _distance(before.gradients[name], after.gradients.get(name), _GRADIENTS, least_scale=0.1 * largest)
        for name in before.gradients
    }
    wrong = {name: far for name, far in gradients.items() if far is not None}
    if len(before.outputs) == len(after.outputs) and all(far is None for far in outputs) and not wrong:
        return None
    for (path, a), (_, b) in zip(before.layers, after.layers, strict=False):
        far = _distance(a, b, _OUTPUTS)
        if far is not None:
            return f"the output of '{path}' differs first, by {far}"
    for name, far in wrong.items():
        if name.rpartition(".")[0] in swapped:
            return f"the gradient of '{name}' differs, by {far}"
    if wrong:
        name, far = next(iter(wrong.items()))
        return f"the gradient of '{name}' differs, by {far}"
    return "the output of the model differs"


def _gradients(model: nn.Module, inputs: list[Tensor], outputs: list[Tensor]) -> dict[str, Tensor | None]:
    named = {f"input {index}": tensor for index, tensor in enumerate(inputs)}
    named |= _trainable(model)
    reached = [output for output in outputs if output.requires_grad]
    if not reached or not named:
        return {}
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(output.shape, generator=generator, device="cpu").to(output.device, output.dtype)
        for output in reached
    ]
    found = torch.autograd.grad(reached, list(named.values()), cotangents, allow_unused=True)
    return dict(zip(named, found, strict=True))


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, module in walk(model):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                found[f"{path}.{name}" if path else name] = parameter
    return found


def _distance(
    a: Tensor | None, b: Tensor | None, tolerances: Mapping[torch.dtype, float], least_scale: float = 0.0
) -> str | None:
    """None within the tolerance, else the distance in words."""
    if a is None or b is None:
        return None if a is b else "one of the two not being there"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"shape or dtype: {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}"
    if a.numel() == 0:
        return None
    scale = max(float(a.detach().abs().amax()), least_scale, 1e-30)
    far = float((a.detach().double() - b.detach().double()).abs().amax()) / scale
    return None if far <= tolerances.get(a.dtype, 0.0) else f"{far:.1e} of its largest value"


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """The same random numbers for every run, and afterwards every tensor as before, bit for bit."""
    modules = {module for _, module in walk(model)}
    attributes = {module: {k: v for k, v in vars(module).items() if isinstance(v, Tensor)} for module in modules}
    tensors = [tensor for own in attributes.values() for tensor in own.values()]
    tensors += [
        t for module in modules for t in (*module._parameters.values(), *module._buffers.values()) if t is not None
    ]
    kept = [tensor.detach().clone() for tensor in tensors]
    devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        try:
            yield
        finally:
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.data.copy_(value)  # .data: whatever was recorded before stays valid
            for module, own in attributes.items():  # the old weight norm sets another tensor in every forward
                module.__dict__.update(own)


@contextmanager
def _watching(watched: Mapping[nn.Module, str], layers: list[tuple[str, Tensor]]) -> Iterator[None]:
    def noting(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                layers.append((path, output.detach().clone()))

        return hook

    handles = [module.register_forward_hook(noting(path)) for module, path in watched.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
