"""Naive sampling: a full pass of the network for every pixel, the definition of what planned sampling gives."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .certify import split_params
from .draw import Draw

__all__ = ["naive_samples"]


def naive_samples(
    model: nn.Module,
    draw: Draw,
    uniform: Tensor,
    condition: Tensor | None = None,
    num_pixels: int | None = None,
    dtype: torch.dtype = torch.float32,
    groups: Sequence[slice] = (slice(None),),
    order: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Draw images with one parallel pass per pixel.

    Args:
        model: the causal network.
        draw: the likelihood.
        uniform: (B, C, H, W) numbers in (0, 1).
        condition: (B, ...) or None.
        num_pixels: draw only the first so many pixels and leave the rest zero (every pixel costs the same).
        dtype: of the images.
        groups: channels that are drawn together, in their order: one pass for each group of each pixel.
        order: numbers of the pixels in raster order, by default all of them in raster order.

    Returns:
        The images (B, C, H, W) and their log-probabilities (B,) in nats, None where the likelihood has none.
    """
    _, channels, height, width = uniform.shape
    images = torch.zeros(uniform.shape, dtype=dtype, device=uniform.device)
    noise = draw.prepare(uniform).permute(2, 3, 0, 1)  # (H, W, B, C)
    nats: list[Tensor] = []
    with torch.no_grad():
        for pixel in (range(height * width) if order is None else order)[:num_pixels]:
            row, column = divmod(pixel, width)
            for group in groups:
                out = model(images) if condition is None else model(images, condition)
                params = split_params(out[:, :, row : row + 1, column : column + 1], channels)[:, 0, 0, group]
                x = draw.sample(noise[row, column][:, group], params)  # from (B, channels of the group, P)
                images[:, group, row, column] = x
                here = draw.log_prob(x, params)
                nats += [] if here is None else [here.sum(1)]
    return images, torch.stack(nats).double().sum(0).to(nats[0].dtype) if nats else None
