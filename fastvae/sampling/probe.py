"""Probe: does a network that could not be planned depend on pixels that are not drawn yet? Asked of its numbers."""

import torch
from torch import Tensor, nn

from .certify import split_params, tolerance
from .draw import Draw
from .trace import NotAutoregressiveError

__all__ = ["refuse_leaks", "refuse_ordered_channels"]

_PART = 64  # images in one pass
_FIX = "Mask what reads ahead (type A in the first layer, type B later), or shift its input"
_JOINT = (
    "the channels of a pixel are ordered in this model (colour masks: green depends on red of the same pixel, blue on "
    "both), but a sampler draws them together, from parameters that depend on earlier pixels only. Make the first "
    "layer's mask exclude all channels of the centre pixel, or sample each channel with a loop of your own"
)


def refuse_leaks(
    model: nn.Module, draw: Draw, event_shape: tuple[int, ...], condition_shape: tuple[int, ...] | None
) -> None:
    """Change a random image from pixel p on, for every p: the parameters of pixels up to p must stay.

    Costs H W passes of a single image, as one naive sample does. A leak below the rounding that certificates allow, or
    one that only other images show, is not found; ``verify=True`` checks every batch.

    Args:
        model: ``model(x)`` or ``model(x, condition)``.
        draw: the likelihood.
        event_shape: (C, H, W).
        condition_shape: of one image, or None.

    Raises:
        NotAutoregressiveError: if repeated passes differ, images of a batch or later pixels take part, or a pixel's
            parameters depend on the pixel itself.
    """
    channels, height, width = event_shape
    groups = draw.groups(channels)
    condition = _some_condition(condition_shape)
    first, second = _two_images(model, draw, event_shape, condition)
    base = _params(model, first.expand(2, -1, -1, -1), groups, condition)[:1]  # (1, H, W, C, P)
    again = _params(model, first.expand(2, -1, -1, -1), groups, condition)[:1]
    if _changed(again, base, first).any():
        raise NotAutoregressiveError(
            "the model gives other parameters for the same image when it runs again: it draws random numbers or keeps "
            "a state; call model.eval() if this is dropout"
        )
    if _changed(_params(model, torch.cat([first, second]), groups, condition)[:1], base, first).any():
        raise NotAutoregressiveError(
            "the parameters of an image depend on the other images of the batch; normalise over channels instead"
        )
    pixels = torch.arange(height * width, device=first.device)
    for start in pixels.split(_PART):
        later = (pixels >= start[:, None]).view(-1, 1, height, width)  # (B, 1, H, W): what is changed
        images = torch.where(later, second, first)
        changed = _changed(_params(model, images, groups, condition), base, first).flatten(1, 2).any(2)  # (B, H * W)
        # rows in which a pixel before `start` moves: it depends on one that comes later
        leaks = (changed & (pixels < start[:, None])).nonzero()
        if len(leaks):
            row, column = divmod(int(leaks[0, 1]), width)
            raise NotAutoregressiveError(
                f"the model is not causal in raster order: the parameters of pixel ({row}, {column}) change with "
                f"pixels that come after it. {_FIX}"
            )
        own = changed[torch.arange(len(start)), start].nonzero()
        if len(own):
            pixel = int(start[own[0, 0]])
            if channels > 1:
                refuse_ordered_channels(model, draw, event_shape, condition_shape, pixel)
            raise NotAutoregressiveError(
                f"the model is not causal in raster order: the parameters of pixel {divmod(pixel, width)} change with "
                f"the pixel itself. {_FIX}"
            )


def refuse_ordered_channels(
    model: nn.Module,
    draw: Draw,
    event_shape: tuple[int, ...],
    condition_shape: tuple[int, ...] | None,
    pixel: int | None = None,
) -> None:
    """Change one channel of one pixel at a time and see which channels' parameters at that pixel move.

    Args:
        model, draw, event_shape, condition_shape: as for :func:`refuse_leaks`.
        pixel: its number in raster order; by default the centre.

    Raises:
        NotAutoregressiveError: if some do, but never in a circle: the model orders the channels of a pixel.
    """
    channels, height, width = event_shape
    if draw.joint:
        return  # the parameters of a pixel are those of all its channels: there is no order to find
    row, column = (height // 2, width // 2) if pixel is None else divmod(pixel, width)
    condition = _some_condition(condition_shape)
    first, second = _two_images(model, draw, event_shape, condition)
    images = first.repeat(channels + 1, 1, 1, 1)  # the last one stays as it is
    index = torch.arange(channels, device=images.device)
    images[index, index, row, column] = second[0, :, row, column]
    params = _params(model, images, channels, condition)[:, row, column]  # (C + 1, C, P)
    moves = _changed(params[:-1], params[-1:], first).double()  # (C, C): of channel c by another -> those that move
    if moves.any() and not torch.linalg.matrix_power(moves, channels).any():  # nilpotent: no circle
        raise NotAutoregressiveError(_JOINT)


def _two_images(
    model: nn.Module, draw: Draw, event_shape: tuple[int, ...], condition: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Two images (1, C, H, W) that the likelihood can give and that differ, if possible, everywhere."""
    some = next(iter(model.parameters()), next(iter(model.buffers()), torch.zeros(0)))
    generator = torch.Generator().manual_seed(0)
    shape = (1, *event_shape)
    if draw.name in ("bernoulli", "categorical"):
        levels = max(2, draw.num_params)
        first = torch.randint(levels, shape, generator=generator)
        second = (first + torch.randint(1, levels, shape, generator=generator)) % levels
    elif draw.name == "gaussian":
        first, second = torch.randn((2, *shape), generator=generator)
    else:
        zeros = torch.zeros(shape, dtype=some.dtype, device=some.device)
        params = _params(model, zeros, draw.groups(event_shape[0]), condition)
        # halves of (0, 1), so that g gives other values: (1, H, W, C) each
        low = torch.rand((1, *event_shape[1:], event_shape[0]), generator=generator).clamp(min=1e-3).to(some) / 2.0
        first, second = (draw.sample(draw.prepare(u), params).movedim(-1, 1) for u in (low, low + 0.499))
    return first.to(some), second.to(some)


def _some_condition(shape: tuple[int, ...] | None) -> Tensor | None:
    """Not zero, so that it shuts no gate; below one, so that as an index it is valid."""
    return None if shape is None else torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))


def _params(model: nn.Module, images: Tensor, groups: int, condition: Tensor | None) -> Tensor:
    """The parameters (B, H, W, C, P) of images that share one condition."""
    with torch.no_grad():
        if condition is None:
            return split_params(model(images), groups)
        shared = condition.to(images).expand(len(images), *condition.shape[1:])
        return split_params(model(images, shared), groups)


def _changed(params: Tensor, base: Tensor, images: Tensor) -> Tensor:
    """Where parameters (..., C, P) differ from others by more than rounding: (..., C)."""
    return ((params - base).abs() > tolerance(images) * (1.0 + base.abs())).any(-1)
