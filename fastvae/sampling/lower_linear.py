"""Convolutions and linear layers: a matrix for every tap with a non-zero weight."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from .axes import feature_sizes, image_layout, is_feature
from .graph import Box, Linear, Read, Value
from .lower_strides import places
from .lower_unfold import taps_of
from .lowering import Lowering, arguments_of, handles

__all__ = ["batched_product"]

aten = torch.ops.aten


@handles(aten.convolution.default)
def _convolution(low: Lowering, node: fx.Node) -> Value:
    source, weight, bias, stride, padding, dilation, transposed, _, groups = arguments_of(node)
    value = low.spatial(node, source)
    weight, bias = low.require_fixed(node, weight), low.require_fixed(node, bias)
    if len(low.shape(node)) != 4:
        raise low.error(node, "is not two-dimensional, which is not planned")
    channels = low.shape(source)[1]
    if value.layout != image_layout(channels):
        raise low.error(node, "convolves something else than (N, C, H, W)")
    rows, columns = low.shape(weight)[2:]
    out_channels = low.shape(node)[1]

    def matrices(tensor: Tensor) -> Tensor:
        """(C_out, C_in / groups, rows, columns) or, transposed, (C_in, C_out / groups, ...) -> (taps, C_in, C_out)."""
        flat = tensor.flatten(2).permute(2, 0, 1) if transposed else tensor.flatten(2).permute(2, 1, 0)
        if groups == 1:
            return flat
        result = flat.new_zeros(rows * columns, channels, out_channels)
        for inputs, outputs in zip(
            torch.arange(channels).chunk(groups), torch.arange(out_channels).chunk(groups), strict=True
        ):
            block = flat[:, inputs] if transposed else flat[:, :, outputs]
            result[:, inputs[:, None], outputs] = block  # zeros between groups
        return result

    macs = rows * columns * channels // groups * out_channels
    if transposed or any(s != 1 for s in stride):
        box = Box(0, low.shape(node)[2], 0, low.shape(node)[3])
        along = [
            places(box_size, value.origin[axis], size, stride[axis], padding[axis], dilation[axis], transposed)
            for axis, box_size, size in ((0, box.height, rows), (1, box.width, columns))
        ]
        reads = [Read(value, places=(above, left)) for above, left in product(*along)]
        macs = macs // (stride[0] * stride[1]) if transposed else macs
        return _linear(low, node, reads, weight, bias, matrices, box, macs, image_layout(out_channels))
    # the origin of the result is that of its input, so image pixel P reads P + dilation * tap - padding
    height, width = low.shape(node)[2:]
    (row, column) = value.origin
    box = Box(-row, height - row, -column, width - column)
    row_offsets = [dilation[0] * u - padding[0] for u in range(rows)]
    column_offsets = [dilation[1] * v - padding[1] for v in range(columns)]
    reads = [Read(value, offset) for offset in product(row_offsets, column_offsets)]
    return _linear(low, node, reads, weight, bias, matrices, box, macs, image_layout(out_channels))


@handles(aten.mm.default)
def _mm(low: Lowering, node: fx.Node) -> Value:
    source, weight = arguments_of(node)
    return _matrix_product(low, node, source, weight, None)


@handles(aten.addmm.default)
def _addmm(low: Lowering, node: fx.Node) -> Value:
    bias, source, weight = arguments_of(node)
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
        raise low.error(node, "scales its terms")
    if low.shape(bias)[-1:] != low.shape(node)[-1:] or torch.Size(low.shape(bias)[:-1]).numel() != 1:
        raise low.error(node, "adds something else than one bias for each feature")
    return _matrix_product(low, node, source, weight, bias)


def _matrix_product(low: Lowering, node: fx.Node, source: Any, weight: Any, bias: Any) -> Value:
    value = low.spatial(node, source)
    weight, bias = low.require_fixed(node, weight), low.require_fixed(node, bias)
    if sorted(map(str, value.layout[0])) != ["h", "n", "w"] or not is_feature(value.layout[1]):
        raise low.error(node, "multiplies a matrix with something else than (pixels, features)")
    layout = (value.layout[0], (low.shape(node)[1],))
    macs = low.shape(weight)[0] * low.shape(weight)[1]
    unfolded = taps_of(low, value)
    if unfolded is not None:
        reads, inputs = unfolded
        return _linear(
            low, node, reads, weight, bias, lambda tensor: tensor[inputs.to(tensor.device)], value.grid, macs, layout
        )
    return _linear(low, node, [Read(value)], weight, bias, lambda tensor: tensor[None], value.grid, macs, layout)


def batched_product(low: Lowering, node: fx.Node) -> Value:
    """A product with one matrix for all pixels: what torch makes of a linear layer whose weight has no gradient."""
    left, right = arguments_of(node)
    is_left = low.trace.kinds[left] == "spatial"
    value = low.spatial(node, left if is_left else right)
    weight = low.require_fixed(node, right if is_left else left)
    pixels, features = (1, 2) if is_left else (2, 1)
    places_of = (*value.layout[0], *value.layout[pixels])
    if sorted(map(str, places_of)) != ["h", "n", "w"] or not is_feature(value.layout[features]):
        raise low.error(node, "multiplies a matrix with something else than (pixels, features)")
    if not bool((low.fixed[weight] == low.fixed[weight][:1]).all()):
        raise low.error(node, "multiplies different pixels with different matrices")
    layout = list(value.layout)
    layout[features] = (low.shape(node)[features],)
    macs = low.shape(weight)[1] * low.shape(weight)[2]

    def matrices(tensor: Tensor) -> Tensor:
        """(repeats, C_in, C_out), or its transpose -> (1, C_in, C_out)."""
        return tensor[:1] if is_left else tensor[:1].transpose(1, 2)

    return _linear(low, node, [Read(value)], weight, None, matrices, value.grid, macs, tuple(layout))


def _linear(
    low: Lowering,
    node: fx.Node,
    reads: Sequence[Read],
    weight: fx.Node,
    bias: fx.Node | None,
    matrices: Any,
    box: Box,
    macs: int,
    layout: Any,
) -> Value:
    alive = matrices(low.fixed[weight]).ne(0).flatten(1).any(1).tolist()
    taps = [(key, read) for key, read in enumerate(reads) if alive[key]]
    features = feature_sizes(layout)
    operator = Linear(node, box, features, node.meta["val"].dtype, taps, weight, bias, matrices, alive, macs)
    low.operators.append(operator)
    return low.value_of(operator, layout, (-box.top, -box.left))
