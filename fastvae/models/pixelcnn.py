"""The PixelCNN: an image one value after the other, each given all before it in raster order."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastvae.distributions import Likelihood
from fastvae.nn import MaskedConv2d

from .causal_net import CausalNet

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


class PixelCNN(CausalNet):
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
        super().__init__(
            event_shape, likelihood, channels, num_blocks, first_kernel_size, kernel_size, condition_channels
        )
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
