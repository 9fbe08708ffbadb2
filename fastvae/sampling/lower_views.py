"""Views, crops, pads and shifts: they move origins and dimensions and compute nothing."""

import operator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from .axes import Dim, Layout, feature_sizes, is_feature, regroup, simplify
from .graph import Box, Constant, Value
from .lower_strides import every
from .lowering import Lowering, arguments_of, handles

__all__: list[str] = []

aten = torch.ops.aten


@handles(aten.alias.default, aten.detach.default, aten.clone.default, aten.contiguous.default, aten.lift_fresh.default)
def _same(low: Lowering, node: fx.Node) -> Value:
    return low.spatial(node, node.args[0])


@handles(aten.copy.default)  # a write into a slice: the destination only gives the shape and the dtype
def _copy(low: Lowering, node: fx.Node) -> Value:
    source = low.spatial(node, node.args[1])
    if low.shape(node) != low.shape(node.args[1]):
        raise low.error(node, "broadcasts in an assignment")
    dtype = node.meta["val"].dtype
    return source if source.sample.dtype == dtype else low.map(node, [source], _cast, layout=source.layout, dtype=dtype)


def _cast(cells: Tensor, *, out: Tensor) -> Tensor:
    return out.copy_(cells)


@handles(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.expand.default,
)
def _view(low: Lowering, node: fx.Node) -> Value:
    value, shape = low.spatial(node, node.args[0]), low.shape(node)
    if torch.Size(shape).numel() != torch.Size(low.shape(node.args[0])).numel():
        raise low.error(node, "repeats the image")
    extent = {"n": low.batch, "h": value.size[0], "w": value.size[1]}
    layout = regroup(value.layout, extent, shape)
    if layout is None:
        raise low.error(node, f"views {low.shape(node.args[0])} as {shape}, which cuts through pixels")
    return low.viewed(value, layout, partial(_reshape, sizes=feature_sizes(layout)), node)


