"""The weight gradient of masked convolution over NHWC: a product over pixels for every live tap, summed in shares."""

import torch
import triton
import triton.language as tl

from .masked_conv2d_config import choose_config, is_flat
from .masked_conv2d_launch import arch_of, meta_of, nhwc, precision_of
from .masked_conv2d_places import FAR, divisors_of, origin, places, within

__all__ = ["grad_weight", "grad_weight_kernel", "share_of", "tiles_of"]


@triton.jit
def grad_weight_kernel(
    # pointers
    x_ptr,  # (P, C_IN)
    grad_y_ptr,  # (P, C_OUT)
    partial_ptr,  # (S, C_OUT, T, C_IN) float32: one summand per share of the pixels
    # sizes
    num_pixels,
    height,
    width,
    num_taps,
    pixels_per_share,  # a multiple of BLOCK_K
    origin_factor,  # to divide by H * W and by W: see masked_conv2d_places.py
    area_factor,
    area_shift,
    width_factor,
    width_shift,
    # meta
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    COLUMNS: tl.constexpr,  # of the window of taps
    ABOVE: tl.constexpr,  # rows from its first tap down to the output pixel
    BEFORE: tl.constexpr,  # columns likewise
    DILATION: tl.constexpr,
    FLAT: tl.constexpr,  # one block covers several taps
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    out = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, BLOCK_N)
    BLOCKS: tl.constexpr = (C_IN + BLOCK_N - 1) // BLOCK_N
    if FLAT:
        column = tl.program_id(1) * BLOCK_N + lane  # of (T, C_IN), flattened
        tap = column // C_IN
        is_column = tap < num_taps
        dy = DILATION * (tap // COLUMNS - ABOVE)  # [N]
        dx = DILATION * (tap % COLUMNS - BEFORE)
        offset = (dy * width + dx) * C_IN + column % C_IN
        dy = tl.where(is_column, dy, FAR)
    else:
        one_tap = tl.program_id(1) // BLOCKS
        channel = (tl.program_id(1) % BLOCKS) * BLOCK_N + lane
        column = one_tap * C_IN + channel
        is_column = channel < C_IN
        one_dy = DILATION * (one_tap // COLUMNS - ABOVE)
        one_dx = DILATION * (one_tap % COLUMNS - BEFORE)
        offset = (one_dy * width + one_dx) * C_IN + channel
    # words of 8 bytes, because asynchronous copies of 16 pass the first-level cache by: taps of one block read nearly
    # the same pixels
    WORD: tl.constexpr = 64 // x_ptr.dtype.element_ty.primitive_bitwidth
    share = tl.program_id(2).to(tl.int64)
    first = share * pixels_per_share  # 64-bit before the strides
    in_image = origin(first, height, width, origin_factor)[1]
    rest = tl.minimum(num_pixels - first, pixels_per_share).to(tl.int32)
    x_share = x_ptr + first * C_IN
    grad_y_share = grad_y_ptr + first * C_OUT
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, pixels_per_share, BLOCK_K):
        pixel = start + tl.arange(0, BLOCK_K)  # of the share [K]
        row, col = places(in_image + pixel, height, width, area_factor, area_shift, width_factor, width_shift)[1:]
        is_pixel = pixel < rest
        row = tl.where(is_pixel, row, FAR)
        g_live = is_pixel[:, None] & (out < C_OUT)[None, :]
        g = tl.load(grad_y_share + pixel[:, None] * C_OUT + out[None, :], mask=g_live, other=0.0)  # [K, M]
        if FLAT:
            inside = within(row[:, None] + dy[None, :], col[:, None] + dx[None, :], height, width)
            live = inside
        else:
            inside = within(row + one_dy, col + one_dx, height, width)
            live = inside[:, None] & is_column[None, :]
        here = x_share + (pixel * C_IN)[:, None] + offset[None, :]
        if FLAT and C_IN % WORD == 0:
            here = tl.max_contiguous(here, [1, WORD])
        x = tl.load(here, mask=live, other=0.0)  # [K, N]
        acc = tl.dot(tl.trans(g), x, acc, input_precision=PRECISION)
    rows = (share * C_OUT + out) * (num_taps * C_IN)
    is_output = (out < C_OUT)[:, None] & is_column[None, :]
    tl.store(partial_ptr + rows[:, None] + column[None, :], acc, mask=is_output)


def tiles_of(
    block_m: int, block_n: int, out_channels: int, in_channels: int, taps: int
) -> tuple[tuple[int, int], bool]:
    """Tiles of channels out and of (tap, channel in), and whether one of these covers several taps."""
    flat = block_n > in_channels
    tiles_n = triton.cdiv(taps * in_channels, block_n) if flat else taps * triton.cdiv(in_channels, block_n)
    return (triton.cdiv(out_channels, block_m), tiles_n), flat


def share_of(num_pixels: int, tiles: int, block_k: int, channels: int) -> int:
    """Pixels that one program sums over.

    They make enough programs for any card, and depend on the problem alone: sums are the same on every card. Within a
    share, offsets have 32 bits.
    """
    shares = max(
        1, min(512 // tiles, triton.cdiv(num_pixels, 8 * block_k)), triton.cdiv(num_pixels * channels, 1 << 30)
    )
    return triton.cdiv(triton.cdiv(num_pixels, shares), block_k) * block_k


def grad_weight(
    x: torch.Tensor,
    grad_y: torch.Tensor,
    size: tuple[int, int],
    live: int,
    dilation: int,
    centre: tuple[int, int],
) -> torch.Tensor:
    """``x`` (N, C_in, H, W), ``grad_y`` (N, C_out, H, W) -> (C_out, C_in, *size), exactly zero at the dead taps."""
    in_channels, out_channels = x.shape[1], grad_y.shape[1]
    result = x.new_zeros(out_channels, in_channels, *size)
    num_pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if num_pixels == 0 or live == 0:
        return result
    x, grad_y = nhwc(x), nhwc(grad_y)
    few = is_flat(in_channels)
    config = choose_config(
        "grad_weight", arch_of(x), x.dtype, out_channels, in_channels, num_pixels, flat=few, taps=live
    )
    tiles, flat = tiles_of(config.block_m, config.block_n, out_channels, in_channels, live)
    pixels_per_share = share_of(num_pixels, tiles[0] * tiles[1], config.block_k, max(in_channels, out_channels))
    shares = triton.cdiv(num_pixels, pixels_per_share)
    partial = torch.empty(shares, out_channels, live, in_channels, dtype=torch.float32, device=x.device)
    grad_weight_kernel[(*tiles, shares)](
        x_ptr=x,
        grad_y_ptr=grad_y,
        partial_ptr=partial,
        num_pixels=num_pixels,
        height=x.shape[2],
        width=x.shape[3],
        num_taps=live,
        pixels_per_share=pixels_per_share,
        **divisors_of(x.shape[2], x.shape[3]),
        C_IN=in_channels,
        C_OUT=out_channels,
        COLUMNS=size[1],
        ABOVE=centre[0],
        BEFORE=centre[1],
        DILATION=dilation,
        FLAT=flat,
        PRECISION=precision_of(x.dtype),
        **meta_of(config),
    )
    result.flatten(2)[..., :live] = partial.sum(0).transpose(1, 2)
    return result
