"""Masked MLPs written independently in the styles found in public flow libraries and MADE implementations."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def degrees_of(features: int, size: int, kind: str) -> Tensor:
    if kind == "input":
        return torch.arange(1, features + 1)
    if kind == "output":
        return torch.arange(1, features + 1).repeat_interleave(size // features)
    return torch.arange(size) % max(1, features - 1) + min(1, features - 1)


class Masked(nn.Linear):
    """The weight is multiplied in the forward pass."""

    def __init__(self, before: Tensor, after: Tensor, strict: bool = False) -> None:
        super().__init__(len(before), len(after))
        self.register_buffer("mask", (after[:, None] > before if strict else after[:, None] >= before).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedInPlace(Masked):
    """The weight is overwritten in the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super(Masked, self).forward(x)


class Block(nn.Module):
    """Two masked layers before the sum, the context in a gate."""

    def __init__(self, degrees: Tensor, context: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Masked(degrees, degrees), Masked(degrees, degrees)])
        self.dropout = nn.Dropout(dropout)
        self.gate = nn.Linear(context, len(degrees)) if context else None

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.layers[0](F.relu(x))
        h = self.layers[1](self.dropout(F.relu(h)))
        if self.gate is not None:
            h = F.glu(torch.cat((h, self.gate(context)), dim=1), dim=1)
        return x + h


class BlockMADE(nn.Module):
    """A first layer, residual blocks, a last layer; the context is added and gates the blocks."""

    def __init__(self, features: int, hidden: int, num_params: int, context: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        degrees = degrees_of(features, hidden, "hidden")
        self.initial = Masked(degrees_of(features, features, "input"), degrees)
        self.context = nn.Linear(context, hidden) if context else None
        self.blocks = nn.ModuleList([Block(degrees, context, dropout) for _ in range(2)])
        self.final = Masked(degrees, degrees_of(features, features * num_params, "output"), strict=True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.initial(x)
        if self.context is not None:
            h = h + F.relu(self.context(context))
        for block in self.blocks:
            h = block(h, context)
        return self.final(h)


class ChunkedMADE(nn.Module):
    """A sequential trunk and two heads at the end: all means, then all log-scales."""

    def __init__(self, features: int, hidden: int, layer: Any = MaskedInPlace, between: Any = nn.Tanh) -> None:
        super().__init__()
        degrees = degrees_of(features, hidden, "hidden")
        inputs = degrees_of(features, features, "input")
        self.first = layer(inputs, degrees)
        self.trunk = nn.Sequential(between(), layer(degrees, degrees), nn.LeakyReLU(0.2))
        self.last = layer(degrees, inputs.repeat(2), strict=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.trunk(self.first(x)))


class WeightNormedHeads(nn.Module):
    """Weight norm over masked weights, a mask that is no buffer, two heads joined by stack, a bounded log-scale."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        degrees, inputs = degrees_of(features, hidden, "hidden"), degrees_of(features, features, "input")
        self.mask = (degrees[:, None] >= inputs).float()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(features, hidden))
        self.gate = Masked(inputs, degrees)
        self.last = Masked(degrees, inputs.repeat_interleave(2), strict=True)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(2.0 * x - 1.0, self.first.weight * self.mask, self.first.bias))
        h = h * torch.sigmoid(-self.gate(x / 2)) - 0.5 * h
        return 3.0 * torch.tanh(self.last(h) / 3.0)
