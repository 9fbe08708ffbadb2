"""The definition of the masked residual step: a residual plus an activated masked convolution."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .masked_conv2d import NamedMask, masked_conv2d

__all__ = ["Activation", "activate", "masked_residual"]

Activation = Literal["relu", "elu", "none"]


def activate(h: Tensor, activation: Activation) -> Tensor:
    """relu(h), elu(h) or ``h`` itself."""
    if activation == "none":
        return h
    return F.relu(h) if activation == "relu" else F.elu(h)


def masked_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    mask: NamedMask | Tensor,
    activation: Activation = "relu",
    dilation: int = 1,
) -> Tensor:
    """residual + activation(masked convolution of ``x`` + bias).

    Args:
        x: (N, C_in, H, W), any floating dtype.
        weight: (C_out, C_in, kH, kW).
        bias: (C_out,) or None.
        residual: (N, C_out, H, W).
        mask: as in :func:`masked_conv2d`.
        activation: "relu", "elu" or "none".
        dilation: as in :func:`masked_conv2d`.

    Returns:
        (N, C_out, H, W).
    """
    return residual + activate(masked_conv2d(x, weight, bias, mask, dilation), activation)
