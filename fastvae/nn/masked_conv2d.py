"""``MaskedConv2d``: a drop-in for ``nn.Conv2d`` in autoregressive image models."""

from typing import Any

from torch import Tensor, nn

from fastvae.ops.masked_conv2d import Mask, masked_conv2d

__all__ = ["MaskedConv2d"]


class MaskedConv2d(nn.Conv2d):
    """Convolution that sees only earlier pixels in raster order; see :func:`fastvae.ops.masked_conv2d`.

    Arguments in the order of ``nn.Conv2d``, the same parameters, initialisation and state dict; ``mask`` is the one
    addition. The size of the image is kept, so ``padding`` is ``dilation * (kernel_size // 2)``, its default here.
    The weight is stored whole; its masked taps have no effect and no gradient.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd, one number or two equal ones.
        stride: 1.
        padding: None, "same", or the number that keeps the size of the image.
        dilation: the distance between taps, one number or two equal ones.
        groups: 1.
        bias: whether to learn one.
        padding_mode: "zeros".
        mask: "A" for a first layer, whose pixel must not see itself, "B" for every later one.
        device: as in ``nn.Conv2d``.
        dtype: as in ``nn.Conv2d``.

    Shapes:
        (N, in_channels, H, W) to (N, out_channels, H, W); unbatched likewise.

    Raises:
        ValueError: for an argument that is not served, with the one that is.

    Example:
        >>> import torch
        >>> layer = MaskedConv2d(1, 16, 7, mask="A")
        >>> layer.load_state_dict(nn.Conv2d(1, 16, 7, padding=3).state_dict())
        <All keys matched successfully>
        >>> layer(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 16, 28, 28])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        mask: Mask,
    ) -> None:
        if mask not in ("A", "B"):
            raise ValueError(f'mask must be "A" (without the centre) or "B" (with it), got {mask!r}')
        size = _one_number("kernel_size", kernel_size)
        if size < 1 or size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}: an even kernel has no centre tap")
        step = _one_number("dilation", dilation)
        if step < 1:
            raise ValueError(f"dilation must be a positive integer, got {dilation}")
        if _one_number("stride", stride) != 1:
            raise ValueError(f"stride must be 1, got {stride}: a masked convolution keeps the size of the image")
        if groups != 1:
            raise ValueError(f"groups must be 1, got {groups}")
        if padding_mode != "zeros":
            raise ValueError(f'padding_mode must be "zeros", got {padding_mode!r}: other modes repeat later pixels')
        keeping = step * (size // 2)
        if padding is not None and padding != "same" and padding not in (keeping, (keeping, keeping)):
            raise ValueError(
                f"padding must be {keeping} = dilation * (kernel_size // 2) to keep the size of the image, "
                f"got {padding!r}; leave it out"
            )
        super().__init__(
            in_channels, out_channels, size, 1, keeping, step, 1, bias, "zeros", device=device, dtype=dtype
        )
        self.mask: Mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return masked_conv2d(x, self.weight, self.bias, mask=self.mask, dilation=self.dilation[0])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask={self.mask!r}"


def _one_number(name: str, value: int | tuple[int, int]) -> int:
    both = value if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or both[0] != both[1]:
        raise ValueError(f"{name} must be one number or two equal ones, got {value}")
    if not isinstance(both[0], int) or isinstance(both[0], bool):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    return both[0]
