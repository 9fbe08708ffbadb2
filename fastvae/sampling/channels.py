"""Channels of a pixel that are drawn one after the other: their order, and how often each operator runs for a pixel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from .graph import Constant, Linear, Map, Operator, Read
from .schedule import Needs, Reads

__all__ = ["ChannelOrder", "order_channels"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_NEVER = -np.inf


@dataclass(frozen=True, eq=False)
class ChannelOrder:
    """How a network with ordered channels is run.

    Attributes:
        groups: the channels that are drawn together, in their order.
        skew: the smallest one.
        needs: for each operator its passes, see ``make_schedule``.
        ends: for each group the pass of the output operator.
    """

    groups: tuple[slice, ...]
    skew: int
    needs: Needs
    ends: list[int]


def order_channels(
    operators: Sequence[Operator], reads: Reads, output: Read, raster: int, weights: dict[fx.Node, Tensor]
) -> ChannelOrder | None:
    """Find an order from the zeros of the weights, feature by feature.

    Every feature of an operator has a time, relative to its pixel, from which on it is known: that of the last channel
    that it depends on. A pass computes all features of an operator anew; there are as few passes as these times allow.

    Args:
        operators: in topological order, the image first.
        reads: of each operator.
        output: where the parameters are read.
        raster: a skew that orders all pixels as raster order does.
        weights: of the linear operators, by node.

    Returns:
        None if channels depend on each other in a circle, or on later pixels.
    """
    links = {op: [_links(op, read, weights) for read in reads[op]] for op in operators}
    flow = _Flow(operators, reads, output, links)
    channels = operators[0].features[0]
    ahead = flow.parameters(raster)  # (C, C): of a channel, by another one
    own = ahead == 0.0
    if (ahead > 0.0).any() or np.linalg.matrix_power(own.astype(np.int64), channels).any():
        return None
    level = np.zeros(channels, dtype=np.int64)
    for _ in range(channels):
        level = np.where(own, level + 1, 0).max(1)
    groups = _runs(level)
    number = np.zeros(channels, dtype=np.int64)
    for index, group in enumerate(groups):
        number[group] = index
    for skew in range(1, raster + 1):
        ready = _fine(flow.parameters(skew), number, len(groups))
        if (ready <= number).all():
            break
    needs, ends = flow.passes(skew, number, len(groups))
    return ChannelOrder(tuple(groups), skew, needs, ends)


class _Flow:
    """Which feature depends on which channel, and by which offsets."""

    def __init__(
        self, operators: Sequence[Operator], reads: Reads, output: Read, links: dict[Operator, list[Bools]]
    ) -> None:
        self.operators, self.reads, self.output, self.links = operators, reads, output, links
        self.image = operators[0]
        self.channels = self.image.features[0]
        self.last = output.value.operator
        self.seen = _features(output)  # features of the output operator, channel by channel

    def ahead(self, skew: int) -> dict[Operator, Floats]:
        """(features, C): how far ahead of its own pixel a feature reads each channel, at most."""
        result = {self.image: np.where(np.eye(self.channels, dtype=bool), 0.0, _NEVER)}
        for op in self.operators[1:]:
            result[op] = np.full((int(np.prod(op.features)), self.channels), _NEVER)
            for read, link in zip(self.reads[op], self.links[op], strict=True):
                source = result[read.value.operator]
                for channel in range(self.channels):
                    reach = np.where(link, source[:, channel, None], _NEVER).max(0) + _time(read, skew)
                    result[op][:, channel] = np.maximum(result[op][:, channel], reach)
        return result

    def parameters(self, skew: int) -> Floats:
        """(C, C): how far ahead of its pixel the parameters of a channel read each channel."""
        seen = self.ahead(skew)[self.last][self.seen] + _time(self.output, skew)
        return seen.reshape(self.channels, -1, self.channels).max(1)

    def passes(self, skew: int, number: NDArray[np.int64], count: int) -> tuple[Needs, list[int]]:
        """The passes of each operator for groups of channels numbered so."""
        ready = {op: _fine(ahead, number, count) for op, ahead in self.ahead(skew).items()}
        due = {op: np.full(int(np.prod(op.features)), np.inf) for op in self.operators}
        per_channel = len(self.seen) // self.channels
        np.minimum.at(due[self.last], self.seen, np.repeat(number, per_channel) - count * _time(self.output, skew))
        part = {self.image: number}  # of each feature: in which pass it becomes final; -1 if nothing needs it
        for op in reversed(self.operators[1:]):
            part[op], times = _stabbed(ready[op], due[op])
            for index, time in enumerate(times):
                for read, link in zip(self.reads[op], self.links[op], strict=True):
                    needed = link[:, part[op] == index].any(1)
                    late = np.where(needed, time - count * _time(read, skew), np.inf)
                    due[read.value.operator] = np.minimum(due[read.value.operator], late)
        needs: Needs = {self.image: [[] for _ in range(count)]}
        for op in self.operators[1:]:
            needs[op] = [
                [
                    int(np.where(link[:, part[op] == index].any(1), part[read.value.operator], -1).max())
                    for read, link in zip(self.reads[op], self.links[op], strict=True)
                ]
                for index in range(max(1, int(part[op].max()) + 1))
            ]
        groups = np.repeat(number, per_channel)
        ends = [int(part[self.last][self.seen][groups == group].max()) for group in range(count)]
        return needs, ends


def _fine(ahead: Floats, number: NDArray[np.int64], count: int) -> Floats:
    """Steps, of which each pixel has ``count``: when a channel is there, the draw of its group is done."""
    return (count * ahead + number + 1).max(-1)


def _time(read: Read, skew: int) -> int:
    return read.offset[1] + skew * read.offset[0]


def _stabbed(ready: Floats, due: Floats) -> tuple[NDArray[np.int64], list[float]]:
    """The fewest times that hit all intervals, and which of them each feature takes."""
    part = np.full(len(ready), -1)
    times: list[float] = []
    for feature in np.argsort(due, kind="stable"):
        if np.isfinite(due[feature]) and part[feature] < 0:
            hit = (part < 0) & (ready <= due[feature]) & np.isfinite(due)
            hit[feature] = True
            part[hit] = len(times)
            times.append(float(due[feature]))
    return part, times


def _runs(level: NDArray[np.int64]) -> list[slice]:
    """Neighbouring channels of one level, level by level."""
    groups: list[slice] = []
    for number in range(int(level.max()) + 1):
        for channel in np.flatnonzero(level == number).tolist():
            if groups and groups[-1].stop == channel and level[groups[-1].start] == number:
                groups[-1] = slice(groups[-1].start, channel + 1)
            else:
                groups.append(slice(channel, channel + 1))
    return groups


def _features(read: Read) -> NDArray[np.int64]:
    """The features of an operator in the order in which a read sees them."""
    features = read.value.operator.features
    return read.value.view(torch.arange(int(np.prod(features))).view(1, 1, *features)).reshape(-1).numpy()


def _links(op: Operator, read: Read, weights: dict[fx.Node, Tensor]) -> Bools:
    """(features of the source operator, features of the reader): which depends on which."""
    source = read.value.operator.features
    count, size = int(np.prod(source)), int(np.prod(op.features))
    if isinstance(op, Linear):
        key = next(key for key, each in op.taps if each is read)
        result = np.zeros((count, size), dtype=bool)
        np.logical_or.at(result, _features(read), op.matrices(weights[op.weight])[key].ne(0).cpu().numpy())
        return result
    assert isinstance(op, Map)
    tensors = []
    for operand, align in zip(op.operands, op.align, strict=True):
        if operand is read:
            shown = read.value.view(torch.eye(count).view(count, 1, *source))
            tensors.append(shown.reshape(count, 1, *align))
        elif isinstance(operand, Constant):
            tensors.append(torch.zeros(count, 1, *_constant_features(operand)))
        else:
            tensors.append(torch.zeros(count, 1, *align))
    return op.spread(tensors).ne(0).expand(count, 1, *op.features).reshape(count, size).numpy()


def _constant_features(constant: Constant) -> tuple[int, ...]:
    shapes = [torch.zeros(node.meta["val"].shape) for node in constant.nodes]
    return tuple(constant.compute(*shapes).shape[3:])