def _reshape(cells: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return cells.view(*cells.shape[:2], *sizes)


@handles(aten.permute.default, aten.transpose.int, aten.t.default)
def _permute(low: Lowering, node: fx.Node) -> Value:
    value = low.spatial(node, node.args[0])
    count = len(value.layout)
    order = list(range(count))
    if node.target is aten.permute.default:
        order = [dim % count for dim in arguments_of(node)[1]]
    else:
        _, first, second = arguments_of(node, None, 0, 1)
        order[first % count], order[second % count] = order[second % count], order[first % count]
    starts, axis = [], 2
    for dim in value.layout:
        starts.append(axis)
        axis += len(feature_sizes((dim,)))
    layout = tuple(value.layout[dim] for dim in order)
    axes = [starts[dim] + i for dim in order for i in range(len(feature_sizes((value.layout[dim],))))]
    if axes == sorted(axes):
        return replace(value, layout=layout)
    return low.viewed(value, layout, partial(torch.permute, dims=(0, 1, *axes)), node)


@handles(aten.slice.Tensor)
def _slice(low: Lowering, node: fx.Node) -> Value:
    value = low.spatial(node, node.args[0])
    dim, start, end, step = _slice_arguments(low.shape(node.args[0]), *arguments_of(node)[1:])
    if step != 1:
        return every(low, node, value, dim, start, step)
    return _cropped(low, node, value, dim, start, end)


@handles(aten.select.int)
def _select(low: Lowering, node: fx.Node) -> Value:
    _, dim, index = arguments_of(node)
    return _selected(low, node, dim, index)


def _selected(low: Lowering, node: fx.Node, dim: int, index: int) -> Value:
    value = low.spatial(node, node.args[0])
    dim %= len(value.layout)
    if not is_feature(value.layout[dim]):
        raise low.error(node, "takes one row, column or image out of the tensor")
    layout = tuple(d for i, d in enumerate(value.layout) if i != dim)
    index %= feature_sizes((value.layout[dim],))[0]
    return low.viewed(value, layout, partial(torch.select, dim=_axis(value.layout, dim), index=index), node)


@handles(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def _split(low: Lowering, node: fx.Node) -> list[Value]:
    value = low.spatial(node, node.args[0])
    dim = arguments_of(node, None, None, 0)[2] % len(value.layout)
    results, start = [], 0
    for part in node.meta["val"]:
        results.append(_cropped(low, node, value, dim, start, start + part.shape[dim]))
        start += part.shape[dim]
    return results


@handles(aten.unbind.int)
def _unbind(low: Lowering, node: fx.Node) -> list[Value]:
    _, dim = arguments_of(node, None, 0)
    return [_selected(low, node, dim, index) for index in range(len(node.meta["val"]))]


@handles(operator.getitem)
def _getitem(low: Lowering, node: fx.Node) -> Any:
    source, index = arguments_of(node)
    return low.values[source][index]


@handles(aten.constant_pad_nd.default)
def _pad(low: Lowering, node: fx.Node) -> Value:
    source, pads, fill = arguments_of(node, None, None, 0.0)
    value = low.spatial(node, source)
    for index in range(len(pads) // 2):
        before, after = pads[2 * index : 2 * index + 2]
        if before or after:
            value = _padded(low, node, value, len(value.layout) - 1 - index, before, after)
    if fill == 0:
        return value
    return _filled(low, node, value, fill)


@handles(aten.cat.default)
def _cat(low: Lowering, node: fx.Node) -> Value:
    parts, dim = arguments_of(node, None, 0)
    dim %= len(low.shape(node))
    first = next(low.values[part] for part in parts if part in low.values)
    if not is_feature(first.layout[dim]):
        return _joined(low, node, parts, dim)
    operands = [low.values.get(part, part) for part in parts]
    layout = tuple((low.shape(node)[i],) if is_feature(d) else d for i, d in enumerate(first.layout))
    axis = _axis(layout, dim) - 2 - len(feature_sizes(layout))
    return low.map(
        node, operands, torch.cat, lambda tensors: ((tensors,), {"dim": axis}), layout, first.sample.dtype, expand=True,
        spread=partial(torch.cat, dim=axis),
    )  # fmt: skip


@handles(aten.stack.default)
def _stack(low: Lowering, node: fx.Node) -> Value:
    parts, dim = arguments_of(node, None, 0)
    dim %= len(low.shape(node))
    if any(part not in low.values for part in parts):
        raise low.error(node, "stacks the image with parameters; use cat")
    first = low.values[parts[0]]
    layout = (*first.layout[:dim], (len(parts),), *first.layout[dim:])
    axis = _axis(layout, dim) - 2 - len(feature_sizes(layout))
    return low.map(
        node,
        [low.values[part] for part in parts],
        torch.stack,
        lambda t: ((t,), {"dim": axis}),
        layout,
        first.sample.dtype,
        spread=partial(torch.stack, dim=axis),
    )


@handles(aten.slice_scatter.default)
def _slice_scatter(low: Lowering, node: fx.Node) -> Value:
    base, source = node.args[0], low.spatial(node, node.args[1])
    if not low.is_zero(base):
        raise low.error(node, "assigns into a slice of a tensor that is not all zeros")
    dim, start, end, step = _slice_arguments(low.shape(node), *arguments_of(node)[2:])
    if step != 1:
        raise low.error(node, "assigns every second row, column or channel")
    return _padded(low, node, source, dim, start, low.shape(node)[dim] - end)


def _slice_arguments(
    shape: tuple[int, ...], dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> tuple[int, int, int, int]:
    """Dimension, start, end and step without defaults and negative numbers."""
    dim %= len(shape)
    first, last, step = slice(start, end, step).indices(shape[dim])
    return dim, first, max(first, last), step


def _axis(layout: Layout, dim: int) -> int:
    """The axis of a feature dimension in cells (cells, batch, *features)."""
    return 2 + len(feature_sizes(layout[:dim]))


def _cropped(low: Lowering, node: fx.Node, value: Value, dim: int, start: int, end: int) -> Value:
    """``value[start:end]`` along one dimension."""
    name, grid = value.layout[dim], value.grid
    rows, columns = value.size
    if name == ("h",):
        box = Box(grid.top + start, grid.top + end, grid.left, grid.right) & value.box
        return replace(value, origin=(value.origin[0] - start, value.origin[1]), size=(end - start, columns), box=box)
    if name == ("w",):
        box = Box(grid.top, grid.bottom, grid.left + start, grid.left + end) & value.box
        return replace(value, origin=(value.origin[0], value.origin[1] - start), size=(rows, end - start), box=box)
    if name == ("n",):
        if end - start != low.batch:
            raise low.error(node, "takes some images of the batch")
        return value
    if not is_feature(name):
        raise low.error(node, "cuts a dimension that joins pixels")
    layout = (*value.layout[:dim], (end - start,), *value.layout[dim + 1 :])
    view = partial(torch.narrow, dim=_axis(layout, dim), start=start, length=end - start)
    return low.viewed(value, layout, view, node)


def _padded(low: Lowering, node: fx.Node, value: Value, dim: int, before: int, after: int) -> Value:
    """Zeros before and after along one dimension; negative amounts crop."""
    if before < 0 or after < 0:
        sizes: dict[Dim, int] = {("h",): value.size[0], ("w",): value.size[1], ("n",): low.batch}
        if value.layout[dim] not in sizes and not is_feature(value.layout[dim]):
            raise low.error(node, "shifts a dimension that joins pixels")
        size = sizes[value.layout[dim]] if value.layout[dim] in sizes else feature_sizes((value.layout[dim],))[0]
        value = _cropped(low, node, value, dim, max(0, -before), size - max(0, -after))
        before, after = max(0, before), max(0, after)
    (row, column), (rows, columns) = value.origin, value.size
    name = value.layout[dim]
    if name == ("h",):
        return replace(value, origin=(row + before, column), size=(rows + before + after, columns))
    if name == ("w",):
        return replace(value, origin=(row, column + before), size=(rows, columns + before + after))
    if not is_feature(name):
        raise low.error(node, "pads the batch or a dimension that joins pixels")
    length = feature_sizes((name,))[0] + before + after
    layout = (*value.layout[:dim], simplify((length,)), *value.layout[dim + 1 :])
    after_it = len(feature_sizes(value.layout[dim + 1 :]))
    pads = [0, 0] * after_it + [before, after]
    return low.map(
        node, [value], torch.constant_pad_nd, lambda t: ((t[0], pads), {}), layout, value.sample.dtype,
        spread=lambda t: torch.constant_pad_nd(t[0], pads),
    )  # fmt: skip


def _filled(low: Lowering, node: fx.Node, value: Value, fill: Any) -> Value:
    """A pad by a number: zeros plus the number outside the operator's own pixels."""
    grid, box = value.grid, value.box

    def outside() -> Tensor:
        number = torch.full((grid.height, grid.width), fill, dtype=value.sample.dtype, device=low.device)
        number[box.top - grid.top : box.bottom - grid.top, box.left - grid.left : box.right - grid.left] = 0
        return number.reshape(grid.height, grid.width, 1, *(1 for _ in feature_sizes(value.layout)))

    return low.map(node, [value, Constant((), outside)], torch.add, layout=value.layout, dtype=value.sample.dtype)


def _joined(low: Lowering, node: fx.Node, parts: list[fx.Node], dim: int) -> Value:
    """Concatenation along rows or columns: the sum of the parts, each with zeros where the others are."""
    shape, start, total = low.shape(node), 0, []
    for part in parts:
        size = low.shape(part)[dim]
        if part in low.values:
            total.append(_padded(low, node, low.values[part], dim, start, shape[dim] - start - size))
        elif not low.is_zero(part):
            raise low.error(node, "joins the image with rows or columns of parameters that are not zero")
        start += size
    result = total[0]
    for other in total[1:]:
        result = low.map(node, [result, other], torch.add, layout=result.layout, dtype=result.sample.dtype)
    return result
