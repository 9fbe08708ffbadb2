"""Attention: each pixel mixes all that it may see; keys and values are computed once and kept."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from .axes import Dim, is_feature
from .graph import Look, Map, Read, Value
from .lower_linear import batched_product
from .lowering import Lowering, arguments_of, follows, handles

__all__: list[str] = []

aten = torch.ops.aten
_PROBES = 2  # scores that are followed to see which pixels get a weight of zero


@handles(aten.bmm.default)
def _bmm(low: Lowering, node: fx.Node) -> Value:
    if "static" in [low.trace.kinds.get(argument) for argument in arguments_of(node)]:
        return batched_product(low, node)
    left, right = (low.spatial(node, argument) for argument in arguments_of(node))
    pixels: Dim = ("h", "w")
    if left.layout[0] == right.layout[0] and left.layout[1] == pixels and left.layout[0][0] == "n":
        if left.operator in low.scores and right.layout[1] == pixels and is_feature(right.layout[2]):
            return _mixed(low, node, left, right)
        if right.layout[2] == pixels and is_feature(left.layout[2]) and is_feature(right.layout[1]):
            return _scored(low, node, left, right)
    raise low.error(
        node,
        "multiplies matrices in another way than attention does: queries (N, pixels, features) with keys "
        "(N, features, pixels), then weights (N, pixels, pixels) with values (N, pixels, features)",
    )


def _scored(low: Lowering, node: fx.Node, query: Value, keys: Value) -> Value:
    """(..., pixels, D) x (..., D, pixels): the last dimension of the result, all pixels, becomes a feature."""
    heads = _heads(query)
    depth = low.shape(node.args[0])[2]
    count = keys.size[0] * keys.size[1]
    box = query.grid
    look = Look(keys, seen=np.zeros((box.height * box.width, count), dtype=bool))
    layout = (query.layout[0], query.layout[1], (count,))
    features = tuple(atom for atom in (*query.layout[0], count) if isinstance(atom, int))
    operator = _operator(low, node, query, look, features, _score, [(heads, depth)] * 2)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(_PROBES, box.height * box.width, 1, heads * count, generator=generator)
    probe = probe.unflatten(3, features)
    low.scores[operator] = (look, probe.to(low.device, operator.dtype))
    return low.value_of(operator, layout, query.origin)


def _mixed(low: Lowering, node: fx.Node, weights: Value, values: Value) -> Value:
    """(..., pixels, pixels) x (..., pixels, D)."""
    heads = _heads(weights)
    look, probe = low.scores[weights.operator]
    count = look.seen.shape[1]
    shown = torch.stack([weights.view(each) for each in probe])
    if weights.layout[2] != (count,) or values.size[0] * values.size[1] != count or weights.grid != weights.box:
        raise low.error(node, "mixes pixels by parts of the weights of attention")
    seen = (shown != 0).any(0).reshape(-1, heads, count).any(1).cpu().numpy()  # (pixels, pixels)
    look.seen[:] |= seen
    depth = low.shape(node.args[1])[2]
    layout = (weights.layout[0], weights.layout[1], values.layout[2])
    operator = _operator(
        low,
        node,
        weights,
        Look(values, seen=seen),
        (*weights.layout[0][1:], depth),
        _mix,
        [(heads, count), (heads, depth)],
    )
    low.mixed.add(operator)
    return low.value_of(operator, layout, weights.origin)


def _heads(value: Value) -> int:
    sizes = [atom for atom in value.layout[0] if isinstance(atom, int)]
    return int(np.prod(sizes))


def _operator(
    low: Lowering, node: fx.Node, own: Value, look: Look, features: tuple[Any, ...], function: Any, align: Any
) -> Map:
    operator = Map(
        node, own.grid, features, node.meta["val"].dtype, [Read(own), look], function,
        lambda tensors: (tuple(tensors), {}), align,
    )  # fmt: skip
    low.operators.append(operator)
    return operator


def _score(query: Tensor, keys: Tensor, *, out: Tensor) -> None:
    """(cells, batch, heads, D), (pixels, batch, heads, D) -> the first pixels of (cells, batch, ..., all pixels)."""
    scores = query.permute(1, 2, 0, 3) @ keys.permute(1, 2, 3, 0)  # (batch, heads, cells, pixels)
    into = out.view(*out.shape[:2], query.shape[2], out.shape[-1])
    into[..., : keys.shape[0]].copy_(scores.permute(2, 0, 1, 3))
    into[..., keys.shape[0] :].zero_()  # a mask does not hide a nan that was there before


def _mix(weights: Tensor, values: Tensor, *, out: Tensor) -> None:
    """(cells, batch, heads, all pixels), (first pixels, batch, heads, D) -> (cells, batch, ..., D)."""
    weights = weights[..., : values.shape[0]].permute(1, 2, 0, 3)  # (batch, heads, cells, pixels)
    mixed = weights @ values.permute(1, 2, 0, 3)
    out.view(*out.shape[:2], mixed.shape[1], mixed.shape[3]).copy_(mixed.permute(2, 0, 1, 3))


@follows
def _follow(low: Lowering, operator: Map) -> None:
    """Carry the probes of scores through masks, scales and the softmax."""
    reads = operator.reads
    known = low.scores.get(reads[0].value.operator) if len(reads) == 1 else None
    if known is None or reads[0].offset != (0, 0) or reads[0].value.box != operator.box:
        return
    look, probes = known
    align = operator.align[operator.operands.index(reads[0])]
    value = reads[0].value
    results = [low.on_grid(operator, value.view(probe).reshape(-1, 1, *align)) for probe in probes]
    if all(result is not None and result.shape[2:] == operator.features for result in results):
        low.scores[operator] = (look, torch.stack(results))  # type: ignore[arg-type]
