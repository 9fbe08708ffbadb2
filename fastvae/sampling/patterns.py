"""What the persistent kernels recognise in a plan: activations, sums, 1x1 layers, biases, the way into the image."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .graph import Box, Constant, Linear, Map, Operator, Read
from .plan import Plan

__all__ = [
    "Layer",
    "MismatchError",
    "Offset",
    "activation_of",
    "affine",
    "image_box",
    "moved",
    "operands",
    "packed_bias",
    "packed_matrices",
    "read_of",
    "require",
    "residual_of",
    "wide",
]

Offset = tuple[int, int]
Values = dict[fx.Node, Tensor]

aten = torch.ops.aten
ACTIVATIONS = {aten.relu.default: "relu", aten.elu.default: "elu", aten.tanh.default: "tanh"}
_SUMS = (aten.add.Tensor, aten.add_.Tensor)


class MismatchError(Exception):
    """The net is not of the form that a kernel computes; the message says where."""


def require(condition: Any, reason: str) -> None:
    """Raise the reason unless the condition holds."""
    if not condition:
        raise MismatchError(reason)


def image_box(plan: Plan) -> Box:
    """All pixels of the image."""
    return Box(0, plan.height, 0, plan.width)


def read_of(plan: Plan, read: Read, *, views: bool = False) -> Operator:
    """The operator behind a read of the very same pixel."""
    require(read.offset == (0, 0), "reads shifted pixels outside of its convolutions")
    require(_everywhere(read), "orders the channels of a pixel")
    require(views or not read.value.views, "splits, joins or permutes channels")
    box = image_box(plan)
    require(read.value.box & box == box, "crops what it reads")
    return read.value.operator


def _everywhere(read: Read) -> bool:
    """Whether all pixels read alike."""
    return getattr(read, "mask", None) is None


def operands(op: Operator, functions: Any, reason: str) -> list[Read | Constant]:
    """What a pointwise operator takes, if it is one of these functions without further arguments."""
    require(isinstance(op, Map) and op.function in functions, reason)
    assert isinstance(op, Map)
    require(not op.node.kwargs and all(isinstance(each, fx.Node) for each in op.node.args), reason)
    return list(op.operands)


def activation_of(op: Operator) -> str | None:
    """The name of an activation, None for any other operator; an ELU has no options but ones."""
    kind = ACTIVATIONS.get(getattr(op, "function", None))  # type: ignore[arg-type]
    options = [*op.node.args[1:], *op.node.kwargs.values()]
    return kind if all(each == 1 for each in options) and (kind == "elu" or not options) else None


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or 1x1 layer, and what is added to it at every pixel (a condition, a position).

    Attributes:
        op: the layer.
        added: constants, and the pixels of the image that their first row and column and so on belong to.
        shift: where the layer is read.
        taps: its live taps, offset -> key.
    """

    op: Linear
    added: list[tuple[Constant, Box]] = field(default_factory=list)
    shift: Offset = (0, 0)

    @property
    def taps(self) -> dict[Offset, int]:
        return {read.offset: key for key, read in self.op.taps}

    @property
    def width(self) -> int:
        return self.op.features[0]

    def source(self, plan: Plan) -> Operator | None:
        """The operator that all taps read, shown as it is and zero outside of the image; None if there is no tap."""
        reads = self.op.reads
        if not reads:
            return None
        value = reads[0].value
        require(not value.views, "splits, joins or permutes channels before a convolution")
        require(all(map(_everywhere, reads)), "orders the channels of a pixel")
        require(value.box == image_box(plan), "pads a convolution with something else than zeros at the border")
        require(self.op.box & image_box(plan) == image_box(plan), "convolves a part of the image")
        return value.operator

    def one_source(self, plan: Plan, what: str) -> Operator:
        """The operator that a 1x1 layer, read where it is, reads."""
        require(self.shift == (0, 0), f"shifts {what}")
        require(set(self.taps) <= {(0, 0)}, f"has a convolution of several pixels where {what} is expected")
        source = self.source(plan)
        require(source is not None, f"{what} has no live weight")
        assert source is not None
        return source

    @classmethod
    def of(cls, plan: Plan, op: Operator, what: str, shift: Offset = (0, 0)) -> "Layer":
        """The layer whose result, with constants added to it, ``op`` is, read at ``shift``."""
        added: list[tuple[Constant, Box]] = []
        while isinstance(op, Map) and op.function in _SUMS:
            pair = operands(op, _SUMS, "scales a sum")
            constants = [each for each in pair if isinstance(each, Constant)]
            reads = [each for each in pair if isinstance(each, Read)]
            if len(constants) != 1 or len(reads) != 1:
                break
            (read,) = reads
            added.append((constants[0], moved(op.box, (-shift[0], -shift[1]))))
            shift, op = (shift[0] + read.offset[0], shift[1] + read.offset[1]), read.value.operator
            window = moved(image_box(plan), shift)
            require(not read.value.views, "splits, joins or permutes channels")
            require(read.value.box & window == window, "shifts a layer without its bias")
        require(isinstance(op, Linear), f"has {_name(op)} where {what} is expected")
        assert isinstance(op, Linear)
        return cls(op, added, shift)


