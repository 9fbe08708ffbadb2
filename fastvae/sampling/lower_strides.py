"""Strides: operators whose result has other rows and columns than what they read."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from .axes import Layout, feature_sizes, image_layout, is_feature
from .graph import NOWHERE, Box, Map, Read, Value
from .lowering import Lowering, handles

__all__ = ["every", "places"]

aten = torch.ops.aten


def places(
    count: int, origin: int, taps: int, stride: int, padding: int, dilation: int, transposed: bool
) -> list[NDArray[np.int64]]:
    """For each tap of a strided convolution the row (or column) that each of ``count`` rows of the result reads.

    Args:
        count: rows of the result, which has its origin at row 0.
        origin: of the tensor that is read.
        taps: rows of the kernel.
        stride, padding, dilation: in rows.
        transposed: whether the result has the more rows of the two.
    """
    index = np.arange(count)
    result = []
    for tap in range(taps):
        row = index + padding - dilation * tap if transposed else stride * index - padding + dilation * tap
        if transposed:
            row = np.where(row % stride == 0, row // stride, NOWHERE)
        result.append(np.where(row < 0, NOWHERE, row - origin))
    return result


def every(low: Lowering, node: fx.Node, value: Value, dim: int, start: int, step: int) -> Value:
    """``value[start::step]`` along rows, columns or features."""
    name, count = value.layout[dim], low.shape(node)[dim]
    if is_feature(name):
        layout = (*value.layout[:dim], (count,), *value.layout[dim + 1 :])
        axis = 2 + len(feature_sizes(layout[:dim]))
        view = partial(_taken, axis=axis, start=start, step=step)
        return low.viewed(value, layout, view, node)
    if name not in (("h",), ("w",)):
        raise low.error(node, "takes every second image or pixel")
    rows, columns = np.arange(value.size[0]), np.arange(value.size[1])
    chosen = start + step * np.arange(count)
    rows, columns = (chosen, columns) if name == ("h",) else (rows, chosen)
    return _moved(low, node, value, rows, columns, value.layout)


def _taken(cells: Tensor, axis: int, start: int, step: int) -> Tensor:
    return cells[(slice(None),) * axis + (slice(start, None, step),)]


@handles(aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec)
def _nearest(low: Lowering, node: fx.Node) -> Value:
    value = low.spatial(node, node.args[0])
    height, width = low.shape(node)[2:]
    if value.layout != image_layout(low.shape(node)[1]) or height % value.size[0] or width % value.size[1]:
        raise low.error(node, "enlarges something else than (N, C, H, W) by a whole number")
    rows = np.arange(height) // (height // value.size[0])
    columns = np.arange(width) // (width // value.size[1])
    return _moved(low, node, value, rows, columns, value.layout)


def _moved(
    low: Lowering,
    node: fx.Node,
    value: Value,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    layout: Layout,
) -> Value:
    """A copy of some rows and columns of a tensor."""
    where: Any = (rows - value.origin[0], columns - value.origin[1])
    features = feature_sizes(value.layout)
    operator = Map(
        node, Box(0, len(rows), 0, len(columns)), features, value.sample.dtype, [Read(value, places=where)],
        torch.clone, align=[features],
    )  # fmt: skip
    low.operators.append(operator)
    return low.value_of(operator, layout, (0, 0))
