"""Locally masked convolution and its gradients over NHWC: each pixel carries the taps it may see as bits of a word."""

import torch
import triton
import triton.language as tl

from .locally_masked_conv2d_config import choose_config, is_flat
from .masked_conv2d_grad_weight import share_of, tiles_of
from .masked_conv2d_launch import arch_of, meta_of, nhwc, precision_of
from .masked_conv2d_places import FAR, add_tap, divisors_of, origin, places, within

__all__ = ["conv_kernel", "forward", "grad_input", "grad_weight", "grad_weight_kernel"]


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _lowest_bit(bits):
    """The place of the lowest bit that is set, at most 48: a power of two has it in the exponent of its float."""
    lowest = bits & -bits
    return (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def conv_kernel(
    # pointers
    x_ptr,  # (P, C_IN): pixels of all images in raster order
    weight_ptr,  # (T, C_OUT, C_IN), T = KERNEL_SIZE^2
    bias_ptr,  # (C_OUT,) or None
    mask_ptr,  # (H * W,) int64, or (P,) with a mask for each image
    y_ptr,  # (P, C_OUT)
    # sizes
    num_pixels,  # P = N * H * W
    height,
    width,
    origin_factor,  # to divide by H * W and by W: see masked_conv2d_places.py
    area_factor,
    area_shift,
    width_factor,
    width_shift,
    # meta
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    MASK_PER_IMAGE: tl.constexpr,
    FLAT: tl.constexpr,  # few input channels: one block reduces over several taps
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M  # 64-bit before the strides
    pixel = tl.arange(0, BLOCK_M)  # from the first
    in_image = origin(first, height, width, origin_factor)[1]
    row, col = places(in_image + pixel, height, width, area_factor, area_shift, width_factor, width_shift)[1:]
    is_pixel = pixel < num_pixels - first
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_K)
    TAPS: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    # no pixel, no taps: the bits stand for is_pixel too
    words = mask_ptr + (first + pixel if MASK_PER_IMAGE else row * width + col)
    bits = tl.load(words, mask=is_pixel, other=0) & ((1 << TAPS) - 1)
    x_rows = x_ptr + first * C_IN + pixel * C_IN  # [M]
    w_rows = weight_ptr + out * C_IN  # [N]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    REACH: tl.constexpr = KERNEL_SIZE // 2
    if FLAT:
        # element k of the flattened reduction is channel k % C_IN of tap k // C_IN
        for start in range(0, TAPS * C_IN, BLOCK_K):
            k = start + lane
            tap = k // C_IN
            channel = k % C_IN
            dy = DILATION * (tap // KERNEL_SIZE - REACH)  # [K]
            dx = DILATION * (tap % KERNEL_SIZE - REACH)
            inside = within(row[:, None] + dy[None, :], col[:, None] + dx[None, :], height, width)
            may_see = (bits[:, None] >> tl.minimum(tap, 63).to(tl.int64)[None, :]) & 1  # none at taps beyond the last
            offset = (dy * width + dx) * C_IN + channel
            x = tl.load(x_rows[:, None] + offset[None, :], mask=inside & (may_see != 0), other=0.0)  # [M, K]
            is_weight = (out < C_OUT)[:, None] & (tap < TAPS)[None, :]
            w = tl.load(w_rows[:, None] + (tap * (C_OUT * C_IN) + channel)[None, :], mask=is_weight, other=0.0)
            acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    else:
        BLOCKS: tl.constexpr = (C_IN + BLOCK_K - 1) // BLOCK_K
        seen = tl.reduce(bits, 0, _either)  # taps that any pixel of the tile may see: the others cost nothing
        count = tl.sum((seen >> tl.arange(0, 64).to(tl.int64)) & 1, 0).to(tl.int32)
        # all taps of a block of channels, one after the other, read nearly the same pixels
        for block in range(0, BLOCKS):
            channel = block * BLOCK_K + lane
            rest = seen
            for _ in range(0, count):
                tap = _lowest_bit(rest)
                dy = DILATION * (tap // KERNEL_SIZE - REACH)
                dx = DILATION * (tap % KERNEL_SIZE - REACH)
                inside = within(row + dy, col + dx, height, width)
                live = inside & ((bits & (rest & -rest)) != 0)  # halo and order are the mask of the load
                acc = add_tap(
                    acc, x_rows, w_rows, live, out < C_OUT, dy * width + dx, tap * C_OUT, channel, C_IN, BLOCK_K,
                    PRECISION,
                )  # fmt: skip
                rest = rest & (rest - 1)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + out, mask=out < C_OUT, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    is_output = is_pixel[:, None] & (out < C_OUT)[None, :]
    y = y_ptr + first * C_OUT + pixel[:, None] * C_OUT + out[None, :]
    tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=is_output)


@triton.jit
def grad_weight_kernel(
    # pointers
    x_ptr,  # (P, C_IN)
    grad_y_ptr,  # (P, C_OUT)
    mask_ptr,  # (H * W,) int64, or (P,) with a mask for each image
    partial_ptr,  # (S, C_OUT, T, C_IN) float32: one summand per share of the pixels
    # sizes
    num_pixels,
    height,
    width,
    pixels_per_share,  # a multiple of BLOCK_K
    origin_factor,  # to divide by H * W and by W: see masked_conv2d_places.py
    area_factor,
    area_shift,
    width_factor,
    width_shift,
    # meta
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    MASK_PER_IMAGE: tl.constexpr,
    FLAT: tl.constexpr,  # one block covers several taps
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    out = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, BLOCK_N)
    TAPS: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    REACH: tl.constexpr = KERNEL_SIZE // 2
    BLOCKS: tl.constexpr = (C_IN + BLOCK_N - 1) // BLOCK_N
    if FLAT:
        column = tl.program_id(1) * BLOCK_N + lane  # of (T, C_IN), flattened
        tap = column // C_IN
        is_column = tap < TAPS
        dy = DILATION * (tap // KERNEL_SIZE - REACH)  # [N]
        dx = DILATION * (tap % KERNEL_SIZE - REACH)
        offset = (dy * width + dx) * C_IN + column % C_IN
        dy = tl.where(is_column, dy, FAR)
    else:
        one_tap = tl.program_id(1) // BLOCKS
        channel = (tl.program_id(1) % BLOCKS) * BLOCK_N + lane
        column = one_tap * C_IN + channel
        is_column = channel < C_IN
        one_dy = DILATION * (one_tap // KERNEL_SIZE - REACH)
        one_dx = DILATION * (one_tap % KERNEL_SIZE - REACH)
        offset = (one_dy * width + one_dx) * C_IN + channel
    WORD: tl.constexpr = 64 // x_ptr.dtype.element_ty.primitive_bitwidth  # as in the convolution
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
        words = mask_ptr + (first + pixel if MASK_PER_IMAGE else row * width + col)
        bits = tl.load(words, mask=is_pixel, other=0)
        if FLAT:
            inside = within(row[:, None] + dy[None, :], col[:, None] + dx[None, :], height, width)
            may_see = (bits[:, None] >> tl.minimum(tap, 63).to(tl.int64)[None, :]) & 1
            live = inside & (may_see != 0)
        else:
            inside = within(row + one_dy, col + one_dx, height, width)
            live = (inside & (((bits >> one_tap.to(tl.int64)) & 1) != 0))[:, None] & is_column[None, :]
        g_live = is_pixel[:, None] & (out < C_OUT)[None, :]
        g = tl.load(grad_y_share + pixel[:, None] * C_OUT + out[None, :], mask=g_live, other=0.0)  # [K, M]
        here = x_share + (pixel * C_IN)[:, None] + offset[None, :]
        if FLAT and C_IN % WORD == 0:
            here = tl.max_contiguous(here, [1, WORD])
        x = tl.load(here, mask=live, other=0.0)  # [K, N]
        acc = tl.dot(tl.trans(g), x, acc, input_precision=PRECISION)
    rows = (share * C_OUT + out) * (TAPS * C_IN)
    is_output = (out < C_OUT)[:, None] & is_column[None, :]
    tl.store(partial_ptr + rows[:, None] + column[None, :], acc, mask=is_output)


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor, dilation: int
) -> torch.Tensor:
    """(N, C_in, H, W), (C_out, C_in, k, k), (H, W) or (N, H, W) int64 -> (N, C_out, H, W) in NHWC."""
    return _convolve(x, weight.flatten(2).permute(2, 0, 1), bias, mask, weight.shape[-1], dilation)


def grad_input(grad_y: torch.Tensor, weight: torch.Tensor, seen_by: torch.Tensor, dilation: int) -> torch.Tensor:
    """(N, C_out, H, W) -> (N, C_in, H, W) in NHWC: the same with mirrored taps.

    Bit t of ``seen_by`` says whether the pixel under tap t may see this one through its tap k * k - 1 - t.
    """
    packed = weight.flatten(2).flip(2).permute(2, 1, 0)  # (T, C_in, C_out)
    return _convolve(grad_y, packed, None, seen_by, weight.shape[-1], dilation)


def grad_weight(
    x: torch.Tensor, grad_y: torch.Tensor, kernel_size: int, mask: torch.Tensor, dilation: int
) -> torch.Tensor:
    """(N, C_in, H, W), (N, C_out, H, W), (H, W) or (N, H, W) int64 -> (C_out, C_in, k, k)."""
    in_channels, out_channels, taps = x.shape[1], grad_y.shape[1], kernel_size**2
    num_pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if num_pixels == 0:
        return x.new_zeros(out_channels, in_channels, kernel_size, kernel_size)
    x, grad_y = nhwc(x), nhwc(grad_y)
    few = is_flat(in_channels)
    config = choose_config(
        "grad_weight", arch_of(x), x.dtype, out_channels, in_channels, num_pixels, flat=few, taps=taps
    )
    tiles, flat = tiles_of(config.block_m, config.block_n, out_channels, in_channels, taps)
    pixels_per_share = share_of(num_pixels, tiles[0] * tiles[1], config.block_k, max(in_channels, out_channels))
    shares = triton.cdiv(num_pixels, pixels_per_share)
    partial = torch.empty(shares, out_channels, taps, in_channels, dtype=torch.float32, device=x.device)
    grad_weight_kernel[(*tiles, shares)](
        x_ptr=x,
        grad_y_ptr=grad_y,
        mask_ptr=mask.contiguous(),
        partial_ptr=partial,
        num_pixels=num_pixels,
        height=x.shape[2],
        width=x.shape[3],
        pixels_per_share=pixels_per_share,
        **divisors_of(x.shape[2], x.shape[3]),
        C_IN=in_channels,
        C_OUT=out_channels,
        KERNEL_SIZE=kernel_size,
        DILATION=dilation,
        MASK_PER_IMAGE=mask.ndim == 3,
        FLAT=flat,
        PRECISION=precision_of(x.dtype),
        **meta_of(config),
    )
    summed = partial.sum(0).transpose(1, 2)  # (C_out, C_in, T)
    return summed.reshape(out_channels, in_channels, kernel_size, kernel_size).to(x.dtype)


def _convolve(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor,
    kernel_size: int,
    dilation: int,
) -> torch.Tensor:
    taps, out_channels, in_channels = packed.shape
    batch, _, height, width = x.shape
    y = torch.empty(
        (batch, out_channels, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    num_pixels = batch * height * width
    if num_pixels == 0:
        return y
    flat = is_flat(in_channels)
    reduced = taps * in_channels if flat else in_channels
    config = choose_config("conv", arch_of(x), x.dtype, num_pixels, out_channels, reduced, flat=flat)
    conv_kernel[(triton.cdiv(num_pixels, config.block_m), triton.cdiv(out_channels, config.block_n))](
        x_ptr=nhwc(x),
        weight_ptr=packed.contiguous(),
        bias_ptr=bias if bias is None else bias.contiguous(),
        mask_ptr=mask.contiguous(),
        y_ptr=y,
        num_pixels=num_pixels,
        height=height,
        width=width,
        **divisors_of(height, width),
        C_IN=in_channels,
        C_OUT=out_channels,
        KERNEL_SIZE=kernel_size,
        DILATION=dilation,
        MASK_PER_IMAGE=mask.ndim == 3,
        FLAT=flat,
        PRECISION=precision_of(x.dtype),
        **meta_of(config),
    )
    return y
