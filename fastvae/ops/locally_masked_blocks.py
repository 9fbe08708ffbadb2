"""Locally masked convolution in PyTorch: pixels that may see the same taps are gathered and multiplied together.

Three ways, in this order of preference. If one set of taps serves all pixels, it is an ordinary convolution with a
smaller kernel. Else pixels are sorted by what they may see and cut into blocks: one index_select gathers the rows that
a block needs, one matrix product does the rest, and taps that nobody in the block may see cost nothing. With few
channels, whose rows are too short to gather, and on CUDA, which must not wait for a plan, images are unfolded a few at
a time. No buffer grows with the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from .locally_masked_plan import Block, kept_bits, mirrored, plan_blocks, static_taps

__all__ = [
    "FEWEST_CHANNELS",
    "fold_grad_input",
    "forward",
    "grad_input",
    "grad_weight",
    "layout",
    "linear",
    "rows_of",
    "static",
]

FEWEST_CHANNELS = 12  # of a row that is worth gathering
_CHUNK_BYTES = 1 << 20  # of the images that are computed together: they and what is gathered stay in the caches
_COLUMN_BYTES = {"cpu": 1 << 20, "cuda": 64 << 20}  # of images that are unfolded together
_FEWEST_ROWS = 64  # of a product for oneDNN


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int) -> Tensor:
    """``x`` (N, C_in, H, W), ``mask`` (H, W) or (N, H, W) -> (N, C_out, H, W), laid out as ``x``."""
    size = weight.shape[-1]
    taps = None if x.is_cuda else static_taps(mask, size, dilation)
    if taps is not None:
        return static(x, weight, bias, taps, dilation).contiguous(memory_format=layout(x))
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x))
    packed = weight.flatten(2).transpose(1, 2).contiguous()  # (C_out, k * k, C_in)
    if not _can_gather(x):
        for part, rows in _unfolded(x, mask, size, dilation):
            out = y[part].permute(0, 2, 3, 1)
            out.copy_(linear(rows, packed.flatten(1), bias).view(out.shape))
        return y
    for part, chunk in _chunks(x, mask, weight.shape, dilation):
        rows = torch.cat(
            [linear(chunk.gather(b), packed.index_select(1, b.taps).flatten(1), bias) for b in chunk.blocks]
        )
        rows = rows.index_select(0, chunk.places())  # (n * H * W, C_out)
        out = y[part].permute(0, 2, 3, 1)
        out.copy_(rows.view(out.shape))
    return y


def grad_input(grad_y: Tensor, weight: Tensor, mask: Tensor, dilation: int) -> Tensor:
    """(N, C_out, H, W), (C_out, C_in, k, k) -> (N, C_in, H, W), laid out as ``grad_y``."""
    size, channels = weight.shape[-1], weight.shape[1]
    is_static = not grad_y.is_cuda and static_taps(mask, size, dilation) is not None
    if channels >= FEWEST_CHANNELS or channels >= weight.shape[0] or is_static:
        return forward(grad_y, weight.transpose(0, 1).flip(2, 3), None, mirrored(mask, size, dilation), dilation)
    return fold_grad_input(grad_y, weight, mask, dilation)


def fold_grad_input(grad_y: Tensor, weight: Tensor, mask: Tensor, dilation: int) -> Tensor:
    """``grad_input`` to few channels: multiplying first and folding then is less work."""
    size, channels = weight.shape[-1], weight.shape[1]
    grad_x = grad_y.new_empty(grad_y.shape[0], channels, *grad_y.shape[2:])
    for part in _parts(grad_y.shape[0], grad_x[0].numel() * size**2, grad_y):
        keep = kept_bits(mask if mask.ndim == 2 else mask[part], size, grad_y.element_size(), 1)
        keep = keep.flatten(1, 2).flatten(2).transpose(1, 2)[:, None]  # (1 or n, 1, k * k, H * W)
        some = grad_y[part].flatten(2)
        columns = torch.bmm(weight.flatten(1).t().expand(len(some), -1, -1), some)  # (n, C_in * k * k, H * W)
        columns.view(keep.dtype).unflatten(1, (channels, size**2)).bitwise_and_(keep)
        grad_x[part] = F.fold(columns, grad_x.shape[2:], size, padding=size // 2 * dilation, dilation=dilation)
    return grad_x.contiguous(memory_format=layout(grad_y))


def grad_weight(x: Tensor, grad_y: Tensor, kernel_size: int, mask: Tensor, dilation: int) -> Tensor:
    """(N, C_in, H, W), (N, C_out, H, W) -> (C_out, C_in, k, k)."""
    shape = torch.Size((grad_y.shape[1], x.shape[1], kernel_size, kernel_size))
    taps = None if x.is_cuda else static_taps(mask, kernel_size, dilation)
    if taps is not None:
        return _static_grad_weight(x, grad_y, taps, shape, dilation)
    # many products are summed in float32 at least: in a half each term would lose what it has
    wide = torch.promote_types(x.dtype, torch.float32)
    if _can_gather(x):
        total = x.new_zeros(shape[0], kernel_size**2, shape[1], dtype=wide)
        for part, chunk in _chunks(x, mask, shape, dilation):
            grads = grad_y[part].permute(0, 2, 3, 1).reshape(-1, shape[0])  # (n * H * W, C_out)
            for block in chunk.blocks:
                some = grads.index_select(0, chunk.pixels(block))
                product = linear(some.t(), chunk.gather(block).t(), None)  # (C_out, T * C_in)
                total.index_add_(1, block.taps, product.view(shape[0], -1, shape[1]).to(wide))
        return total.transpose(1, 2).contiguous().view(shape).to(x.dtype)
    total = x.new_zeros(kernel_size**2 * shape[1], shape[0], dtype=wide)
    for part, rows in _unfolded(x, mask, kernel_size, dilation):
        grads = grad_y[part].flatten(2)  # (n, C_out, H * W)
        seen = rows.view(len(grads), grads.shape[2], -1)
        total += torch.bmm(seen.transpose(1, 2), grads.transpose(1, 2)).sum(0, dtype=wide)
    return total.view(-1, shape[1], shape[0]).permute(2, 1, 0).contiguous().view(shape).to(x.dtype)


def layout(x: Tensor) -> torch.memory_format:
    """What the result is to have: channels_last where ``x`` has it."""
    is_channels_last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


def _can_gather(x: Tensor) -> bool:
    return not x.is_cuda and x.shape[1] >= FEWEST_CHANNELS


@dataclass(frozen=True)
class _Chunk:
    """Some images as rows of channels, and the blocks of their pixels."""

    rows: Tensor  # (n * (H * W + 1), C): after each image a row of zeros
    blocks: list[Block]
    first_row: Tensor  # (copies, 1, 1): of each image to which the blocks apply
    first_pixel: Tensor  # (copies, 1)

    def gather(self, block: Block) -> Tensor:
        """(copies * R, T * C), what the pixels of a block may see."""
        sources = (block.sources + self.first_row).flatten()
        width = len(block.taps) * self.rows.shape[1]
        return self.rows.index_select(0, sources).view(len(self.first_row) * len(block.pixels), width)

    def pixels(self, block: Block) -> Tensor:
        """(copies * R,), the pixels of a block in all images."""
        return (block.pixels + self.first_pixel).flatten()

    def places(self) -> Tensor:
        """Where each pixel is among the rows of all blocks."""
        pixels = torch.cat([self.pixels(block) for block in self.blocks])
        return torch.empty_like(pixels).scatter_(0, pixels, torch.arange(len(pixels), device=pixels.device))


def _chunks(x: Tensor, mask: Tensor, shape: torch.Size, dilation: int) -> Iterator[tuple[slice, _Chunk]]:
    """As many images at a time as the caches hold; ``shape`` is that of the weight. The memory is used again."""
    batch, channels, height, width = x.shape
    image = height * width
    most = _CHUNK_BYTES if mask.ndim == 2 else _CHUNK_BYTES // 2  # plans of many masks are large themselves
    step = min(batch, max(1, most // (channels * image * x.element_size())))
    memory = x.new_zeros(step, image + 1, channels)
    for first in range(0, batch, step):
        images = x[first : first + step]
        count = len(images)
        memory[:count, :image] = images.flatten(2).transpose(1, 2)
        masks, copies = (mask, count) if mask.ndim == 2 else (mask[first : first + step], 1)
        blocks = plan_blocks(masks, shape[-1], dilation, copies, shape[1], shape[0])
        copy = torch.arange(copies, device=x.device)[:, None]
        rows = memory[:count].flatten(0, 1)
        yield slice(first, first + count), _Chunk(rows, blocks, copy[:, None] * (image + 1), copy * image)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, through oneDNN where that is faster: MKL leaves AVX-512 unused on processors of other makers."""
    if x.dtype == torch.float32 and len(x) >= _FEWEST_ROWS and weight.numel() and _has_onednn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _has_onednn() -> bool:
    # the operator is internal to torch: without it, or without AVX-512, torch's own path is what there is
    return (
        bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _parts(batch: int, elements: int, like: Tensor) -> Iterator[slice]:
    """A few images at a time, of so many column elements each."""
    step = max(1, _COLUMN_BYTES[like.device.type] // (elements * like.element_size()))
    for first in range(0, batch, step):
        yield slice(first, min(first + step, batch))


def _unfolded(x: Tensor, mask: Tensor, kernel_size: int, dilation: int) -> Iterator[tuple[slice, Tensor]]:
    """A few images at a time as rows (n * H * W, k * k * C), zero where a pixel may not see.

    Channels come last, so that a row of the kernel is one piece of memory. The memory of the rows is used again: they
    are valid until the next are asked for.
    """
    memory = x.new_empty(0)
    for part in _parts(x.shape[0], x[0].numel() * kernel_size**2, x):
        some = x[part]
        shape = (len(some), *x.shape[2:], kernel_size, kernel_size, x.shape[1])
        memory = memory if len(memory) >= len(some) else x.new_empty(shape)
        masks = mask if mask.ndim == 2 else mask[part]
        keep = kept_bits(masks, kernel_size, x.element_size(), x.shape[1])
        yield part, rows_of(some, keep, kernel_size, dilation, out=memory[: len(some)])


def rows_of(x: Tensor, keep: Tensor, kernel_size: int, dilation: int, *, out: Tensor | None = None) -> Tensor:
    """(n, C, H, W) -> (n * H * W, k * k * C), zero where ``kept_bits`` are, in the memory of ``out`` if given."""
    channels, height, width = x.shape[1:]
    border = kernel_size // 2 * dilation
    framed = F.pad(x, (border,) * 4).permute(0, 2, 3, 1).contiguous()  # (n, H + 2 border, W + 2 border, C)
    image, row, column, one = framed.stride()
    shape = (len(framed), height, width, kernel_size, kernel_size, channels)
    seen = framed.as_strided(shape, (image, row, column, row * dilation, column * dilation, one))
    out = x.new_empty(shape) if out is None else out
    torch.bitwise_and(seen.view(keep.dtype), keep, out=out.view(keep.dtype))
    return out.view(-1, kernel_size**2 * channels)


def static(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor, dilation: int) -> Tensor:
    """An ordinary convolution with the smallest kernel that has all ``taps``."""
    rows, cols, padding, extra = _cropped(taps, dilation)
    small = (weight * taps.view(weight.shape[2:]))[:, :, rows, cols]
    return F.conv2d(F.pad(x, extra) if any(extra) else x, small, bias, padding=padding, dilation=dilation)


def _static_grad_weight(x: Tensor, grad_y: Tensor, taps: Tensor, shape: torch.Size, dilation: int) -> Tensor:
    rows, cols, padding, extra = _cropped(taps, dilation)
    result = x.new_zeros(shape)
    part = result[:, :, rows, cols]
    wide = F.pad(x, extra) if any(extra) else x
    part.copy_(conv2d_weight(wide, list(part.shape), grad_y, padding=padding, dilation=dilation))
    return result * taps.view(shape[2:])


def _cropped(taps: Tensor, dilation: int) -> tuple[slice, slice, tuple[int, int], tuple[int, int, int, int]]:
    """Rows and columns that hold all taps; the padding on both sides, and what F.pad has to add to some."""
    size = round(len(taps) ** 0.5)
    sides, slices = [], []
    for used in (taps.view(size, size).any(1), taps.view(size, size).any(0)):
        where = used.nonzero().flatten().tolist() or [size // 2]  # no tap at all: one, multiplied by zero
        slices.append(slice(where[0], where[-1] + 1))
        sides.append((dilation * (size // 2 - where[0]), dilation * (where[-1] - size // 2)))
    (top, bottom), (left, right) = sides
    both = max(0, min(top, bottom)), max(0, min(left, right))
    return slices[0], slices[1], both, (left - both[1], right - both[1], top - both[0], bottom - both[0])
