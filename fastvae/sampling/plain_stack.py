"""Recognise a plain masked stack in a plan, and pack its live weights for the persistent kernel."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .draw import Draw, Gaussian
from .graph import Operator
from .patterns import (
    Layer,
    MismatchError,
    Offset,
    activation_of,
    affine,
    packed_bias,
    packed_matrices,
    read_of,
    require,
    residual_of,
    wide,
)
from .plan import Plan

__all__ = ["Block", "PlainNet", "match_plain"]


@dataclass(frozen=True, eq=False)
class Block:
    """A masked convolution with the 1x1 layers before and after it."""

    before: Layer | None
    masked: Layer
    after: Layer | None

    @property
    def layers(self) -> list[Layer]:
        return [layer for layer in (self.before, self.masked, self.after) if layer is not None]


@dataclass(frozen=True, eq=False)
class PlainNet:
    """See :class:`fastvae_kernels.persistent_launch.PlainStack`, which this packs."""

    plan: Plan
    first: Layer
    blocks: list[Block]
    heads: list[Layer]
    last: Layer
    activation: str
    has_residual: bool
    scale: float
    shift: float

    kernel = "plain"

    @property
    def channels(self) -> int:
        """Of the kernel."""
        return wide(self.first, *(layer for block in self.blocks for layer in block.layers), *self.heads)

    @property
    def offsets(self) -> list[Offset]:
        """What the later layers read apart from the pixel itself: above, then left."""
        return sorted({offset for block in self.blocks for offset in block.masked.taps} - {(0, 0)})

    @property
    def skew(self) -> int:
        """The smallest with which every tap but the pixel's own is of an earlier step."""
        taps = [*self.offsets, *self.first.taps]
        return next(
            skew
            for skew in range(1, self.plan.height + 2 * self.plan.width)
            if all(column + skew * row < 0 for row, column in taps)
        )

    def pack(self, values: dict[fx.Node, Tensor], batch: int, draw: Draw) -> Any:
        """The stack with its present weights."""
        from fastvae_kernels.persistent_launch import PlainStack

        size, skew, offsets = self.channels, self.skew, self.offsets
        device, dtype = values[self.first.op.weight].device, values[self.first.op.weight].dtype

        def stacked(layers: list[Layer]) -> Tensor:
            if not layers:
                return torch.zeros(0, size, size, dtype=dtype, device=device)
            return torch.cat([packed_matrices(layer, [(0, 0)], values, size, size) for layer in layers])

        image_taps, first = pack_first(self.first, values, size)
        last, last_bias, num_params = pack_last(self.last, values, size, self.plan.pixels.features[0], draw)
        masked = [packed_matrices(block.masked, [*offsets, (0, 0)], values, size, size) for block in self.blocks]
        shape = (0, len(offsets) + 1, size, size)
        biases = [packed_bias(self.first, values, self.plan, batch, size)]
        for block in self.blocks:
            biases += [
                biases[0].new_zeros(1, 1, size) if layer is None else packed_bias(layer, values, self.plan, batch, size)
                for layer in (block.before, block.masked, block.after)
            ]
        biases += [packed_bias(layer, values, self.plan, batch, size) for layer in self.heads]
        befores = [block.before for block in self.blocks if block.before is not None]
        afters = [block.after for block in self.blocks if block.after is not None]
        return PlainStack(
            image_taps=image_taps,
            first=first,
            taps=pack_taps(offsets, device),
            masked=torch.stack(masked) if masked else torch.zeros(shape, dtype=dtype, device=device),
            before=stacked(befores) if befores else None,
            after=stacked(afters) if afters else None,
            heads=stacked(self.heads),
            last=last,
            bias=stack_biases(biases),
            last_bias=last_bias,
            draw=draw.name,
            num_params=num_params,
            activation=self.activation,
            has_residual=self.has_residual,
            ring_length=1 + max((-column - skew * row for row, column in offsets), default=0),
            scale=self.scale,
            shift=self.shift,
        )


def pack_taps(offsets: list[Offset], device: torch.device) -> Tensor:
    """(T + 3, 2) int32: the kernels look at up to three rows behind the last."""
    return torch.tensor([*offsets, *[(0, 0)] * 3], dtype=torch.int32, device=device)


