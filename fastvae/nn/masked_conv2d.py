"""``MaskedConv2d``: a drop-in for ``nn.Conv2d`` in autoregressive image models."""

from typing import Any

import torch
from torch import Tensor, nn

from fastvae.ops.masked_conv2d import NamedMask, decide, masked_conv2d_by_taps, taps_for
from fastvae.ops.masked_conv2d_calls import key_of, known_call
from fastvae.ops.masked_conv2d_checks import check_arguments, check_channels, check_flag, check_mask
from fastvae.ops.masked_conv2d_taps import named_taps, taps_of

__all__ = ["MaskedConv2d", "keep_values"]


class MaskedConv2d(nn.Conv2d):
    """Convolution that sees only earlier pixels in raster order; see :func:`fastvae.ops.masked_conv2d`.

    Arguments in the order of ``nn.Conv2d``, the same parameters, initialisation and state dict; ``mask`` and
    ``num_colours`` are the additions. The size of the image is kept, so ``padding`` is
    ``dilation * (kernel_size // 2)``, its default here. The weight is stored whole; its masked taps have no effect and
    no gradient. Nothing is derived from the weight but in a call, so nothing can be out of date.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd, one number or (rows, columns); one row is the horizontal stack of a gated net.
        stride: 1.
        padding: None, "same", or the number that keeps the size of the image.
        dilation: the distance between taps, one number or two equal ones.
        groups: 1.
        bias: whether to learn one.
        padding_mode: "zeros".
        mask: "A" for a first layer, whose pixel must not see itself, "B" for every later one; "vertical",
            "vertical-strict", or a boolean tensor that broadcasts to the weight, of which a copy is kept.
        num_colours: the groups of channels that see each other within a pixel, for masks A and B.
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

    given_mask: Tensor

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
        mask: NamedMask | Tensor,
        num_colours: int = 1,
    ) -> None:
        check_channels("in_channels", in_channels)
        check_channels("out_channels", out_channels)
        check_flag("bias", bias)
        size = _two_numbers("kernel_size", kernel_size)
        if any(number < 1 or number % 2 == 0 for number in size):
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
        keeping = (step * (size[0] // 2), step * (size[1] // 2))
        if padding is not None and padding != "same" and _both(padding) != keeping:
            raise ValueError(
                f"padding must be {keeping[0] if keeping[0] == keeping[1] else keeping} = dilation * "
                f"(kernel_size // 2) to keep the size of the image, got {padding!r}; leave it out"
            )
        super().__init__(
            in_channels, out_channels, size, 1, keeping, step, 1, bias, "zeros", device=device, dtype=dtype
        )
        given = mask.to(self.weight.device) if isinstance(mask, Tensor) else mask
        check_mask(given, self.weight, num_colours)
        self.num_colours = num_colours
        self.mask_name: NamedMask | None = None if isinstance(given, Tensor) else given
        # read once: a compiled forward could not look at the values
        self._taps = taps_of(mask, size) if isinstance(mask, Tensor) else named_taps(size, mask, num_colours)
        self.register_buffer("given_mask", given.clone() if isinstance(given, Tensor) else None, persistent=False)
        # beside the buffer, which holds nothing on the meta device
        self._mask_values = mask.detach().cpu().clone() if isinstance(mask, Tensor) else None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.given_mask
        super()._apply(fn, recurse)
        keep_values(before, self.given_mask, self._mask_values)
        return self

    @property
    def mask(self) -> NamedMask | Tensor:
        """The mask that was given."""
        return self.mask_name or self.given_mask

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, dilation, colours = self.weight, self.bias, self.dilation[0], self.num_colours
        key = key_of("plain", self.mask_name, dilation, colours, x, weight, bias)
        if (call := known_call(key)) is not None:
            return call(x, weight, bias)
        check_arguments(x, weight, bias, dilation)
        taps = self._taps
        if key is not None:  # what is remembered serves others: not what an attribute was before it was replaced
            check_mask(self.mask, weight, colours)
            taps = taps_for(self.mask, weight, colours)
        if key is not None and x.ndim == 4:
            return decide(key, x, weight, taps, self.mask, dilation, colours)(x, weight, bias)
        return masked_conv2d_by_taps(x, weight, bias, taps, self.mask, dilation, colours)

    def extra_repr(self) -> str:
        mask = "given" if self.mask_name is None else repr(self.mask_name)
        colours = "" if self.num_colours == 1 else f", num_colours={self.num_colours}"
        return f"{super().extra_repr()}, mask={mask}{colours}"


def keep_values(before: Tensor | None, after: Tensor | None, values: Tensor | None) -> None:
    """A mask that is in no state dict must keep its values where ``to_empty`` makes new memory for all tensors."""
    if after is None or before is None or after is before or after.is_meta:
        return
    source = values if before.is_meta else before
    if source is not None and after.shape == source.shape:
        with torch.no_grad():
            after.copy_(source)


def _both(value: Any) -> Any:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _two_numbers(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    both = _both(value)
    if len(both) != 2:
        raise ValueError(f"{name} must be one number or two, got {value}")
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in both):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    return both


def _one_number(name: str, value: int | tuple[int, int]) -> int:
    both = _two_numbers(name, value)
    if both[0] != both[1]:
        raise ValueError(f"{name} must be one number or two equal ones, got {value}")
    return both[0]
