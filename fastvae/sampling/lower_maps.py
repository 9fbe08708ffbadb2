"""Functions of single pixels: pointwise operators, and reductions and normalisations over features."""

from typing import Any

import torch
from torch import Tensor, fx

from .axes import Layout, feature_sizes, is_feature
from .graph import Constant, Value
from .lowering import Lowering, arguments_of, handles

__all__: list[str] = []

aten = torch.ops.aten


@handles("pointwise")
def _pointwise(low: Lowering, node: fx.Node) -> Value:
    if node.target is aten._to_copy.default:
        value = low.spatial(node, node.args[0])
        dtype = node.meta["val"].dtype
        if dtype == value.sample.dtype:
            return value
        return low.map(node, [value], _cast, layout=value.layout, dtype=dtype)
    sources = list(node.all_input_nodes)
    operands = [low.values.get(source, source) for source in sources]
    for operand in operands:
        if isinstance(operand, list):
            raise low.error(node, "takes several tensors as one")
    function: Any = node.target

    def arguments(tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        by_node = dict(zip(sources, tensors, strict=True))
        return fx.map_arg((node.args, dict(node.kwargs)), lambda n: by_node[n])

    return low.map(node, operands, function, arguments)


@handles(aten._to_copy.default)
def _to_copy(low: Lowering, node: fx.Node) -> Value:
    return _pointwise(low, node)


def _cast(cells: Tensor, *, out: Tensor) -> Tensor:
    return out.copy_(cells)


# operators over one or more dimensions: positions of the dimensions and of keepdim among the arguments
_OVER_DIMS: dict[Any, tuple[int, int | None]] = {
    aten._softmax.default: (1, None),
    aten._safe_softmax.default: (1, None),
    aten._log_softmax.default: (1, None),
    aten.cumsum.default: (1, None),
    aten.glu.default: (1, None),
    aten.sum.dim_IntList: (1, 2),
    aten.mean.dim: (1, 2),
    aten.amax.default: (1, 2),
    aten.amin.default: (1, 2),
    aten.logsumexp.default: (1, 2),
    aten.var.correction: (1, None),
}


@handles(*_OVER_DIMS)
def _over_dims(low: Lowering, node: fx.Node) -> Value:
    value = low.spatial(node, node.args[0])
    where, keep = _OVER_DIMS[node.target]
    given: Any = arguments_of(node, None, -1 if node.target is aten.glu.default else None)[where]
    dims = [given] if isinstance(given, int) else list(given or range(len(value.layout)))
    dims = [dim % len(value.layout) for dim in dims]
    if not all(is_feature(value.layout[dim]) for dim in dims):
        raise low.error(node, "works over rows, columns or images: every pixel would depend on all pixels")
    axes = [len(feature_sizes(value.layout[:dim])) - len(feature_sizes(value.layout)) for dim in dims]
    kept = bool(node.kwargs.get("keepdim", node.args[keep] if keep is not None and len(node.args) > keep else False))
    reduces = keep is not None or node.target is aten.var.correction
    layout: Layout = value.layout
    if reduces:
        layout = tuple((1,) if i in dims else d for i, d in enumerate(layout) if kept or i not in dims)
    elif node.target is aten.glu.default:
        layout = tuple((low.shape(node)[i],) if i in dims else d for i, d in enumerate(layout))
    new = list(node.args)
    if len(new) > where:
        new[where] = axes if isinstance(given, list | tuple) or given is None else axes[0]

    def arguments(tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (tensors[0], *new[1:]), dict(node.kwargs)

    function: Any = node.target

    def spread(tensors: list[Tensor]) -> Tensor:
        if node.target is aten.glu.default:
            return sum(tensors[0].chunk(2, axes[0]))  # type: ignore[return-value]
        most = tensors[0].amax(axes, keepdim=kept or not reduces)
        return most if reduces else most.expand_as(tensors[0])

    return low.map(node, [value], function, arguments, layout, spread=spread)


@handles(aten.native_layer_norm.default)
def _layer_norm(low: Lowering, node: fx.Node) -> list[Value | None]:
    source, sizes, *parameters, eps = arguments_of(node)
    value = low.spatial(node, source)
    count = len(sizes)
    if not all(is_feature(dim) for dim in value.layout[-count:]):
        raise low.error(node, "normalises over rows, columns or images: every pixel would depend on all pixels")
    given = [low.require_fixed(node, p) for p in parameters]
    present = [p for p in given if p is not None]

    def arguments(tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest = iter(tensors[1:])
        weight, bias = (None if p is None else next(rest).reshape(sizes) for p in given)
        return (tensors[0], sizes, weight, bias, eps), {}

    dtype = node.meta["val"][0].dtype
    axes = tuple(range(-len(feature_sizes(value.layout[-count:])), 0))
    result = low.map(
        node, [value, *present], torch.layer_norm, arguments, value.layout, dtype,
        spread=lambda tensors: tensors[0].amax(axes, keepdim=True).expand_as(tensors[0]),
    )  # fmt: skip
    return [result, None, None]  # the statistics are for the backward pass


@handles(aten.embedding.default)
def _embedding(low: Lowering, node: fx.Node) -> Value:
    table = low.require_fixed(node, node.args[0])
    value = low.spatial(node, node.args[1])
    layout = (*value.layout, (low.shape(node)[-1],))
    rows, width = low.shape(table)

    def arguments(tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        index, weight = tensors
        return (weight.reshape(rows, width), index), {}

    operand = Constant((table,), lambda tensor: tensor[None, None, None])
    dtype = node.meta["val"].dtype
    return low.map(
        node, [value, operand], torch.embedding, arguments, layout, dtype, spread=lambda t: t[0].unsqueeze(-1)
    )
