"""Naive sampling: a full pass of the network for every pixel, the definition of what planned sampling gives."""

from collections.abc import Callable

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
    *,
    known: Tensor | None = None,
    values: Tensor | None = None,
    on_rows: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Draw images in raster order with one parallel pass per pixel.

    Args:
        model: the causal network.
        draw: the likelihood.
        uniform: (B, C, H, W) numbers in (0, 1).
        condition: (B, ...) or None.
        num_pixels: draw only the first so many pixels and leave the rest zero (every pixel costs the same).
        dtype: of the images.
        known: (B, C, H, W), True for values that are given; pixels that are known in all images take no pass.
        values: (B, C, H, W), zeros where nothing is known.
        on_rows: called with (row, values (B, C, 1, W)) when a row is finished.

    Returns:
        The images (B, C, H, W) and the log-probabilities (B,) in nats of the values drawn, None where the likelihood
        has none.
    """
    batch, channels, height, width = uniform.shape
    images = torch.zeros(uniform.shape, dtype=dtype, device=uniform.device)
    if known is not None and values is not None:
        images.copy_(values)
    noise = draw.prepare(uniform.permute(2, 3, 0, 1))  # (H, W, B, C)
    nats: list[Tensor | None] = []
    with torch.no_grad():
        for pixel in range(height * width if num_pixels is None else num_pixels):
            row, column = divmod(pixel, width)
            given = None if known is None else known[:, :, row, column]
            if given is None or not given.all():
                out = model(images) if condition is None else model(images, condition)
                out = split_params(out[:, :, row : row + 1, column : column + 1], draw.groups(channels))
                x, here = _pixel(draw, noise[row, column], out[:, 0, 0], given, images[:, :, row, column])
                images[:, :, row, column] = x
                nats.append(here)
            if on_rows is not None and column == width - 1:
                on_rows(row, images[:, :, row : row + 1].clone())
    found = [each for each in nats if each is not None]
    if found:
        return images, torch.stack(found).double().sum(0).to(found[0].dtype)
    return images, None if nats else torch.zeros(batch, dtype=dtype, device=uniform.device)


def _pixel(
    draw: Draw, noise: Tensor, params: Tensor, given: Tensor | None, values: Tensor
) -> tuple[Tensor, Tensor | None]:
    """One pixel of all images, (B, C), and the nats (B,) of what was drawn."""
    x = draw.sample(noise, params) if given is None else draw.complete(noise, params, given, values)
    nats = draw.log_prob(x, params)
    if nats is None:
        return x, None
    return x, (nats if given is None else nats.masked_fill(given, 0.0)).sum(1)
