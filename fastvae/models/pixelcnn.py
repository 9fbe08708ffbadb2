"""The PixelCNN: an image one value after the other, each given all before it in raster order."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastvae.distributions import Autoregressive, Likelihood, as_likelihood
from fastvae.nn import MaskedConv2d

from .parts import check_event_shape, check_images, check_positive

__all__ = ["PixelCNN"]


class MaskedResidualBlock(nn.Module):
    """h + W relu(masked_conv(relu(h)) + condition): the masked 3x3 looks back, the 1x1 mixes channels."""

    def __init__(self, channels: int, kernel_size: int, condition_channels: int) -> None:
        super().__init__()
        self.masked = MaskedConv2d(channels, channels, kernel_size, padding=kernel_size // 2, mask="B")
        self.condition = nn.Conv2d(condition_channels, channels, 1, bias=False) if condition_channels else None
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor, condition: Tensor | None) -> Tensor:
        update = self.masked(h.relu())
        if self.condition is not None:
            update = update + self.condition(condition)
        return h + self.mix(update.relu())


class PixelCNN(nn.Module):
    """Masked residual stack of van den Oord, Kalchbrenner and Kavukcuoglu (2016): A once, then B, then 1x1 layers.

    Channels of one pixel are independent given the earlier pixels. A condition enters every layer by an unmasked path,
    so that even the first pixel sees all of it.

    Args:
        event_shape: (C, H, W).
        likelihood: a family, its name, or its config.
        channels: width of the stack.
        num_blocks: residual blocks, each with one masked convolution.
        first_kernel_size: odd size of the first (mask A) kernel.
        kernel_size: odd size of the later (mask B) kernels.
        condition_channels: F of the condition maps; 0 for an unconditional net.

    Raises:
        ValueError: for a shape, a size or a name that makes no sense.

    Example:
        >>> import torch
        >>> net = PixelCNN((1, 8, 8), "bernoulli", channels=8, num_blocks=2)
        >>> net.log_prob(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        likelihood: Likelihood | str | dict[str, Any] = "bernoulli",
        channels: int = 64,
        num_blocks: int = 7,
        first_kernel_size: int = 7,
        kernel_size: int = 3,
        condition_channels: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = check_event_shape(event_shape)
        check_positive(channels=channels, num_blocks=num_blocks)
        for name, size in (("first_kernel_size", first_kernel_size), ("kernel_size", kernel_size)):
            check_positive(**{name: size})
            if size % 2 == 0:
                raise ValueError(f"{name} must be odd, got {size}: an even kernel has no centre")
        if condition_channels < 0:
            raise ValueError(f"condition_channels must not be negative, got {condition_channels}")
        self.family = as_likelihood(likelihood)
        self.options = {
            "channels": channels,
            "num_blocks": num_blocks,
            "first_kernel_size": first_kernel_size,
            "kernel_size": kernel_size,
            "condition_channels": condition_channels,
        }
        maps = (condition_channels, *self.event_shape[1:])
        self.condition_shape = maps if condition_channels else None  # of one image, for the sampler
        values = self.event_shape[0]
        padding = first_kernel_size // 2
        self.first = MaskedConv2d(values, channels, first_kernel_size, padding=padding, mask="A")
        self.first_condition = nn.Conv2d(condition_channels, channels, 1, bias=False) if condition_channels else None
        blocks = [MaskedResidualBlock(channels, kernel_size, condition_channels) for _ in range(num_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.hidden = nn.Conv2d(channels, channels, 1)
        self.last = nn.Conv2d(channels, self.family.num_maps(values), 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Parameters of every value given the earlier ones, in one parallel pass.

        Args:
            x: (N, C, H, W) in the units of the data.
            condition: (N, F), (N, F, 1, 1) or (N, F, H, W); None exactly if ``condition_channels`` is 0.

        Returns:
            (N, P, H, W), P the family's ``num_maps(C)``.
        """
        x, condition = self._check(x, condition)
        h = self.first(self.family.scale(x))
        if self.first_condition is not None:
            h = h + self.first_condition(condition)
        for block in self.blocks:
            h = block(h, condition)
        return self.last(self.hidden(h.relu()).relu())

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p(x | condition) in nats, exact: ``x`` (N, C, H, W) -> (N,)."""
        x, condition = self._check(x, condition)
        return Autoregressive(self, self.family, condition, self.event_shape).log_prob(x)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {"event_shape": list(self.event_shape), "likelihood": self.family.config(), **self.options}

    def _check(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = check_images(x, self.event_shape, self.last.weight)
        size = self.options["condition_channels"]
        if (condition is None) != (size == 0):
            got = "none" if condition is None else f"one of shape {tuple(condition.shape)}"
            raise ValueError(
                f"this net takes {f'a condition with {size} channels' if size else 'no condition'}, got {got}"
            )
        if condition is None:
            return x, None
        if condition.ndim == 2:
            condition = condition[:, :, None, None]
        maps = ((1, 1), self.event_shape[1:])
        if condition.ndim != 4 or condition.shape[:2] != (x.shape[0], size) or tuple(condition.shape[2:]) not in maps:
            expected = f"({x.shape[0]}, {size}), ({x.shape[0]}, {size}, 1, 1) or ({x.shape[0]}, {size}, *{maps[1]})"
            raise ValueError(f"condition must have shape {expected}, got {tuple(condition.shape)}")
        return x, condition
