"""Affine flows whose shift and scale of each dimension come from the ones before it: MAF and IAF."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvae.nn import MADE

from .transform import VectorTransform, bounded

__all__ = ["AutoregressiveTransform", "InverseAutoregressive", "MaskedAutoregressive"]


class AutoregressiveTransform(VectorTransform):
    r""":math:`z_i = u_i e^{l_i} + m_i` with :math:`(m_i, l_i)` of earlier dimensions of the data or of the noise.

    Log-scales are bounded softly, :math:`l = a / (1 + |a| / 5)`, or gated. The way that starts from what the network
    reads is one parallel pass; the other, by :meth:`fastvae.nn.MADE.solve`, computes every unit once, too, but in d
    dependent steps.

    Args:
        made: two parameters for each dimension.
        context: (..., C), or None; its leading dimensions broadcast with what is transformed.
        reads: ``"data"`` (a masked autoregressive flow: to noise is parallel) or ``"noise"`` (an inverse one: to data
            is parallel).
        gate_bias: None for l softly bounded by 5. A number for the gate of Kingma et al. (2016), equation 14:
            :math:`e^l = \sigma(s + \text{bias})` and the shift :math:`(1 - e^l) m`.
    """

    def __init__(
        self, made: MADE, context: Tensor | None, reads: Literal["data", "noise"], gate_bias: float | None
    ) -> None:
        super().__init__()
        self.made, self.context, self.reads, self.gate_bias = made, context, reads, gate_bias

    def to_data(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        if self.reads == "noise":
            shift, log_scale = self._affine(self.made(noise, self.context))
            return _to_data(noise, shift, log_scale), log_scale.sum(-1)
        data, params = self._solved(noise, _to_data)
        return data, self._affine(params)[1].sum(-1)

    def to_noise(self, data: Tensor) -> tuple[Tensor, Tensor]:
        if self.reads == "data":
            shift, log_scale = self._affine(self.made(data, self.context))
            return _to_noise(data, shift, log_scale), -log_scale.sum(-1)
        noise, params = self._solved(data, _to_noise)
        return noise, -self._affine(params)[1].sum(-1)

    def _affine(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters (..., 2) -> shift and log-scale (...)."""
        shift, raw = params.unbind(-1)
        if self.gate_bias is None:
            return shift, bounded(raw)
        raw = raw + self.gate_bias
        return torch.sigmoid(-raw) * shift, F.logsigmoid(raw)

    def _solved(self, x: Tensor, step: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """``step(given, shift, log_scale)``: each value from its own."""
        if self.context is not None:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-1], self.context.shape[:-1]), -1)
        return self.made.solve(x, self.context, lambda given, params: step(given, *self._affine(params)))


def _to_data(noise: Tensor, shift: Tensor, log_scale: Tensor) -> Tensor:
    return noise * log_scale.exp() + shift


def _to_noise(data: Tensor, shift: Tensor, log_scale: Tensor) -> Tensor:
    return (data - shift) * (-log_scale).exp()


class _Autoregressive(nn.Module):
    """A MADE of two parameters for each dimension; calling it gives the transform of a context."""

    reads: Literal["data", "noise"]

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (64, 64),
        *,
        context_features: int = 0,
        order: Sequence[int] | Tensor | None = None,
        activation: str = "elu",
        gate_bias: float | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"order": order, "context_features": context_features, "activation": activation}
        self.made = MADE(features, hidden_features, num_params=2, **options)
        self.gate_bias = gate_bias
        last = [self.made.layers[-1], *self.made.conditions[-1:]]
        for parameter in (parameter for layer in last for parameter in layer.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, context: Tensor | None = None) -> AutoregressiveTransform:
        """``context`` (..., context_features), None exactly if the layer takes none."""
        return AutoregressiveTransform(self.made, context, self.reads, self.gate_bias)

    def extra_repr(self) -> str:
        return f"gate_bias={self.gate_bias}"


class MaskedAutoregressive(_Autoregressive):
    """A layer of a masked autoregressive flow: densities of given points are parallel, as a prior needs them.

    Papamakarios, Pavlakou, Murray: "Masked autoregressive flow for density estimation" (2017), equations 2 and 3.
    New layers are the identity.

    Args:
        features: d.
        hidden_features: sizes of the hidden layers of the :class:`fastvae.nn.MADE`.
        context_features: the size of the context; 0 for none.
        order: a permutation of 0..d-1; reverse it from layer to layer.
        activation: of the MADE.
        gate_bias: see :class:`AutoregressiveTransform`.

    Example:
        >>> layer = MaskedAutoregressive(3, [16])
        >>> x = layer().to_data(torch.randn(5, 3))[0]
        >>> x.shape
        torch.Size([5, 3])
    """

    reads = "data"


class InverseAutoregressive(_Autoregressive):
    """A layer of an inverse autoregressive flow: draws with their densities are parallel, as a proposal needs them.

    Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling: "Improving variational inference with inverse
    autoregressive flow" (2016), algorithm 1. The density of points that it did not draw takes d dependent steps.
    Without a gate, new layers are the identity.

    Args:
        features, hidden_features, context_features, order, activation: as for :class:`MaskedAutoregressive`; the
            context is what the encoder says beside the mean and scale of the base.
        gate_bias: see :class:`AutoregressiveTransform`; 1 to 2 in the paper, so that new layers nearly keep their
            input.

    Example:
        >>> layer = InverseAutoregressive(3, [16], context_features=4, gate_bias=1.5)
        >>> z, log_det = layer(torch.randn(8, 4)).to_data(torch.randn(5, 8, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 8, 3]), torch.Size([5, 8]))
    """

    reads = "noise"
