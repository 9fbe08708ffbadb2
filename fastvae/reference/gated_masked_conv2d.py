"""The definition of the gated masked convolution: one half of the channels gates the other."""

from torch import Tensor

from .masked_conv2d import NamedMask, masked_conv2d

__all__ = ["gate", "gated_masked_conv2d"]


def gate(h: Tensor, condition: Tensor | None = None) -> Tensor:
    """``h`` (N, 2C, H, W) and ``condition`` (N, 2C) or (N, 2C, H, W) -> tanh(f) * sigmoid(g), (N, C, H, W)."""
    if condition is not None:
        h = h + (condition[:, :, None, None] if condition.ndim == 2 else condition)
    f, g = h.chunk(2, 1)
    return f.tanh() * g.sigmoid()


def gated_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    mask: NamedMask | Tensor,
    dilation: int = 1,
) -> Tensor:
    """tanh(f + condition_f) * sigmoid(g + condition_g), where f and g are the halves of a masked convolution.

    Van den Oord et al.: "Conditional image generation with PixelCNN decoders" (2016), equation 4.

    Args:
        x: (N, C_in, H, W), any floating dtype.
        weight: (2C, C_in, kH, kW).
        bias: (2C,) or None.
        condition: (N, 2C), (N, 2C, H, W) or None.
        mask: as in :func:`masked_conv2d`.
        dilation: as in :func:`masked_conv2d`.

    Returns:
        (N, C, H, W).
    """
    return gate(masked_conv2d(x, weight, bias, mask, dilation), condition)
