"""``LocallyMaskedConv2d``: a convolution for autoregressive image models in any generation order."""

from typing import Any, get_args

import torch
from torch import Tensor, nn

from fastvae.ops.locally_masked_conv2d import locally_masked_conv2d
from fastvae.ops.masked_conv2d_checks import check_channels, check_flag
from fastvae.ops.orders import OrderName, generation_order
from fastvae.ops.tap_bits import OrderMask, tap_bits

from .masked_conv2d import keep_values

__all__ = ["LocallyMaskedConv2d"]


class LocallyMaskedConv2d(nn.Conv2d):
    """Convolution that sees only earlier pixels in a generation order; see :func:`fastvae.ops.locally_masked_conv2d`.

    Parameters, initialisation and state dict are those of ``nn.Conv2d``: the weight is stored whole and serves every
    order, so that one network can be trained on several (Jain, Abbeel, Pathak 2020). The order given here is the one
    that is used unless a call brings its own; its tap bits are a buffer, ``bits``, that no state dict contains.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd and at most 7.
        dilation: the distance between taps in pixels.
        bias: whether to learn one.
        device: as in ``nn.Conv2d``.
        dtype: as in ``nn.Conv2d``.
        mask: "A" for a first layer, whose pixel must not see itself, "B" for every later one.
        order: "raster", "s_curve" or "hilbert", or (H * W, 2) rows and columns in generation order, for example of
            :func:`fastvae.ops.generation_order` with its flips and transpose.
        size: (H, W) of the images.

    Shapes:
        (N, in_channels, H, W) to (N, out_channels, H, W); unbatched likewise.

    Raises:
        TypeError: if ``order`` is an array that holds other things than integers.
        ValueError: for an argument out of range, or an order that does not have every pixel exactly once.

    Example:
        >>> import torch
        >>> from fastvae.ops import orientations
        >>> layer = LocallyMaskedConv2d(1, 16, 7, mask="A", order="s_curve", size=(28, 28))
        >>> x = torch.zeros(2, 1, 28, 28)
        >>> layer(x).shape
        torch.Size([2, 16, 28, 28])
        >>> eight = [layer.tap_bits(order) for order in orientations("s_curve", (28, 28))]
        >>> [layer(x, bits=bits).shape[1] for bits in eight]  # the same weights in eight orders
        [16, 16, 16, 16, 16, 16, 16, 16]
    """

    bits: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        mask: OrderMask,
        order: OrderName | Any = "raster",
        size: tuple[int, int],
    ) -> None:
        check_channels("in_channels", in_channels)
        check_channels("out_channels", out_channels)
        check_flag("bias", bias)
        with torch.device("cpu"):  # whatever the default: a layer made on meta needs its bits too
            bits = _bits(order, size, kernel_size, mask, dilation)  # checks what they share
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.mask: OrderMask = mask
        self.image_size = (int(size[0]), int(size[1]))
        self.register_buffer("bits", bits.to(self.weight.device), persistent=False)
        self._bits_values = bits  # beside the buffer, which holds nothing on the meta device

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.bits
        super()._apply(fn, recurse)
        keep_values(before, self.bits, self._bits_values)
        return self

    def tap_bits(self, order: OrderName | Any) -> Tensor:
        """(H, W) bits of another order for this layer, on its device: make them once and give them to many calls."""
        bits = _bits(order, self.image_size, self.kernel_size[0], self.mask, self.dilation[0])
        return bits.to(self.weight.device)

    def forward(self, x: Tensor, *, order: OrderName | Any | None = None, bits: Tensor | None = None) -> Tensor:
        """Convolve in the order of this layer, or in another one, given as such or by its bits.

        ``bits`` (N, H, W) lets every image have its own order.
        """
        if order is not None and bits is not None:
            raise ValueError("order and bits exclude each other, got both")
        if order is not None:
            bits = self.tap_bits(order)
        return locally_masked_conv2d(
            x, self.weight, self.bias, mask=self.bits if bits is None else bits, dilation=self.dilation[0]
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask={self.mask!r}, size={self.image_size}"


def _bits(order: Any, size: tuple[int, int], kernel_size: int, mask: OrderMask, dilation: int) -> Tensor:
    if isinstance(order, str):
        names = [name for name in get_args(OrderName) if name != "random"]
        if order not in names:
            raise ValueError(
                f"order must be one of {names} or an array of rows and columns, got {order!r}; "
                'a random one is generation_order("random", size, seed=...)'
            )
        order = generation_order(order, size)  # type: ignore[arg-type]
    return tap_bits(order, size, kernel_size, mask=mask, dilation=dilation)