def moved(box: Box, offset: Offset) -> Box:
    """The box that the pixels of ``box`` read at ``offset``."""
    return Box(box.top + offset[0], box.bottom + offset[0], box.left + offset[1], box.right + offset[1])


def residual_of(plan: Plan, op: Operator) -> tuple[Operator, Operator] | None:
    """The two operators that are summed, the one that is computed first in front; None if it is no such sum."""
    if not isinstance(op, Map) or op.function not in _SUMS:
        return None
    pair = operands(op, _SUMS, "scales a sum")
    if len(pair) != 2 or not all(isinstance(each, Read) for each in pair):
        return None
    both = [read_of(plan, each) for each in pair if isinstance(each, Read)]
    both.sort(key=plan.operators.index)
    return both[0], both[1]


def affine(plan: Plan, op: Operator) -> tuple[float, float]:
    """(scale, shift) such that ``op`` is scale * x + shift for every value x of the image."""
    chain: list[Map] = []
    while op is not plan.pixels:
        require(isinstance(op, Map), "puts more than a scale between the image and its first layer")
        assert isinstance(op, Map)
        require(all(isinstance(each, Read) for each in op.operands), "adds parameters to the image")
        require(len(op.operands) == 1, "puts more than a scale between the image and its first layer")
        chain.append(op)
        op = read_of(plan, op.reads[0])
    points = []
    for x in (0.0, 1.0, 2.0, 5.0):
        cells = torch.full((1, 1, *plan.pixels.features), x, dtype=plan.pixels.dtype)
        for step in reversed(chain):
            args, kwargs = step.arguments([cells.view(1, 1, *step.align[0])])
            cells = _apply(step, args, kwargs)
        points.append(cells.double())
    shift, scale = points[0].flatten()[0], (points[1] - points[0]).flatten()[0]
    for x, found in zip((0.0, 1.0, 2.0, 5.0), points, strict=True):
        expected = torch.full_like(found, float(scale * x + shift))
        fits = found.numel() == plan.pixels.features[0] and torch.allclose(found, expected, rtol=1e-2, atol=1e-6)
        require(fits, "puts something else than one scale and shift between the image and its first layer")
    return float(scale), float(shift)


def _apply(op: Map, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    out = torch.empty((1, 1, *op.features), dtype=op.dtype)
    try:
        return out.copy_(op.function(*args, **kwargs))
    except TypeError:  # a function that only writes into out
        op.function(*args, **kwargs, out=out)
        return out


def wide(*layers: Layer) -> int:
    """The channels of a kernel for these layers: a power of two of at least 16."""
    return max(16, *(1 << (layer.width - 1).bit_length() for layer in layers))


def packed_matrices(layer: Layer, offsets: list[Offset], values: Values, size_in: int, size_out: int) -> Tensor:
    """(taps, size_in, size_out) in the order of ``offsets``, zero where the layer has no tap or no channel."""
    matrices = layer.op.matrices(values[layer.op.weight]).detach()
    result = matrices.new_zeros(len(offsets), size_in, size_out)
    keys = [(place, layer.taps[offset]) for place, offset in enumerate(offsets) if offset in layer.taps]
    if keys:
        places, found = (list(each) for each in zip(*keys, strict=True))
        result[places, : matrices.shape[1], : matrices.shape[2]] = matrices[found]
    return result


def packed_bias(layer: Layer, values: Values, plan: Plan, batch: int, size: int) -> Tensor:
    """(pixels or 1, images or 1, size) float32: the bias and all constants that are added."""
    width = layer.width
    total: Tensor = torch.zeros(1, 1, width, device=values[layer.op.weight].device)
    if layer.op.bias is not None:
        total = total + values[layer.op.bias].detach().reshape(-1).float()
    for constant, box in layer.added:
        tensor = constant.compute(*(values[node] for node in constant.nodes)).detach().float()
        if tensor.ndim:
            tensor = tensor[:, :, :batch]  # a single image is traced as two
            if tensor.shape[:2] != (1, 1):
                tensor = tensor.expand(box.height, box.width, *tensor.shape[2:])
                tensor = tensor[-box.top : plan.height - box.top, -box.left : plan.width - box.left]
            tensor = tensor.flatten(0, 1)
        total = total + tensor
    return torch.nn.functional.pad(total, (0, size - width))


def _name(op: Operator) -> str:
    return str(op.node.target) if isinstance(op, Map) else type(op).__name__
