"""Recognise a gated net with a vertical and a horizontal stack in a plan, and pack its live weights for the kernel."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx

from .draw import Draw
from .graph import Constant, Map, Operator, Read
from .patterns import (
    Layer,
    Offset,
    affine,
    image_box,
    moved,
    operands,
    packed_bias,
    packed_matrices,
    read_of,
    require,
    residual_of,
    wide,
)
from .plain_stack import match_heads, pack_first, pack_last, pack_taps, stack_biases
from .plan import Plan

__all__ = ["GatedLayer", "GatedNet", "match_gated"]

aten = torch.ops.aten
_MOST_SKEW = 256


@dataclass(frozen=True, eq=False)
class GatedLayer:
    """One layer: its convolutions, all with two halves but ``mix``."""

    vertical: Layer
    horizontal: Layer
    link: Layer
    mix: Layer


@dataclass(frozen=True)
class Schedule:
    """A skew and how far the vertical layers are ahead; see :class:`fastvae_kernels.persistent_launch.GatedStacks`."""

    skew: int
    lead: int
    lead_step: int

    @classmethod
    def of(cls, net: "GatedNet", skew: int) -> "Schedule | None":
        """The one with this skew, if everything that is read of the same step is at hand; else None."""

        def time(offset: Offset) -> int:
            return offset[1] + skew * offset[0]

        newest = net.newest
        lead_step = max(0, newest) if newest is not None else 0
        lead = -skew * net.link_rows + (len(net.layers) - 1) * lead_step
        fits = all(time(offset) < lead_step for offset in net.offsets)
        fits = fits and all(time(offset) < 0 for offset in net.row_offsets)
        fits = fits and all(lead + time(offset) < 0 for offset in net.layers[0].vertical.taps)
        fits = fits and all(time(offset) < 0 for offset in net.layers[0].horizontal.taps)
        return cls(skew, lead, lead_step) if fits else None


@dataclass(frozen=True, eq=False)
class GatedNet:
    """See :class:`fastvae_kernels.persistent_launch.GatedStacks`, which this packs.

    Attributes:
        link_rows: 1 if a pixel is linked to the row above, 0 if to its own.
        link_gated: whether the link starts after the vertical gate.
    """

    plan: Plan
    layers: list[GatedLayer]
    heads: list[Layer]
    last: Layer
    activation: str
    has_residual: bool
    link_rows: int
    link_gated: bool
    scale: float
    shift: float

    kernel = "gated"

    @property
    def channels(self) -> int:
        """Of the kernel."""
        return wide(*(layer.mix for layer in self.layers), *self.heads)

    @property
    def newest(self) -> int | None:
        """The last column that a later vertical layer reads in its own row; None if it reads only rows above."""
        taps = [offset for layer in self.layers[1:] for offset in layer.vertical.taps]
        return max((column for row, column in taps if row == 0), default=None)

    @property
    def offsets(self) -> list[Offset]:
        """What later vertical layers read of earlier steps."""
        taps = {offset for layer in self.layers[1:] for offset in layer.vertical.taps}
        return sorted(taps - {(0, self.newest)})

    @property
    def row_offsets(self) -> list[Offset]:
        """What later horizontal layers read of earlier steps."""
        return sorted({offset for layer in self.layers[1:] for offset in layer.horizontal.taps} - {(0, 0)})

    @cached_property
    def schedule(self) -> Schedule:
        """With the smallest skew that lets one barrier per step suffice."""
        for skew in range(1, _MOST_SKEW):
            found = Schedule.of(self, skew)
            if found is not None:
                return found
        require(False, "reads pixels of the same step")
        raise AssertionError

    @property
    def skew(self) -> int:
        """Pixel (i, j) is drawn at step j + skew * i."""
        return self.schedule.skew

    def pack(self, values: dict[fx.Node, Tensor], batch: int, draw: Draw) -> Any:
        """The stacks with their present weights."""
        from fastvae_kernels.persistent_launch import GatedStacks

        size, schedule = self.channels, self.schedule
        first = self.layers[0]
        device = values[first.mix.op.weight].device
        row_taps, newest = [*self.row_offsets, (0, 0)], self.newest
        taps = self.offsets if newest is None else [*self.offsets, (0, newest)]
        image_taps, weight = pack_first(first.vertical, values, first.vertical.width)
        image_row_taps, row_weight = pack_first(first.horizontal, values, first.horizontal.width)
        last, last_bias, num_params = pack_last(self.last, values, size, self.plan.pixels.features[0], draw)
        vertical, horizontal, gate_biases = [], [], []
        for layer in self.layers:
            later = layer is not first
            both = layer.vertical.width
            (tap,) = layer.link.taps
            link = packed_matrices(layer.link, [tap], values, both // 2 if self.link_gated else both, both)[0]
            links = [_paired(part, size) for part in ((link,) if self.link_gated else link.chunk(2))]
            vertical.append(_taps(layer.vertical, taps if later else [], len(taps), values, size))
            own = _taps(layer.horizontal, row_taps if later else [], len(row_taps), values, size)
            horizontal.append(torch.cat([own, torch.stack(links)]))
            bias = partial(packed_bias, values=values, plan=self.plan, batch=batch, size=both)
            gate_biases += [
                _paired_bias(bias(layer.vertical), size),
                _paired_bias(bias(layer.horizontal) + bias(layer.link), size),
            ]
        ends = [*(layer.mix for layer in self.layers), *self.heads]
        square = [packed_matrices(layer, [(0, 0)], values, size, size)[0] for layer in ends]
        # how long ago a vertical layer or a link may find that what it reads was computed
        ages = [schedule.lead_step - column - schedule.skew * row for row, column in self.offsets]
        ages.append(schedule.lead + schedule.skew * self.link_rows)
        return GatedStacks(
            image_taps=image_taps,
            image_row_taps=image_row_taps,
            first=_paired(weight, size, weight.shape[0]),
            first_row=_paired(row_weight, size, row_weight.shape[0]),
            taps=pack_taps(self.offsets, device),
            row_taps=pack_taps(self.row_offsets, device),
            vertical=torch.stack(vertical),
            horizontal=torch.stack(horizontal),
            mix=torch.stack(square[: len(self.layers)]),
            heads=torch.stack(square)[len(self.layers) :],
            last=last,
            gate_bias=stack_biases(gate_biases),
            bias=stack_biases([packed_bias(layer, values, self.plan, batch, size) for layer in ends]),
            last_bias=last_bias,
            draw=draw.name,
            num_params=num_params,
            activation=self.activation,
            has_residual=self.has_residual,
            link_rows=self.link_rows,
            link_gated=self.link_gated,
            lead=schedule.lead,
            lead_step=schedule.lead_step,
            newest=newest,
            ring_length=1 + max(ages),
            row_ring_length=1 + max((-column - schedule.skew * row for row, column in self.row_offsets), default=0),
            scale=self.scale,
            shift=self.shift,
        )


def _taps(layer: Layer, offsets: list[Offset], count: int, values: dict[fx.Node, Tensor], size: int) -> Tensor:
    """(count, size, 2 size), zero without offsets: the first layer reads the image."""
    if not offsets or not count:
        weight = values[layer.op.weight]
        return weight.new_zeros(count, size, 2 * size)
    width = layer.op.reads[0].value.operator.features[0]
    matrices = packed_matrices(layer, offsets, values, width, layer.width)
    return torch.stack([_paired(matrix, size) for matrix in matrices])


def _paired(matrix: Tensor, size: int, rows: int | None = None) -> Tensor:
    """(in, 2 C) with the halves of a gate -> (rows or size, 2 size) with the two of a gate side by side."""
    half = matrix.shape[1] // 2
    result = matrix.new_zeros(rows or size, size, 2)
    result[: matrix.shape[0], :half] = matrix.view(-1, 2, half).transpose(1, 2)
    return result.flatten(1)


def _paired_bias(bias: Tensor, size: int) -> Tensor:
    """The same for (pixels or 1, images or 1, 2 C)."""
    return _paired(bias.flatten(0, 1), size, bias.shape[0] * bias.shape[1]).view(*bias.shape[:2], 2 * size)


def match_gated(plan: Plan) -> GatedNet:
    """The stacks that the plan computes, read from the end.

    Raises:
        MismatchError: with the reason, if it is none.
    """
    last, heads, kind, state = match_heads(plan)
    layers: list[GatedLayer] = []
    ways: set[tuple[Offset, bool]] = set()
    residuals: list[bool] = []
    vertical: Operator | None = None
    while True:
        pair = residual_of(plan, state)
        mix = Layer.of(plan, state if pair is None else pair[1], "a 1x1 layer after the gate")
        require(not mix.added, "adds a condition after a gate")
        horizontal, link = _match_sum(plan, mix.one_source(plan, "a 1x1 layer"))
        stack, is_gated = _match_vertical(plan, link, vertical)
        ways.add((_origin_of(link), is_gated))
        layers.insert(0, GatedLayer(stack, horizontal, link, mix))
        residuals.insert(0, pair is not None)
        left, above = horizontal.source(plan), stack.source(plan)
        require(left is not None and above is not None, "has a layer without live taps")
        assert left is not None
        assert above is not None
        if _is_scaled_image(plan, left):
            break
        require(pair is None or left is pair[0], "has a residual connection around another part")
        state, vertical = left, above
    require(len(ways) == 1, "links its layers in different ways")
    ((link_from, is_gated),) = ways
    require(link_from == (0, 0) or (is_gated and link_from == (-1, 0)), "links the vertical stack in another way")
    require(len(set(residuals[1:])) <= 1 and not residuals[0], "has residual connections in some layers only")
    scale, shift = affine(plan, left)
    require((scale, shift) == affine(plan, above), "scales the image in two ways")
    has_residual = all(residuals[1:])
    net = GatedNet(plan, layers, heads, last, kind, has_residual, -link_from[0], is_gated, scale, shift)
    require(net.schedule, "has no schedule")
    return net


def _is_scaled_image(plan: Plan, op: Operator) -> bool:
    while isinstance(op, Map) and len(op.operands) == 1 and op.reads:
        op = op.reads[0].value.operator
    return op is plan.pixels


def _match_gate(plan: Plan, op: Operator) -> Operator:
    """S of tanh(first half of S) * sigmoid(second half of S)."""
    reason = "has something else than tanh * sigmoid where a gate is expected"
    factors = [read_of(plan, each) for each in operands(op, (aten.mul.Tensor,), reason) if isinstance(each, Read)]
    require(len(factors) == 2, reason)
    parts = {getattr(each, "function", None): each for each in factors}
    require(set(parts) == {aten.tanh.default, aten.sigmoid.default}, reason)
    found = []
    for half, function in enumerate((aten.tanh.default, aten.sigmoid.default)):
        (read,) = parts[function].reads
        source = read_of(plan, read, views=True)
        size = source.features[0] // 2
        (view,) = read.value.views if len(read.value.views) == 1 else (None,)
        wanted = {"dim": 2, "start": half * size, "length": size}
        require(len(source.features) == 1 and getattr(view, "keywords", None) == wanted, "splits a gate in another way")
        found.append(source)
    require(found[0] is found[1], reason)
    return found[0]


def _match_sum(plan: Plan, op: Operator) -> tuple[Layer, Layer]:
    """The horizontal layer and the link of gate(horizontal + link + constants)."""
    reason = "has something else than a horizontal layer and a link before a gate"
    before = _match_gate(plan, op)
    added = []
    pair = operands(before, (aten.add.Tensor,), reason)
    while any(isinstance(each, Constant) for each in pair):
        added += [(each, before.box) for each in pair if isinstance(each, Constant)]
        (source,) = (each for each in pair if isinstance(each, Read))
        before = read_of(plan, source)
        pair = operands(before, (aten.add.Tensor,), reason)
    found = []
    for read in (each for each in pair if isinstance(each, Read)):
        require(not read.value.views, "splits, joins or permutes channels before a gate")
        window = moved(image_box(plan), read.offset)
        require(read.value.box & window == window, "shifts a link without its bias")
        found.append(Layer.of(plan, read.value.operator, "a convolution before a gate", read.offset))
    require(len(found) == 2 and sum(map(_is_link, found)) == 1, reason)
    link, horizontal = sorted(found, key=_is_link, reverse=True)
    require(horizontal.shift == (0, 0), "shifts a horizontal layer")
    return Layer(horizontal.op, [*horizontal.added, *added]), link


def _is_link(layer: Layer) -> bool:
    return len(layer.taps) == 1 and _origin_of(layer) in ((0, 0), (-1, 0))


def _origin_of(link: Layer) -> Offset:
    """Where a link comes from: it may be shifted before or after it."""
    ((row, column),) = link.taps
    return row + link.shift[0], column + link.shift[1]


def _match_vertical(plan: Plan, link: Layer, vertical: Operator | None) -> tuple[Layer, bool]:
    """The vertical layer that is linked, and whether after its gate; ``vertical`` is what the layer above it reads."""
    source = _linked(plan, link)
    is_gated = isinstance(source, Map) and source.function is aten.mul.Tensor
    before = _match_gate(plan, source) if is_gated else source
    if vertical is not None:
        follows = vertical is source if is_gated else _match_gate(plan, vertical) is before
        require(follows, "has a vertical stack that the links do not follow")
    return Layer.of(plan, before, "a vertical layer"), is_gated


def _linked(plan: Plan, link: Layer) -> Operator:
    """The operator that a link reads, shown as it is, zero outside of the image."""
    (read,) = link.op.reads
    require(not read.value.views, "splits, joins or permutes channels before a link")
    window = moved(image_box(plan), _origin_of(link))
    require(read.value.box & window == image_box(plan) & window, "pads a link with something else than zeros")
    return read.value.operator
