"""The state of a translation from a trace to operators on pixels, and the register of what can be translated."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from .axes import Dim, Layout, feature_sizes, image_layout, is_feature
from .graph import Box, Constant, Look, Map, Operator, Pixels, Read, Value, empty_cells
from .trace import Trace, UnsupportedModelError, describe

__all__ = ["Lowering", "arguments_of", "follows", "handles"]

Handler = Callable[["Lowering", fx.Node], Any]
_HANDLERS: dict[Any, Handler] = {}
_FOLLOWERS: list[Callable[["Lowering", Map], None]] = []


def arguments_of(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """The positional arguments, with the defaults for the last ones that the trace leaves out."""
    return (*node.args, *defaults[len(node.args) :])


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    """Register the translation of ATen operators."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(targets, handler))
        return handler

    return register


def follows(follower: Callable[["Lowering", Map], None]) -> Callable[["Lowering", Map], None]:
    """Register a function that looks at every new function of single pixels."""
    _FOLLOWERS.append(follower)
    return follower


class Lowering:
    """The state of a translation: what each traced node became."""

    def __init__(self, trace: Trace, live: dict[str, Tensor]) -> None:
        self.trace = trace
        image = trace.image.meta["val"]
        self.batch, channels, self.height, self.width = image.shape
        self.device = image.device
        self.pixels = Pixels(trace.image, Box(0, self.height, 0, self.width), (channels,), image.dtype)
        self.operators: list[Operator] = [self.pixels]
        self.values: dict[fx.Node, Any] = {trace.image: self.value_of(self.pixels, image_layout(channels), (0, 0))}
        fixed = [node for node, kind in trace.kinds.items() if kind in ("literal", "static")]
        read = {source for node, kind in trace.kinds.items() if kind == "spatial" for source in node.all_input_nodes}
        self.fixed = trace.evaluate([node for node in fixed if node in read], live)
        self.unfolded: dict[Operator, Any] = {}  # by lower_unfold
        self.scores: dict[Operator, tuple[Look, Tensor]] = {}  # by lower_attention, as is the next
        self.mixed: set[Operator] = set()
        self.patterns: dict[fx.Node, Tensor] = {}  # masks that the plan is made for

    def translate(self, node: fx.Node) -> None:
        handler = _HANDLERS.get(node.target)
        if handler is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            handler = _HANDLERS["pointwise"]
        if handler is None:
            raise self.error(node, "is outside the vocabulary of planned sampling")
        self.values[node] = result = handler(self, node)
        if isinstance(result, Value) and (result.operator in self.scores or result.operator in self.mixed):
            return
        for argument in node.all_input_nodes:
            source = self.values.get(argument)
            if isinstance(source, Value) and source.operator in self.scores:
                self.scores[source.operator][0].seen[:] = True  # used in a way that is not followed

    def error(self, node: fx.Node, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f'{describe(node)} {problem}; if it is causal, fallback="naive" samples it with one full pass per pixel'
        )

    def shape(self, node: Any) -> tuple[int, ...]:
        """The traced shape of a result."""
        return tuple(node.meta["val"].shape)

    def spatial(self, node: fx.Node, argument: Any) -> Value:
        """The value of an argument that must depend on the image."""
        value = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if not isinstance(value, Value):
            raise self.error(node, "takes the image where a parameter is expected, or the other way round")
        return value

    def require_fixed(self, node: fx.Node, argument: Any) -> Any:
        """An argument that must be made of parameters alone."""
        if argument is not None and self.trace.kinds[argument] not in ("literal", "static"):
            raise self.error(node, "has weights that depend on the image or on the condition")
        return argument

    def is_zero(self, argument: Any) -> bool:
        """Whether an argument is zero whatever the parameters are."""
        return self.trace.kinds.get(argument) == "literal" and not bool(self.fixed[argument].any())

    def on_grid(self, operator: Map, shown: Tensor) -> Tensor | None:
        """What an operator that reads one value makes of given numbers for all its pixels, (pixels, 1, *features).

        None if it reads anything else but parameters. The plan then depends on these.
        """
        nodes = [node for operand in operator.operands if isinstance(operand, Constant) for node in operand.nodes]
        if len(operator.reads) != 1 or any(self.trace.kinds[node] == "condition" for node in nodes):
            return None
        box = operator.box
        tensors = []
        for operand in operator.operands:
            if isinstance(operand, Read):
                tensors.append(shown)
                continue
            tensor = operand.compute(*(self.fixed[node] for node in operand.nodes))
            if tensor.ndim:
                tensor = tensor[:, :, :1].expand(box.height, box.width, 1, *tensor.shape[3:]).flatten(0, 1)
            tensors.append(tensor)
        args, kwargs = operator.arguments(tensors)
        self.patterns.update((node, self.fixed[node].clone()) for node in nodes)
        return operator.function(*args, **kwargs)

    # ---- making values

    def value_of(self, operator: Operator, layout: Layout, origin: tuple[int, int]) -> Value:
        box = operator.box
        sample = empty_cells(layout, operator.dtype)
        return Value(operator, layout, origin, (box.height, box.width), box, (), sample)

    def viewed(self, value: Value, layout: Layout, view: Callable[[Tensor], Tensor], node: fx.Node) -> Value:
        """The value through one more view of its cells; the cells are copied where torch cannot view them."""
        try:
            sample = view(value.sample)
        except RuntimeError:
            value = self.copied(value, node)
            sample = view(value.sample)
        return replace(value, layout=layout, views=(*value.views, view), sample=sample)

    def copied(self, value: Value, node: fx.Node) -> Value:
        """The value as an operator of its own."""
        return self.map(node, [value], torch.clone, layout=value.layout, dtype=value.sample.dtype)

    def map(
        self,
        node: fx.Node,
        operands: Sequence[Value | Constant | fx.Node],
        function: Callable[..., Any],
        arguments: Callable[[list[Tensor]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
        layout: Layout | None = None,
        dtype: torch.dtype | None = None,
        expand: bool = False,
        spread: Callable[[list[Tensor]], Tensor] | None = None,
    ) -> Value:
        """Add a function of single pixels; without a ``layout`` its operands broadcast as in the user's program."""
        values = [operand for operand in operands if isinstance(operand, Value)]
        first = values[0]
        broadcasts = layout is None  # else the function takes the features of its operands as they are
        layout = self.broadcast(node, values, self.shape(node)) if layout is None else layout
        reads: list[Read | Constant] = []
        align: list[tuple[int, ...]] = []
        for operand in operands:
            if isinstance(operand, Value):
                if operand.size != first.size:
                    raise self.error(node, f"combines {first.size} and {operand.size} pixels: it mixes pixels")
                shift = (first.origin[0] - operand.origin[0], first.origin[1] - operand.origin[1])
                # both are read at one tensor index: image coordinates differ by the difference of the origins
                reads.append(Read(operand, shift))
                align.append(_aligned(operand.layout, layout) if broadcasts else feature_sizes(operand.layout))
            else:
                reads.append(
                    operand if isinstance(operand, Constant) else self.constant(node, operand, layout, first.size)
                )
                align.append(())
        operator = Map(
            node, first.grid, feature_sizes(layout), dtype or node.meta["val"].dtype, reads, function, align=align
        )
        operator.expand = expand
        if arguments is not None:
            operator.arguments = arguments
        if spread is not None:
            operator.spread = spread
        self.operators.append(operator)
        for follow in _FOLLOWERS:
            follow(self, operator)
        return self.value_of(operator, layout, first.origin)

    def broadcast(self, node: fx.Node, operands: Sequence[Value], shape: tuple[int, ...]) -> Layout:
        """The layout of a pointwise result: every operand has batch, rows and columns in the same dimensions."""
        layouts = [operand.layout for operand in operands]
        result: list[Dim] = []
        for index, size in enumerate(shape):
            here = [_dim(layout, index - len(shape)) for layout in layouts]
            marked = {dim for dim in here if not is_feature(dim)}
            if len(marked) > 1 or (marked and any(is_feature(dim) for dim in here)):
                raise self.error(node, "combines different dimensions of the image: it mixes pixels")
            result.append(marked.pop() if marked else (size,))
        return tuple(result)

    def constant(self, node: fx.Node, argument: fx.Node, layout: Layout, size: tuple[int, int]) -> Constant:
        """A parameter or condition as an operand of a result with this layout."""
        shape = self.shape(argument)
        if not shape:
            return Constant((argument,), lambda tensor: tensor)
        padded = (1,) * (len(layout) - len(shape)) + shape
        batch_dim = next((i - len(layout) for i, dim in enumerate(layout) if dim == ("n",)), None)
        layout, padded = _apart(layout, padded, size)
        for dim, length in zip(layout, padded, strict=True):
            joined = not is_feature(dim) and len(dim) > 1
            if joined and (length != 1 or any(isinstance(atom, int) for atom in dim)):
                raise self.error(node, "broadcasts a parameter over joined dimensions")
        order = [next((i for i, dim in enumerate(layout) if dim == (axis,)), None) for axis in ("h", "w", "n")]
        features = [i for i, dim in enumerate(layout) if is_feature(dim)]
        whole_batch = order[2] is not None and padded[order[2]] > 1 and self.trace.kinds[argument] != "condition"
        if whole_batch and not self._same_for_all(argument, batch_dim):  # type: ignore[arg-type]
            raise self.error(node, "has a parameter that differs between the images of a batch")
        num_dims = len(layout)

        def compute(tensor: Tensor) -> Tensor:
            # the batch may be another one than that of the trace
            tensor = tensor.reshape([-1 if i == order[2] and length > 1 else length for i, length in enumerate(padded)])
            if whole_batch:
                tensor = tensor.narrow(order[2], 0, 1)  # type: ignore[arg-type]
            sizes = [1 if i is None else tensor.shape[i] for i in order] + [tensor.shape[i] for i in features]
            present = [i for i in (*order, *features) if i is not None]
            rest = [i for i in range(num_dims) if i not in present]  # joined dimensions of size one
            return tensor.permute(*present, *rest).reshape(sizes)

        return Constant((argument,), compute)

    def _same_for_all(self, argument: fx.Node, dim: int) -> bool:
        tensor = self.fixed[argument]
        return bool((tensor == tensor.narrow(dim, 0, 1)).all())


def _apart(layout: Layout, shape: tuple[int, ...], size: tuple[int, int]) -> tuple[Layout, tuple[int, ...]]:
    """Layout and shape of a constant with dimensions that join rows and columns taken apart."""
    dims: list[Dim] = []
    sizes: list[int] = []
    for dim, length in zip(layout, shape, strict=True):
        joined = dim == ("h", "w")
        dims += [("h",), ("w",)] if joined else [dim]
        sizes += [*(size if length > 1 else (1, 1))] if joined else [length]
    return tuple(dims), tuple(sizes)


def _dim(layout: Layout, index: int) -> Dim:
    """Dimension ``index`` (negative) or one of size one."""
    return layout[index] if -index <= len(layout) else (1,)


def _aligned(layout: Layout, result: Layout) -> tuple[int, ...]:
    """Feature axes of an operand, with ones where the result has more."""
    sizes: list[int] = []
    for index in range(-len(result), 0):
        dim, target = _dim(layout, index), result[index]
        axes = [atom for atom in dim if isinstance(atom, int)]
        wanted = sum(isinstance(atom, int) for atom in target)
        sizes += axes if len(axes) == wanted else [1] * wanted
    return tuple(sizes)
