"""``CausalStack``: the gated PixelCNN's two stacks of masked convolutions, which see all of the past in reach."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastvae.ops.masked_conv2d_checks import check_channels

from .gated_masked_conv2d import GatedMaskedConv2d

__all__ = ["CausalLayer", "CausalStack"]


class CausalLayer(nn.Module):
    """One layer of a gated PixelCNN: a vertical stack over rows, a horizontal one along a row, and the link between.

    The vertical stack sees all rows down to the pixel's own, right of it too. What the horizontal one gets of it is
    shifted down by one row, in the link and nowhere else: a shift in every layer would leave a blind spot.
    Van den Oord et al.: "Conditional image generation with PixelCNN decoders" (2016), section 2.2 and figure 2; the
    link here starts after the vertical gate, which so stays one pass, and has half the products.

    Args:
        in_channels: channels of both inputs.
        channels: channels of both outputs; equal to ``in_channels``, the horizontal input is added to its output.
        kernel_size: odd; the vertical kernel has half of its rows, the horizontal one row.
        is_first: whether ``horizontal`` is the image, whose pixel must not see itself.
        condition_channels: F, the size of the condition; 0 for none.

    Shapes:
        vertical and horizontal (N, in_channels, H, W), condition (N, F) or (N, F, H, W), to two of
        (N, channels, H, W).

    Example:
        >>> import torch
        >>> layer = CausalLayer(1, 8, 3, is_first=True)
        >>> x = torch.zeros(2, 1, 5, 5)
        >>> [y.shape for y in layer(x, x)]
        [torch.Size([2, 8, 5, 5]), torch.Size([2, 8, 5, 5])]
    """

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, *, is_first: bool = False, condition_channels: int = 0
    ) -> None:
        super().__init__()
        check_channels("in_channels", in_channels)
        check_channels("channels", channels)
        # the residual of the first layer would be the image: the pixel itself
        self.has_residual = not is_first and in_channels == channels
        self.vertical = GatedMaskedConv2d(
            in_channels, channels, kernel_size, mask="vertical", condition_channels=condition_channels
        )
        self.link = nn.Conv2d(channels, 2 * channels, 1)
        self.horizontal = GatedMaskedConv2d(
            in_channels,
            channels,
            (1, kernel_size),
            mask="A" if is_first else "B",
            condition_channels=condition_channels,
        )
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        above = self.vertical(vertical, condition)
        down = F.pad(above, (0, 0, 1, -1))  # row i gets what is known of the rows before it
        mixed = self.mix(self.horizontal(horizontal, condition, self.link(down)))
        return above, horizontal + mixed if self.has_residual else mixed


class CausalStack(nn.Module):
    """Layers of a gated PixelCNN: features of every pixel that depend on exactly the earlier pixels in reach.

    Causal and without a blind spot: with L layers of reach p = kernel_size // 2 and a first one of reach q, a pixel
    sees every earlier pixel at most q + (L - 1) p columns away and, above, q + (L - 1) p + 1 rows.

    Args:
        in_channels: channels of the image, which all are generated at once.
        channels: channels of every layer.
        num_layers: L, the first included.
        kernel_size: odd size of the later kernels.
        first_kernel_size: odd size of the first kernel.
        condition_channels: F, the size of the condition, which enters every layer by an unmasked path; 0 for none.

    Shapes:
        x (N, in_channels, H, W), condition (N, F) or (N, F, H, W), to (N, channels, H, W).

    Raises:
        ValueError: for sizes that are not positive, even kernels, or a condition that does not fit.

    Example:
        >>> import torch
        >>> stack = CausalStack(1, 8, num_layers=3, condition_channels=4)
        >>> stack(torch.zeros(2, 1, 9, 9), torch.zeros(2, 4)).shape
        torch.Size([2, 8, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_layers: int,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        condition_channels: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("channels", channels), ("num_layers", num_layers)):
            check_channels(name, value)
        first = CausalLayer(
            in_channels, channels, first_kernel_size, is_first=True, condition_channels=condition_channels
        )
        later = [
            CausalLayer(channels, channels, kernel_size, condition_channels=condition_channels)
            for _ in range(num_layers - 1)
        ]
        self.layers = nn.ModuleList([first, *later])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        vertical = horizontal = x
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, condition)
        return horizontal