def pack_first(layer: Layer, values: dict[fx.Node, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Taps (R, 3) int32 and weights (R, size) of a layer on the image, R a power of two."""
    offsets = sorted(layer.taps)
    weight = values[layer.op.weight]
    num_values = layer.op.reads[0].value.operator.features[0]
    matrices = packed_matrices(layer, offsets, values, num_values, size).flatten(0, 1)  # (taps * values, size)
    taps = [(row, column, value) for row, column in offsets for value in range(num_values)]
    reduced = max(16, 1 << (len(taps) - 1).bit_length())
    taps += [(0, 0, -1)] * (reduced - len(taps))
    padded = torch.nn.functional.pad(matrices, (0, 0, 0, reduced - matrices.shape[0]))
    return torch.tensor(taps, dtype=torch.int32, device=weight.device), padded.contiguous()


def pack_last(
    layer: Layer, values: dict[fx.Node, Tensor], size: int, num_values: int, draw: Draw
) -> tuple[Tensor, Tensor, int]:
    """Weights (size, V * P) and biases (V * P,) of the parameters, V and P powers of two with V * P >= 16; and P.

    The one log-scale of a Gaussian becomes a second parameter, of weight zero.
    """
    given = draw.num_params
    num_params = 2 if draw.name == "gaussian" else given
    params = 1 << (num_params - 1).bit_length()
    slots = max(16 // params, 1 << (num_values - 1).bit_length())
    weight = packed_matrices(layer, [(0, 0)], values, size, layer.width)[0]
    result = weight.new_zeros(size, slots, params)
    result[:, :num_values, :given] = weight.view(size, num_values, given)
    bias = torch.zeros(slots, params, device=weight.device)
    if layer.op.bias is not None:
        bias[:num_values, :given] = values[layer.op.bias].detach().float().view(num_values, given)
    if isinstance(draw, Gaussian) and draw.scale_owner is not None:
        bias[:, 1] = draw.scale_owner.log_scale.detach().to(bias)
    return result.flatten(1), bias.flatten(), num_params


def stack_biases(biases: list[Tensor]) -> Tensor:
    """(layers, pixels or 1, images or 1, size), each as large as the largest."""
    pixels, images = (max(bias.shape[dim] for bias in biases) for dim in (0, 1))
    return torch.stack([bias.expand(pixels, images, -1) for bias in biases])


def match_heads(plan: Plan) -> tuple[Layer, list[Layer], str, Operator]:
    """The last layer, the 1x1 layers between activations before it, the activation, and what the first of them reads.

    That is a sum where there is a residual connection, else the last layer of the stack.
    """
    output = plan.output
    require(not output.value.views and output.offset == (0, 0), "splits, joins or shifts the parameters")
    last = Layer.of(plan, read_of(plan, output), "a last 1x1 layer")
    require(not last.added, "adds a condition or a position to the parameters")
    source = last.one_source(plan, "the last layer")
    heads: list[Layer] = []
    kind = activation_of(source)
    require(kind is not None, "has no activation before its last layer")
    assert kind is not None
    source = _activated(plan, source, kind)
    while True:
        try:
            layer = Layer.of(plan, source, "a 1x1 layer")
        except MismatchError:
            return last, heads, kind, source
        if set(layer.taps) != {(0, 0)} or activation_of(before := layer.one_source(plan, "a 1x1 layer")) != kind:
            return last, heads, kind, source
        heads.insert(0, layer)
        source = _activated(plan, before, kind)


def match_plain(plan: Plan) -> PlainNet:
    """The stack that the plan computes.

    Raises:
        MismatchError: with the reason, if it is none.
    """
    last, heads, kind, state = match_heads(plan)
    blocks: list[Block] = []
    has_residual = False
    while True:
        pair = residual_of(plan, state)
        if pair is not None:
            require(has_residual or not blocks, "has residual connections in some layers only")
            has_residual, (state, branch) = True, pair
            block, source = _match_block(plan, branch, kind)
            require(_activated(plan, source, kind) is state, "has a residual connection around another part")
            blocks.insert(0, block)
            continue
        layer = Layer.of(plan, state, "a masked convolution")
        require(layer.shift == (0, 0), "shifts a layer")
        origin = layer.source(plan)
        require(origin is not None, "has a convolution without live taps")
        assert origin is not None
        if activation_of(origin) == kind:
            require(not has_residual, "has residual connections in some layers only")
            blocks.insert(0, Block(None, layer, None))
            state = _activated(plan, origin, kind)
            continue
        scale, shift = affine(plan, origin)
        _check_uniform(blocks)
        return PlainNet(plan, layer, blocks, heads, last, kind, has_residual, scale, shift)


def _match_block(plan: Plan, branch: Operator, kind: str) -> tuple[Block, Operator]:
    """[1x1, activation], masked convolution, [activation, 1x1]: read from the end; and what the block reads."""
    layer, after = Layer.of(plan, branch, "a masked convolution"), None
    if set(layer.taps) == {(0, 0)}:
        after = layer
        layer = Layer.of(plan, _activated(plan, after.one_source(plan, "1x1"), kind), "a masked convolution")
    source = layer.source(plan)
    require(source is not None, "has a convolution without live taps")
    assert source is not None
    inner = _activated(plan, source, kind)
    try:
        before = Layer.of(plan, inner, "a 1x1 layer")
    except MismatchError:
        return Block(None, layer, after), source
    if set(before.taps) != {(0, 0)}:
        return Block(None, layer, after), source
    return Block(before, layer, after), before.one_source(plan, "a 1x1 layer")


def _check_uniform(blocks: list[Block]) -> None:
    kinds = {(block.before is None, block.after is None) for block in blocks}
    require(len(kinds) <= 1, "has layers of different forms")
    for block in blocks:
        require(all(offset <= (0, 0) for offset in block.masked.taps), "looks ahead in a later layer")


def _activated(plan: Plan, op: Operator, kind: str) -> Operator:
    """What the activation ``op`` reads."""
    require(activation_of(op) == kind, f"has another function than {kind} between its layers")
    (read,) = op.reads
    return read_of(plan, read)
