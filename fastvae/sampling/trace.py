"""Trace: the operators that a model runs, with its parameters and buffers as inputs that stay alive."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._decomp import get_decompositions
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.traceback import annotate, preserve_node_meta
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from fastvae.ops import backend

__all__ = ["Kind", "NotAutoregressiveError", "Trace", "UnsupportedModelError", "describe", "trace_model"]

aten = torch.ops.aten

# literal: no parameter in it; static: parameters and buffers; condition: the condition; spatial: the image
Kind = Literal["literal", "static", "condition", "spatial"]
_ORDER: tuple[Kind, ...] = ("literal", "static", "condition", "spatial")

# operators that read the shape of their argument but not its values
_SHAPE_ONLY = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
}
# normalisations with fixed statistics become pointwise operators
_DECOMPOSE = [
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.cudnn_batch_norm.default,
    aten._batch_norm_no_update.default,
    # into functions of single values and sums over features
    aten._prelu_kernel.default,
    aten.hardswish.default,
    aten.linalg_vector_norm.default,
    aten.log_sigmoid_forward.default,
    aten.std.correction,
]


class UnsupportedModelError(ValueError):
    """The model cannot be sampled exactly by a planned schedule; the message names the place and the remedy."""


class NotAutoregressiveError(UnsupportedModelError):
    """Pixel by pixel sampling would be wrong too: a full pass does not give the distribution of the next pixel.

    Attributes:
        offset: from a pixel to the furthest one its parameters depend on, (rows, columns), where it is known.
    """

    def __init__(self, message: str, offset: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass
class Trace:
    """A functional graph of ATen operators: parameters, image and condition in, parameters of every value out.

    Attributes:
        graph: the operators, in order.
        inputs: the placeholders of parameters and buffers, by their names in the model.
        image: the placeholder of the image.
        condition: the placeholder of the condition, or None.
        output: the node of the result.
        constants: tensors of the model that are neither parameter nor buffer.
        kinds: what each node depends on.
        batch: the batch size the trace was made with.
    """

    graph: fx.Graph
    inputs: dict[str, fx.Node]
    image: fx.Node
    condition: fx.Node | None
    output: fx.Node
    constants: dict[str, Tensor]
    batch: int
    kinds: dict[fx.Node, Kind] = field(default_factory=dict)

    def evaluate(
        self,
        nodes: Iterable[fx.Node],
        live: dict[str, Tensor],
        condition: Tensor | None = None,
        *,
        with_gradients: bool = False,
    ) -> dict[fx.Node, Any]:
        """Values of nodes that do not depend on the image, from the live parameters; each ancestor runs once.

        With gradients, the detached views that in-place masking writes to are part of the graph.
        """
        known: dict[fx.Node, Any] = {node: live[name] for name, node in self.inputs.items()}
        if self.condition is not None and condition is not None:
            known[self.condition] = condition
        needed = set(nodes)
        for node in reversed(self.graph.nodes):
            if node in needed and node.target not in _SHAPE_ONLY:
                needed.update(node.all_input_nodes)
        with torch.set_grad_enabled(with_gradients and torch.is_grad_enabled()):
            for node in self.graph.nodes:
                if node not in needed or node in known:
                    continue
                if with_gradients and node.target is aten.detach.default and self.kinds[node] == "static":
                    known[node] = known[node.args[0]]
                else:
                    known[node] = self._run(node, known)
        return known

    def _run(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return self.constants[str(node.target)]
        args, kwargs = node.args, node.kwargs
        if node.target in _SHAPE_ONLY:
            source = node.args[0]
            value = source.meta["val"]  # type: ignore[union-attr]
            known = {**known, source: torch.empty(value.shape, dtype=value.dtype, device=value.device)}  # type: ignore[dict-item]
        args, kwargs = fx.map_arg((args, kwargs), lambda n: known[n])
        return node.target(*args, **kwargs)  # type: ignore[operator]


def trace_model(model: nn.Module, image: Tensor, condition: Tensor | None = None) -> Trace:
    """Trace ``model(image)`` or ``model(image, condition)`` without running it.

    Args:
        model: any module; neither its parameters nor its buffers are touched.
        image: (N, C, H, W), only its shape, dtype and device matter.
        condition: (N, ...) or None.

    Raises:
        UnsupportedModelError: if the result depends on batch statistics, on random numbers, or on the values of the
            image by way of Python.
    """
    _refuse_batch_statistics(model)
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    rest = [image] if condition is None else [image, condition]

    def run(state: dict[str, Tensor], *rest: Tensor) -> Any:
        with _holding(model, state):
            result = model(*rest)
        if not isinstance(result, Tensor):
            raise UnsupportedModelError(
                f"the model must return one tensor of parameters (N, C * P, H, W), got {type(result).__name__}; "
                "wrap it in a module that returns that tensor"
            )
        return result

    with (
        torch.no_grad(),
        backend("reference"),
        sdpa_kernel(SDPBackend.MATH),
        _restored(model),
        _named_modules(model),
        preserve_node_meta(),
    ):
        module = _trace(run, state, rest)
    graph = module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    (result,) = (node for node in graph.nodes if node.op == "output")
    output = result.args[0]
    output = output[0] if isinstance(output, list | tuple) else output  # there is one
    names = list(state)
    trace = Trace(
        graph=graph,
        inputs=dict(zip(names, placeholders, strict=False)),
        image=placeholders[len(names)],
        condition=placeholders[len(names) + 1] if condition is not None else None,
        output=output,
        constants={
            str(node.target): getattr(module, str(node.target)) for node in graph.nodes if node.op == "get_attr"
        },
        batch=image.shape[0],
    )
    _classify(trace)
    return trace


def describe(node: fx.Node) -> str:
    """The operator, the module it ran in, and the line of source that called it."""
    where = node.meta.get("custom", {}).get("module")
    text = f"operator {node.target}" if node.op == "call_function" else f"{node.op} {node.target}"
    if where:
        text += f" in module {where!r}"
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").split("\n") if line.strip()]
    calls = [(frame, code) for frame, code in pairwise(lines) if frame.startswith("File ")]
    own = [call for call in calls if "/torch/" not in call[0]] or calls
    return f"{text} ({own[-1][0]}: {own[-1][1]})" if own else text


def _trace(run: Callable[..., Any], state: dict[str, Tensor], rest: list[Tensor]) -> fx.GraphModule:
    decompositions: dict[Any, Callable[..., Any]] = get_decompositions(_DECOMPOSE)
    tracer = make_fx(
        # the trace must be free of in-place writes: masked styles write weight.data *= mask
        torch.func.functionalize(run, remove="mutations"),
        decomposition_table=decompositions,
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
        record_stack_traces=True,
    )
    try:
        return tracer(state, *rest)
    except TypeError as error:
        call = "model(x)" if len(rest) == 1 else "model(x, condition)"
        raise TypeError(
            f"{call} failed: {error}; a model with a condition needs condition_shape, one without must not get it"
        ) from error
    except (DataDependentOutputException, GuardOnDataDependentSymNode) as error:
        raise UnsupportedModelError(
            "the model's forward looks at values of a tensor in Python (item(), bool(), an if on data), "
            f"{_user_line(error)}; a planned schedule must not depend on values. "
            'If it is causal, fallback="naive" samples it with one full pass per pixel'
        ) from error


def _user_line(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    last = frames[-1]
    return f"{last.filename}:{last.lineno}: {last.line}"


def _classify(trace: Trace) -> None:
    start: dict[fx.Node, Kind] = {node: "static" for node in trace.inputs.values()}
    start[trace.image] = "spatial"
    if trace.condition is not None:
        start[trace.condition] = "condition"
    for node in trace.graph.nodes:
        if node.op == "output":
            continue
        kind: Kind = start.get(node, "static" if node.op == "get_attr" else "literal")
        if node.op == "call_function":
            if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
                raise NotAutoregressiveError(
                    f"the model draws random numbers: {describe(node)}; call model.eval() if this is dropout"
                )
            if node.target not in _SHAPE_ONLY:
                kinds = [trace.kinds[source] for source in node.all_input_nodes]
                kind = max(kinds, key=_ORDER.index, default="literal")
        trace.kinds[node] = kind


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise NotAutoregressiveError(
                f"module {name!r} ({type(module).__name__}) normalises by the statistics of the batch, so every pixel "
                "depends on all pixels of all images; call model.eval(), or use a normalisation over channels"
            )


@contextmanager
def _named_modules(model: nn.Module) -> Iterator[None]:
    """Write the path of the running module into the nodes that are traced."""
    names = {module: name for name, module in model.named_modules() if name}
    running: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        context = annotate({"module": names[module]})
        context.__enter__()
        running.append(context)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    hooks: list[Any] = []
    for module in names:
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _holding(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Let the model's parameters and buffers be other tensors for a while, wherever it shares them.

    ``torch.func.functional_call`` is not used because it leaves its tensors in modules that are registered twice.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    replacement = {id(own[name]): tensor for name, tensor in state.items()}
    slots = [slots for module in model.modules() for slots in (module._parameters, module._buffers)]
    kept = [(slot, name, tensor) for slot in slots for name, tensor in slot.items() if tensor is not None]
    try:
        for slot, name, tensor in kept:
            slot[name] = replacement[id(tensor)]  # type: ignore[assignment]
        yield
    finally:
        for slot, name, tensor in kept:
            slot[name] = tensor  # type: ignore[assignment]


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put back the plain tensor attributes that a forward sets (the older weight norm keeps its weight in one)."""
    kept = [(m, {k: v for k, v in vars(m).items() if isinstance(v, Tensor)}) for m in model.modules()]
    try:
        yield
    finally:
        for module, tensors in kept:
            for key in [k for k, v in vars(module).items() if isinstance(v, Tensor) and k not in tensors]:
                del vars(module)[key]
            vars(module).update(tensors)
