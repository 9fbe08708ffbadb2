"""How to compute a locally masked convolution on the CPU: which pixels together, and which taps they need."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastvae.reference.locally_masked_conv2d import unpack_tap_bits

from .tap_bits import mirror_tap_bits, neighbours, pack_tap_bits

__all__ = ["INTEGERS", "Block", "kept_bits", "mirrored", "plan_blocks", "sources_of", "static_taps", "taps_or_bits"]

_FEWEST_PRODUCTS = 1 << 20  # a block is as large as to save this many for each tap that it does not need
_FEWEST_ROWS = 256
_MOST_ELEMENTS = 1 << 19  # of what one block gathers: 2 MiB in float32

_MOST_REMEMBERED = 1 << 14  # pixels of masks that every image has for itself

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of the size of a floating point number


@dataclass(frozen=True)
class Block:
    """Pixels that one matrix product computes.

    An image has H * W rows and one more of zeros, to which the taps point that some pixels of the block may not see.
    With a mask for each image, the pixels are those of all images, one after the other.
    """

    taps: Tensor  # (T,) int64, ascending: those that any of the pixels may see
    sources: Tensor  # (R, T) int64 rows of the extended images
    pixels: Tensor  # (R,) int64


def _cached(function: Callable[..., Any], most: int = 64) -> Callable[..., Any]:
    """Remember what depends on a mask alone, by the bits in it: a changed mask can never find an old plan."""

    def by_content(content: bytes, shape: torch.Size, *arguments: int) -> Any:
        with torch.inference_mode(False), torch.device("cpu"):  # what is kept must serve calls in any mode
            mask = torch.frombuffer(bytearray(content), dtype=torch.int64).view(shape)
            return function(mask, *arguments)

    shared, of_images = lru_cache(maxsize=most)(by_content), lru_cache(maxsize=4)(by_content)

    @wraps(function)
    def call(mask: Tensor, *arguments: int) -> Any:
        if mask.is_cuda or (mask.ndim == 3 and mask.numel() > _MOST_REMEMBERED):
            return function(mask, *arguments)
        remembered = shared if mask.ndim == 2 else of_images
        return remembered(mask.numpy().tobytes(), mask.shape, *arguments)

    return call


@_cached
def mirrored(mask: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """``mirror_tap_bits``, remembered."""
    return mirror_tap_bits(mask, kernel_size, dilation)


@partial(_cached, most=16)  # each may be as large as the unfolded input of a small call, 4 MiB
def kept_bits(mask: Tensor, kernel_size: int, element_size: int, channels: int) -> Tensor:
    """(1 or N, H, W, k, k, channels): all bits of a number that may be seen and none of one that may not.

    What is cut that way becomes zero even where it is infinite or no number.
    """
    live = unpack_tap_bits(mask, kernel_size).movedim(-3, -1)  # (H, W, k * k) or (N, H, W, k * k)
    live = live.reshape(-1, *live.shape[-3:-1], kernel_size, kernel_size, 1)
    # in memory for every channel: what is repeated by a stride of zero would break the loops over long rows
    return (-live.to(INTEGERS[element_size])).repeat(1, 1, 1, 1, 1, channels)


@_cached
def sources_of(mask: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(1 or N, H * W, k * k): which row of an image and one more row of zeros each tap sees."""
    height, width = mask.shape[-2:]
    live, _ = _live_and_inside(mask, kernel_size, dilation)
    return torch.where(live, neighbours(height, width, kernel_size, dilation), height * width)


@_cached
def static_taps(mask: Tensor, kernel_size: int, dilation: int) -> Tensor | None:
    """(k * k,) bool if every pixel may see the same taps (as far as they are inside the image), else None."""
    live, inside = _live_and_inside(mask, kernel_size, dilation)
    taps = live.flatten(0, 1).any(0)
    return taps if bool((live == (inside & taps)).all()) else None


@partial(_cached, most=16)
def taps_or_bits(
    mask: Tensor, kernel_size: int, dilation: int, element_size: int, channels: int
) -> tuple[Tensor | None, Tensor | None]:
    """``static_taps``, or ``kept_bits`` where there are none, found together.

    Of one channel the bits are (1 or N, k, k, H, W): long rows are those of the image then.
    """
    if (taps := static_taps(mask, kernel_size, dilation)) is not None:
        return taps, None
    keep = kept_bits(mask, kernel_size, element_size, channels)
    return None, keep.squeeze(-1).permute(0, 3, 4, 1, 2).contiguous() if channels == 1 else keep


@_cached
def plan_blocks(
    mask: Tensor, kernel_size: int, dilation: int, copies: int, in_channels: int, out_channels: int
) -> list[Block]:
    """Blocks that have every pixel once, pixels with the same taps in the same block where that is worth its cost.

    ``mask`` is (H, W) for ``copies`` images, or (N, H, W) for one copy.
    """
    height, width = mask.shape[-2:]
    per_image = sources_of(mask, kernel_size, dilation)
    live = (per_image < height * width).flatten(0, 1)  # (P, k * k)
    sources = (per_image + torch.arange(len(per_image))[:, None, None] * (height * width + 1)).flatten(0, 1)
    bits, pixels = pack_tap_bits(live).sort(stable=True)
    live, sources = live[pixels], sources[pixels]
    ends = bits.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    least = max(_FEWEST_ROWS, _FEWEST_PRODUCTS // (in_channels * out_channels)) / copies
    blocks = []
    for first, last in _segments(ends, least):
        elements = max(1, int(live[first:last].any(0).sum())) * in_channels * copies  # gathered for each pixel
        pieces = math.ceil((last - first) * elements / _MOST_ELEMENTS)
        cuts = [first + (last - first) * piece // pieces for piece in range(pieces + 1)]
        for start, stop in pairwise(sorted(set(cuts))):
            taps = live[start:stop].any(0).nonzero().flatten()
            blocks.append(Block(taps, sources[start:stop, taps], pixels[start:stop]))
    return blocks


def _live_and_inside(mask: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """(G, H * W, k * k) what may be seen, for each of G masks; (H * W, k * k) what is inside the image."""
    height, width = mask.shape[-2:]
    inside = neighbours(height, width, kernel_size, dilation) < height * width
    bits = unpack_tap_bits(mask.reshape(-1, height, width), kernel_size)  # (G, k * k, H, W)
    return bits.flatten(2).transpose(1, 2) & inside, inside


def _segments(ends: list[int], least: float) -> Iterator[tuple[int, int]]:
    """Runs of equal pixels, given by their ends: a long one stays alone, short ones join until they are long enough."""
    start = previous = 0
    for end in ends:
        if end - previous >= least and previous > start:
            yield start, previous
            start = previous
        if end - start >= least:
            yield start, end
            start = end
        previous = end
    if previous > start:
        yield start, previous
