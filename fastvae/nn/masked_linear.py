"""``MaskedLinear``: a drop-in for ``nn.Linear`` that multiplies its weight by a mask."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MaskedLinear"]


class MaskedLinear(nn.Linear):
    """Linear layer whose output units see only a part of the input units.

    Equal to ``F.linear(x, weight * mask, bias)``; the weight is stored whole, what is masked has no effect and no
    gradient. Parameters, initialisation and state dict are those of ``nn.Linear``: the mask is a buffer that is not
    saved, because it follows from how the layer is made.

    Args:
        in_features: as in ``nn.Linear``.
        out_features: as in ``nn.Linear``.
        bias: as in ``nn.Linear``.
        device: as in ``nn.Linear``.
        dtype: as in ``nn.Linear``.
        mask: (out_features, in_features) boolean, True where an output sees an input; a copy is kept.

    Shapes:
        (..., in_features) to (..., out_features).

    Raises:
        TypeError: if the mask is no boolean tensor.
        ValueError: if it has another shape.

    Example:
        >>> import torch
        >>> layer = MaskedLinear(3, 3, mask=torch.ones(3, 3, dtype=torch.bool).tril(-1))
        >>> torch.equal(layer(torch.ones(3))[0], layer.bias[0])
        True
    """

    mask: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        mask: Tensor,
    ) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a boolean tensor, got {got}; convert it, for example mask.bool()")
        if tuple(mask.shape) != (out_features, in_features):
            raise ValueError(f"mask must have shape {(out_features, in_features)}, got {tuple(mask.shape)}")
        super().__init__(in_features, out_features, bias, device, dtype)
        self.register_buffer("mask", mask.detach().clone().to(self.weight.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask keeps {int(self.mask.sum())} of {self.mask.numel()}"
