"""The gated PixelCNN: two stacks of masked convolutions, which see all of the past in reach."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastvae.distributions import Likelihood
from fastvae.nn import CausalStack

from .causal_net import CausalNet

__all__ = ["GatedPixelCNN"]


class GatedPixelCNN(CausalNet):
    """Van den Oord et al.: "Conditional image generation with PixelCNN decoders" (2016): no blind spot, gated layers.

    A vertical stack over the rows above and a horizontal one along the row, :class:`fastvae.nn.CausalStack`, and two
    1x1 layers. Channels of one pixel are independent given the earlier pixels. A condition enters every layer by an
    unmasked path.

    Args:
        event_shape: (C, H, W).
        likelihood: a family, its name, or its config.
        channels: width of both stacks.
        num_blocks: layers after the first.
        first_kernel_size: odd size of the first (mask A) kernels.
        kernel_size: odd size of the later (mask B) kernels.
        condition_channels: F of the condition; 0 for an unconditional net.

    Raises:
        ValueError: for a shape, a size or a name that makes no sense.

    Example:
        >>> import torch
        >>> net = GatedPixelCNN((1, 8, 8), "bernoulli", channels=8, num_blocks=2)
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
        self.stack = CausalStack(
            values, channels, 1 + num_blocks, kernel_size, first_kernel_size, condition_channels=condition_channels
        )
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
        if condition is not None and condition.shape[2:] == (1, 1):
            condition = condition.flatten(1)
        h = self.stack(self.family.scale(x), condition)
        return self.last(self.hidden(h.relu()).relu())
