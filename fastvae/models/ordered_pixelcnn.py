"""The PixelCNN in any generation order, or an ensemble of orders with one set of weights."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvae.distributions import Likelihood, as_likelihood, checked_data
from fastvae.nn import LocallyMaskedConv2d

from .order_ensemble import OrderEnsemble
from .parts import check_event_shape, check_images, check_positive

__all__ = ["OrderedPixelCNN"]


class OrderedBlock(nn.Module):
    """h + W relu(locally_masked_conv(relu(h)))."""

    masked: LocallyMaskedConv2d
    mix: nn.Conv2d

    def __init__(self, channels: int, kernel_size: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.masked = LocallyMaskedConv2d(channels, channels, kernel_size, mask="B", size=size)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor, bits: Tensor) -> Tensor:
        return h + self.mix(self.masked(h.relu(), bits=bits).relu())


class OrderedPixelCNN(OrderEnsemble):
    """Jain, Abbeel, Pathak: "Locally masked convolution for autoregressive models" (2020), on the stack of
    :class:`PixelCNN`.

    Every pixel masks the convolution by what comes before it in the order, so one set of weights serves any order. For
    one pass in raster order :class:`PixelCNN` and :class:`GatedPixelCNN` are faster.

    Args:
        event_shape: (C, H, W).
        likelihood: a family, its name, or its config.
        channels: width of the stack.
        num_blocks: residual blocks, each with one masked convolution.
        first_kernel_size: odd size of the first (mask A) kernel, at most 7.
        kernel_size: odd size of the later (mask B) kernels, at most 7.
        order: ``"raster"``, ``"s_curve"``, ``"hilbert"``, ``"random"``, an order (H * W, 2) of rows and columns,
            or a sequence of such orders.
        num_orders: how many flips and transposes of a named order, or random ones.

    Raises:
        ValueError: for a shape, a size or a name that makes no sense.

    Example:
        >>> model = OrderedPixelCNN((1, 4, 4), channels=4, num_blocks=1, order="s_curve", num_orders=8)
        >>> model.log_prob(torch.zeros(3, 1, 4, 4)).shape
        torch.Size([3])
    """

    first_bits: Tensor
    later_bits: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        likelihood: Likelihood | str | dict[str, Any] = "bernoulli",
        channels: int = 64,
        num_blocks: int = 7,
        first_kernel_size: int = 7,
        kernel_size: int = 3,
        order: Any = "s_curve",
        num_orders: int = 1,
    ) -> None:
        shape = check_event_shape(event_shape)
        check_positive(channels=channels, num_blocks=num_blocks)
        super().__init__(order, num_orders, shape[1:])
        self.event_shape, self.family = shape, as_likelihood(likelihood)
        self.options = {
            "channels": channels,
            "num_blocks": num_blocks,
            "first_kernel_size": first_kernel_size,
            "kernel_size": kernel_size,
        }
        self.first = LocallyMaskedConv2d(shape[0], channels, first_kernel_size, mask="A", size=shape[1:])
        blocks = [OrderedBlock(channels, kernel_size, shape[1:]) for _ in range(num_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.hidden = nn.Conv2d(channels, channels, 1)
        self.last = nn.Conv2d(channels, self.family.num_maps(shape[0]), 1)
        for name, layer in (("first_bits", self.first), ("later_bits", blocks[0].masked)):
            bits = torch.stack([layer.tap_bits(each) for each in self.orders])  # (n, H, W)
            self.register_buffer(name, bits, persistent=False)

    def forward(self, x: Tensor, index: int = 0) -> Tensor:
        """Parameters of every value given the earlier ones of order number ``index``: (N, C, H, W) -> (N, P, H, W)."""
        x = check_images(x, self.event_shape, self.last.weight)
        h = self.first(self.family.scale(x), bits=self.first_bits[index])
        for block in self.blocks:
            h = block(h, self.later_bits[index])
        return self.last(self.hidden(h.relu()).relu())

    def log_prob_in_order(self, x: Tensor, index: int) -> Tensor:
        x = check_images(x, self.event_shape, self.last.weight)
        self.family.check(x)
        with checked_data():
            return self.family(self(x, index)).log_prob(x)

    def sample_in_order(self, num_samples: int, index: int, seed: int, first_id: int = 0) -> Tensor:
        """The features of a pixel are computed once, when its turn comes: all together the price of one pass.

        The draws follow ``seed`` and ``first_id``, from torch's generator.
        """
        like = self.last.weight
        blocks = [cast(OrderedBlock, block) for block in self.blocks]
        masked = [self.first, *(block.masked for block in blocks)]
        # what each masked layer reads, zero where nothing is known yet: so the order masks by itself
        known = [
            like.new_zeros(num_samples, layer.in_channels, *_padded(self.event_shape[1:], layer)) for layer in masked
        ]
        x = like.new_zeros(num_samples, *self.event_shape)
        with torch.no_grad(), torch.random.fork_rng([like.device] if like.device.type == "cuda" else []):
            torch.manual_seed(seed ^ (first_id << 32))
            for row, column in self.orders[index].tolist():
                h = _at(self.first, known[0], row, column)
                for block, before in zip(blocks, known[1:], strict=True):
                    _put(before, block.masked, row, column, h.relu())
                    h = h + block.mix(_at(block.masked, before, row, column).relu())
                here = self.family(self.last(self.hidden(h.relu()).relu())).sample()
                x[:, :, row : row + 1, column : column + 1] = here
                _put(known[0], self.first, row, column, self.family.scale(here))
        return x

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {
            "event_shape": list(self.event_shape),
            "likelihood": self.family.config(),
            **self.options,
            "order": self.order,
            "num_orders": self.num_orders,
        }


def _padded(size: tuple[int, int], layer: LocallyMaskedConv2d) -> tuple[int, int]:
    border = layer.kernel_size[0] - 1
    return size[0] + border, size[1] + border


def _at(layer: LocallyMaskedConv2d, known: Tensor, row: int, column: int) -> Tensor:
    """The output of a layer at one pixel, (N, C, 1, 1), from what is known of its padded input."""
    size = layer.kernel_size[0]
    return F.conv2d(known[:, :, row : row + size, column : column + size], layer.weight, layer.bias)


def _put(known: Tensor, layer: LocallyMaskedConv2d, row: int, column: int, value: Tensor) -> None:
    middle = layer.kernel_size[0] // 2
    known[:, :, row + middle, column + middle] = value[:, :, 0, 0]
