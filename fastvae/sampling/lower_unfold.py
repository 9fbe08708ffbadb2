"""Unfold, cut, multiply: a convolution whose taps differ from pixel to pixel (locally masked convolution)."""

from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, fx

from .axes import image_layout
from .graph import Box, Map, Read, Value
from .lowering import Lowering, arguments_of, follows, handles

__all__ = ["Unfolded", "taps_of"]

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Unfolded:
    """What the features of an operator are: those of pixels around, or zero.

    Attributes:
        source: the value that was unfolded, C features.
        offsets: of the taps.
        index: (1, 1, *features) channel * taps + tap of each feature.
        alive: (pixels, 1, *features) bool: where it is not zero.
    """

    source: Value
    offsets: list[tuple[int, int]]
    index: Tensor
    alive: Tensor


@handles(aten.im2col.default)
def _im2col(low: Lowering, node: fx.Node) -> Value:
    source, kernel, dilation, padding, stride = arguments_of(node)
    value = low.spatial(node, source)
    channels = low.shape(source)[1]
    if value.layout != image_layout(channels) or any(step != 1 for step in stride):
        raise low.error(node, "is strided or unfolds something else than (N, C, H, W)")
    steps = product(*(range(size) for size in kernel))
    offsets = [(dilation[0] * u - padding[0], dilation[1] * v - padding[1]) for u, v in steps]
    height, width = (
        value.size[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) for axis in range(2)
    )  # fmt: skip
    (row, column) = value.origin
    box = Box(-row, height - row, -column, width - column)
    layout = (("n",), (channels, len(offsets)), ("h", "w"))
    operator = Map(
        node, box, (channels, len(offsets)), node.meta["val"].dtype, [Read(value, offset) for offset in offsets],
        torch.stack, lambda tensors: ((tensors,), {"dim": -1}), [(channels,)] * len(offsets),
        spread=lambda tensors: torch.stack(tensors, -1),
    )  # fmt: skip
    low.operators.append(operator)
    index = torch.arange(channels * len(offsets)).view(1, 1, channels, len(offsets))
    alive = torch.ones((height * width, 1, channels, len(offsets)), dtype=torch.bool)
    low.unfolded[operator] = Unfolded(value, offsets, index, alive)
    windows = low.value_of(operator, layout, value.origin)
    return low.viewed(
        windows, (("n",), (channels * len(offsets),), ("h", "w")), partial(torch.flatten, start_dim=2), node
    )


@handles(aten.col2im.default)
def _col2im(low: Lowering, node: fx.Node) -> Value:
    source, size, kernel, _, padding, stride = arguments_of(node)
    value = low.spatial(node, source)
    plain = tuple(kernel) == tuple(stride) == (1, 1) and tuple(padding) == (0, 0)
    if not plain or tuple(size) != value.size or len(value.layout) != 3 or value.layout[2] != ("h", "w"):
        raise low.error(node, "folds windows that overlap or have other sizes than the image")
    return low.viewed(value, image_layout(low.shape(node)[1]), partial(torch.flatten, start_dim=2), node)


@follows
def _cut(low: Lowering, operator: Map) -> None:
    """Note what is left of unfolded features if all that an operator does is to zero some of them."""
    reads = operator.reads
    table = low.unfolded.get(reads[0].value.operator) if len(reads) == 1 else None
    if table is None or len(operator.operands) == 1:
        return
    value, box = reads[0].value, operator.box
    if reads[0].offset != (0, 0) or value.box != box or value.operator.box != box:
        return
    index, alive = (value.view(each).reshape(-1, 1, *operator.features) for each in (table.index, table.alive))
    probe = torch.rand(alive.shape, generator=torch.Generator().manual_seed(0)) + 1.0
    probe = probe.to(low.device, value.sample.dtype)
    result = low.on_grid(operator, probe)
    if result is not None and result.shape == probe.shape and bool(((result == 0) | (result == probe)).all()):
        low.unfolded[operator] = Unfolded(table.source, table.offsets, index, alive & (result != 0).cpu())


def taps_of(low: Lowering, value: Value) -> tuple[list[Read], Tensor] | None:
    """The reads of a matrix product with unfolded features, and which of its inputs they are: (taps, C)."""
    table = low.unfolded.get(value.operator)
    if table is None or value.box != value.operator.box:
        return None
    box = value.box
    index = value.view(table.index).flatten()  # of each input
    alive = value.view(table.alive).flatten(1)  # (pixels, inputs)
    taps = len(table.offsets)
    if not torch.equal(index.sort().values, torch.arange(len(index))):
        return None  # some of them only
    inputs = index.argsort().view(-1, taps).t()  # (taps, C)
    reads = []
    for tap, offset in enumerate(table.offsets):
        mask = alive[:, inputs[tap]]
        if not (mask == mask[:, :1]).all():
            return None  # channels with masks of their own
        seen = mask[:, 0].view(box.height, box.width).numpy()
        reads.append(Read(table.source, offset, None if seen.all() else seen))
    return reads, inputs
