"""More masked MLPs written independently in the styles found in public code: orders of every kind, heads, splits."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerWithMask(nn.Linear):
    """A layer whose mask is set later, transposed, from outside."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("mask", torch.ones(out_features, in_features))

    def set_mask(self, mask: Tensor) -> None:
        self.mask.data.copy_(mask.to(torch.uint8).T)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class OrderAgnosticMADE(nn.Module):
    """Natural or random order and random connectivity from a seed; ``update_masks`` moves on to the next ones."""

    def __init__(
        self, nin: int, hidden_sizes: Sequence[int], nout: int, num_masks: int = 1, natural_ordering: bool = False
    ) -> None:
        super().__init__()
        self.nin, self.nout, self.hidden_sizes = nin, nout, hidden_sizes
        layers: list[nn.Module] = []
        sizes = [nin, *hidden_sizes, nout]
        for h0, h1 in pairwise(sizes):
            layers.extend([LayerWithMask(h0, h1), nn.ReLU()])
        layers.pop()
        self.net = nn.Sequential(*layers)
        self.natural_ordering, self.num_masks, self.seed = natural_ordering, num_masks, 0
        self.m: dict[int, Tensor] = {}
        self.update_masks()

    def update_masks(self) -> None:
        rng = torch.Generator().manual_seed(self.seed)
        self.seed = (self.seed + 1) % self.num_masks
        last = len(self.hidden_sizes)
        self.m[-1] = torch.arange(self.nin) if self.natural_ordering else torch.randperm(self.nin, generator=rng)
        for l, size in enumerate(self.hidden_sizes):
            self.m[l] = torch.randint(int(self.m[l - 1].min()), self.nin - 1, (size,), generator=rng)
        masks = [self.m[l - 1][:, None] <= self.m[l][None] for l in range(last)]
        masks.append(self.m[last - 1][:, None] < self.m[-1][None])
        masks[-1] = torch.cat([masks[-1]] * (self.nout // self.nin), dim=1)
        layers = [layer for layer in self.net if isinstance(layer, LayerWithMask)]
        for layer, mask in zip(layers, masks, strict=True):
            layer.set_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class WrappedMaskedLinear(nn.Module):
    """A linear layer inside, a condition that is added in place."""

    def __init__(self, mask: Tensor, cond_in_features: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(mask.shape[1], mask.shape[0])
        self.cond_linear = nn.Linear(cond_in_features, mask.shape[0], bias=False) if cond_in_features else None
        self.register_buffer("mask", mask)

    def forward(self, inputs: Tensor, cond_inputs: Tensor | None = None) -> Tensor:
        output = F.linear(inputs, self.linear.weight * self.mask, self.linear.bias)
        if cond_inputs is not None and self.cond_linear is not None:
            output += self.cond_linear(cond_inputs)
        return output


def get_mask(in_features: int, out_features: int, in_flow_features: int, mask_type: str | None = None) -> Tensor:
    """Degrees that take turns; the first layer and the last one know that they are."""
    if mask_type == "input":
        in_degrees = torch.arange(in_features) % in_flow_features
    else:
        in_degrees = torch.arange(in_features) % (in_flow_features - 1)
    if mask_type == "output":
        out_degrees = torch.arange(out_features) % in_flow_features - 1
    else:
        out_degrees = torch.arange(out_features) % (in_flow_features - 1)
    return (out_degrees.unsqueeze(-1) >= in_degrees.unsqueeze(0)).float()


class JoinedMADE(nn.Module):
    """The condition joins in the first layer only; a trunk; mean and log-scale by ``chunk(2, 1)``."""

    def __init__(self, num_inputs: int, num_hidden: int, num_cond_inputs: int = 0) -> None:
        super().__init__()
        hidden = get_mask(num_hidden, num_hidden, num_inputs)
        self.joiner = WrappedMaskedLinear(get_mask(num_inputs, num_hidden, num_inputs, "input"), num_cond_inputs)
        self.trunk = nn.Sequential(
            nn.Tanh(),
            WrappedMaskedLinear(hidden),
            nn.Tanh(),
            WrappedMaskedLinear(get_mask(num_hidden, 2 * num_inputs, num_inputs, "output")),
        )

    def forward(self, inputs: Tensor, cond_inputs: Tensor | None = None) -> Tensor:
        m, a = self.trunk(self.joiner(inputs, cond_inputs)).chunk(2, 1)
        return torch.cat([m, 0.5 * a], 1)


class SmallMADE(nn.Module):
    """Two hidden layers in the natural order; what its subclasses do with the input and the heads differs."""

    def __init__(self, dim: int, hidden: int, heads: int = 1) -> None:
        super().__init__()
        degrees, inputs = torch.arange(hidden) % max(1, dim - 1), torch.arange(dim)
        self.w1 = nn.Parameter(torch.randn(hidden, dim) / dim**0.5)
        self.b1 = nn.Parameter(torch.randn(hidden) / 2)
        self.register_buffer("m1", degrees[:, None] >= inputs)
        self.register_buffer("m2", inputs[:, None] > degrees)
        self.heads = nn.ParameterList(torch.randn(dim, hidden) / hidden**0.5 for _ in range(heads))
        self.biases = nn.ParameterList(torch.randn(dim) / 2 for _ in range(heads))

    def body(self, x: Tensor) -> Tensor:
        return F.elu(x @ (self.w1.masked_fill(~self.m1, 0.0)).t() + self.b1)

    def head(self, h: Tensor, number: int) -> Tensor:
        return torch.addmm(self.biases[number], h, torch.where(self.m2, self.heads[number], 0.0).t())


class TwoHeads(SmallMADE):
    """A matrix for the means and one for the log-scales, stacked: (N, D, 2)."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return torch.stack([self.head(h, 0), self.head(h, 1).tanh()], dim=-1)


class TwoHeadsInARow(SmallMADE):
    """The same as (N, 2, D)."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return torch.stack((self.head(h, 0), self.head(h, 1).tanh()), 1)


class Permuted(TwoHeads):
    """In an order of its own, by taking the input in that order and putting the parameters back."""

    def __init__(self, dim: int, hidden: int, permutation: Tensor) -> None:
        super().__init__(dim, hidden, 2)
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort())

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x[:, self.permutation])
        mean, log_scale = (self.head(h, i).index_select(1, self.inverse_permutation) for i in (0, 1))
        return torch.cat([mean, log_scale], -1)


class Flipped(TwoHeads):
    """From the last dimension to the first."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.head(self.body(x.flip(-1)), 0).flip(1), self.head(self.body(x.flip(-1)), 1).flip(1)), 1)


class GatedBySplits(nn.Module):
    """Every layer makes values and gates at once: halves by slices, by chunk, by split and by GLU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        degrees, inputs = torch.arange(hidden) % max(1, dim - 1), torch.arange(dim)
        twice = degrees.repeat(2)
        self.first = WrappedMaskedLinear((twice[:, None] >= inputs).float())
        self.middle = WrappedMaskedLinear((twice[:, None] >= degrees).float())
        self.last = WrappedMaskedLinear((inputs.repeat(2)[:, None] > degrees).float())

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        half = h.shape[1] // 2
        h = h[:, :half].tanh() * torch.sigmoid(h[:, half:])
        value, gate = self.middle(h).split(half, 1)
        h = h + value * gate.sigmoid()
        value, gate = self.middle(h).chunk(2, dim=-1)
        h = value + F.glu(self.middle(h), dim=-1) - gate
        return self.last(h)


class RandomResidual(nn.Module):
    """Residual blocks with random degrees: a block keeps the degrees of what it adds to."""

    def __init__(self, dim: int, hidden: int, num_params: int, order: Tensor, seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        place = order.argsort() + 1  # the first dimension has degree 1
        degrees = torch.randint(1, max(2, dim), (hidden,), generator=rng)
        inner = torch.maximum(torch.randint(1, max(2, dim), (hidden,), generator=rng), degrees.min())
        self.initial = WrappedMaskedLinear((degrees[:, None] >= place).float())
        self.inside = nn.ModuleList(WrappedMaskedLinear((inner[:, None] >= degrees).float()) for _ in range(2))
        self.outside = nn.ModuleList(WrappedMaskedLinear((degrees[:, None] >= inner).float()) for _ in range(2))
        self.final = WrappedMaskedLinear((place.repeat_interleave(num_params)[:, None] > degrees).float())

    def forward(self, x: Tensor) -> Tensor:
        h = self.initial(x)
        for inside, outside in zip(self.inside, self.outside, strict=True):
            h = h + outside(F.relu(inside(F.relu(h))))
        return self.final(h)
