"""``AffineCoupling``: half of the dimensions is moved and scaled by what the other half says."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .transform import VectorTransform, bounded

__all__ = ["AffineCoupling", "AffineCouplingTransform"]


class AffineCoupling(nn.Module):
    r"""A layer :math:`z_B = u_B e^{s(u_A, c)} + m(u_A, c)`, :math:`z_A = u_A`; calling it gives the transform.

    Dinh, Sohl-Dickstein, Bengio: "Density estimation using Real NVP" (2017), equations 4, 5 and 7. Both ways are
    parallel. Log-scales are bounded softly, :math:`s = a / (1 + |a| / 5)`. New layers are the identity.

    Args:
        features: d, at least 2.
        hidden_features: sizes of the hidden layers of the network from u_A and c to s and m.
        context_features: the size of c; 0 for none.
        flip: whether A are the odd dimensions: alternate it between layers.

    Raises:
        ValueError: for sizes that make no sense.

    Example:
        >>> layer = AffineCoupling(4, [16], context_features=3)
        >>> z, log_det = layer(torch.randn(8, 3)).to_data(torch.randn(5, 8, 4))
        >>> z.shape, log_det.shape
        (torch.Size([5, 8, 4]), torch.Size([5, 8]))
    """

    kept: Tensor
    moved: Tensor
    places: Tensor

    def __init__(
        self, features: int, hidden_features: Sequence[int] = (64,), *, context_features: int = 0, flip: bool = False
    ) -> None:
        super().__init__()
        if features < 2:
            raise ValueError(f"features must be at least 2, one half for the other, got {features}")
        if context_features < 0 or any(size < 1 for size in hidden_features):
            raise ValueError(
                "hidden_features must be positive and context_features not negative, got "
                f"{list(hidden_features)} and {context_features}"
            )
        self.features, self.context_features = features, context_features
        halves = (torch.arange(0, features, 2), torch.arange(1, features, 2))
        self.register_buffer("kept", halves[flip], persistent=False)
        self.register_buffer("moved", halves[not flip], persistent=False)
        self.register_buffer("places", torch.cat([self.kept, self.moved]).argsort(), persistent=False)
        sizes = [len(self.kept) + context_features, *hidden_features]
        layers: list[nn.Module] = []
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.Tanh()]
        last = nn.Linear(sizes[-1], 2 * len(self.moved))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*layers, last)

    def forward(self, context: Tensor | None = None) -> "AffineCouplingTransform":
        """``context`` (..., context_features), None exactly if the layer takes none."""
        got = 0 if context is None else context.shape[-1]
        if got != self.context_features:
            raise ValueError(f"context must have {self.context_features} features, got {got}")
        return AffineCouplingTransform(self, context)


class AffineCouplingTransform(VectorTransform):
    """What :class:`AffineCoupling` gives for one context."""

    def __init__(self, layer: AffineCoupling, context: Tensor | None) -> None:
        super().__init__()
        self.layer, self.context = layer, context

    def to_data(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved, shift, log_scale = self._parts(noise)
        return self._joined(kept, moved * log_scale.exp() + shift), log_scale.sum(-1)

    def to_noise(self, data: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved, shift, log_scale = self._parts(data)
        return self._joined(kept, (moved - shift) * (-log_scale).exp()), -log_scale.sum(-1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both halves, shift and log-scale, of one leading shape."""
        if self.context is not None:
            lead = torch.broadcast_shapes(x.shape[:-1], self.context.shape[:-1])
            x = x.expand(*lead, -1)
        kept, moved = x[..., self.layer.kept], x[..., self.layer.moved]
        seen = kept if self.context is None else torch.cat([kept, self.context.expand(*lead, -1)], -1)
        shift, raw = self.layer.net(seen).chunk(2, dim=-1)
        return kept, moved, shift, bounded(raw)

    def _joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved], -1)[..., self.layer.places]
