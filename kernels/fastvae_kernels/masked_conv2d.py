"""Masked convolution and its input gradient over NHWC: one loop over the live taps, a prefix in raster order.

The forward kernel ends plainly, with a gate, or with an activation and a residual: see masked_conv2d_epilogues.py.
"""

import torch
import triton
import triton.language as tl

from .masked_conv2d_config import Op, choose_config, is_flat
from .masked_conv2d_grad_weight import grad_weight, grad_weight_kernel
from .masked_conv2d_launch import arch_of, meta_of, nhwc, precision_of
from .masked_conv2d_places import FAR, add_tap, divisors_of, origin, places, within

__all__ = ["conv_kernel", "convolve", "forward", "grad_input", "grad_weight", "grad_weight_kernel"]


@triton.jit
def conv_kernel(
    # pointers
    x_ptr,  # (P, C_IN): pixels of all images in raster order
    weight_ptr,  # (T, C_OUT, C_IN)
    bias_ptr,  # (C_OUT,) or None
    y_ptr,  # (P, C_OUT), or (P, C_OUT / 2) if gated
    condition_ptr,  # gated: (P, C_OUT) or (N, C_OUT), or None
    residual_ptr,  # (P, C_OUT) or None
    saved_ptr,  # (P, C_OUT) or None: what the backward pass needs, tanh and sigmoid or the activation
    # sizes
    num_pixels,  # P = N * H * W
    height,
    width,
    num_taps,  # T
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
    DIRECTION: tl.constexpr,  # 1: taps look back (forward); -1: mirrored (input gradient)
    FLAT: tl.constexpr,  # few input channels: one block reduces over several taps
    GATED: tl.constexpr,  # output channels of weight and bias alternate between tanh and sigmoid
    CONDITION_IS_MAP: tl.constexpr,
    ACTIVATION: tl.constexpr,  # "", "relu" or "elu"
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M  # 64-bit before the strides
    pixel = tl.arange(0, BLOCK_M)  # from the first
    first_image, in_image = origin(first, height, width, origin_factor)
    image, row, col = places(in_image + pixel, height, width, area_factor, area_shift, width_factor, width_shift)
    is_pixel = pixel < num_pixels - first
    row = tl.where(is_pixel, row, FAR)
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + first * C_IN + pixel * C_IN  # [M]
    w_rows = weight_ptr + out * C_IN  # [N]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if FLAT:
        # element k of the flattened reduction is channel k % C_IN of tap k // C_IN
        for start in range(0, num_taps * C_IN, BLOCK_K):
            k = start + lane
            tap = k // C_IN
            channel = k % C_IN
            dy = DIRECTION * DILATION * (tap // COLUMNS - ABOVE)  # [K]
            dx = DIRECTION * DILATION * (tap % COLUMNS - BEFORE)
            offset = (dy * width + dx) * C_IN + channel
            dy = tl.where(tap < num_taps, dy, FAR)
            inside = within(row[:, None] + dy[None, :], col[:, None] + dx[None, :], height, width)
            x = tl.load(x_rows[:, None] + offset[None, :], mask=inside, other=0.0)  # [M, K]
            is_weight = (out < C_OUT)[:, None] & (tap < num_taps)[None, :]
            step = tap * (C_OUT * C_IN) + channel
            w = tl.load(w_rows[:, None] + step[None, :], mask=is_weight, other=0.0)  # [N, K]
            acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    else:
        BLOCKS: tl.constexpr = (C_IN + BLOCK_K - 1) // BLOCK_K
        # all taps of a block of channels, one after the other, read nearly the same pixels
        for step in range(0, num_taps * BLOCKS):
            tap = step % num_taps
            channel = (step // num_taps) * BLOCK_K + lane
            dy = DIRECTION * DILATION * (tap // COLUMNS - ABOVE)
            dx = DIRECTION * DILATION * (tap % COLUMNS - BEFORE)
            inside = within(row + dy, col + dx, height, width)
            # the halo is the mask of the load
            acc = add_tap(
                acc,
                x_rows,
                w_rows,
                inside,
                out < C_OUT,
                dy * width + dx,
                tap * C_OUT,
                channel,
                C_IN,
                BLOCK_K,
                PRECISION,
            )
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + out, mask=out < C_OUT, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    if GATED:
        # each pair of neighbouring columns is one gate; they lie in one thread, so that nothing moves
        f, g = tl.split(tl.reshape(acc, [BLOCK_M, BLOCK_N // 2, 2]))
        HALF: tl.constexpr = C_OUT // 2
        channel = tl.program_id(1) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        is_output = is_pixel[:, None] & (channel < HALF)[None, :]
        if condition_ptr is not None:
            start = first if CONDITION_IS_MAP else first_image
            place = pixel if CONDITION_IS_MAP else image
            condition = condition_ptr + start * C_OUT + place[:, None] * C_OUT + channel[None, :]
            f += tl.load(condition, mask=is_output, other=0.0).to(tl.float32)
            g += tl.load(condition + HALF, mask=is_output, other=0.0).to(tl.float32)
        f = 2.0 * tl.sigmoid(2.0 * f) - 1.0  # tanh
        g = tl.sigmoid(g)
        y = y_ptr + first * HALF + pixel[:, None] * HALF + channel[None, :]
        tl.store(y, (f * g).to(y_ptr.dtype.element_ty), mask=is_output)
        if saved_ptr is not None:
            saved = saved_ptr + first * C_OUT + pixel[:, None] * C_OUT + channel[None, :]
            tl.store(saved, f.to(saved_ptr.dtype.element_ty), mask=is_output)
            tl.store(saved + HALF, g.to(saved_ptr.dtype.element_ty), mask=is_output)
    else:
        is_output = is_pixel[:, None] & (out < C_OUT)[None, :]
        start = first * C_OUT
        here = pixel[:, None] * C_OUT + out[None, :]
        if ACTIVATION == "relu":
            acc = tl.where(acc < 0.0, 0.0, acc)  # keeps nan
        if ACTIVATION == "elu":
            acc = tl.where(acc < 0.0, tl.exp(tl.minimum(acc, 0.0)) - 1.0, acc)
        if saved_ptr is not None:
            tl.store(saved_ptr + start + here, acc.to(saved_ptr.dtype.element_ty), mask=is_output)
        if residual_ptr is not None:
            acc += tl.load(residual_ptr + start + here, mask=is_output, other=0.0).to(tl.float32)
        tl.store(y_ptr + start + here, acc.to(y_ptr.dtype.element_ty), mask=is_output)


def forward(
    x: torch.Tensor,
    window: torch.Tensor,
    bias: torch.Tensor | None,
    live: int,
    dilation: int,
    centre: tuple[int, int],
) -> torch.Tensor:
    """``x`` (N, C_in, H, W), ``window`` (C_out, C_in, rows, columns) with ``live`` taps -> (N, C_out, H, W) in NHWC.

    The output pixel lies ``centre`` rows and columns below and right of the first tap.
    """
    packed = window.flatten(2)[..., :live].permute(2, 0, 1)  # (T, C_out, C_in)
    return convolve(x, packed, bias, window.shape[-1], dilation, centre)


def grad_input(
    grad_y: torch.Tensor, window: torch.Tensor, live: int, dilation: int, centre: tuple[int, int]
) -> torch.Tensor:
    """``grad_y`` (N, C_out, H, W) -> (N, C_in, H, W) in NHWC: the same convolution with mirrored taps."""
    packed = window.flatten(2)[..., :live].permute(2, 1, 0)  # (T, C_in, C_out)
    return convolve(grad_y, packed, None, window.shape[-1], dilation, centre, direction=-1)


def convolve(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    columns: int,
    dilation: int,
    centre: tuple[int, int],
    *,
    direction: int = 1,
    is_gated: bool = False,
    condition: torch.Tensor | None = None,
    activation: str = "",
    residual: torch.Tensor | None = None,
    saved: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x`` (N, C_in, H, W), ``packed`` (T, C_out, C_in) -> (N, C_out, H, W), half the channels if gated, in NHWC.

    ``condition`` (N, C_out) or (N, C_out, H, W), ``residual`` (N, C_out, H, W); ``saved``, in NHWC, is written.
    """
    live, out_channels, in_channels = packed.shape
    batch, _, height, width = x.shape
    shape = (batch, out_channels // 2 if is_gated else out_channels, height, width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    num_pixels = batch * height * width
    if num_pixels == 0:
        return y
    flat = is_flat(in_channels)
    reduced = live * in_channels if flat else in_channels
    op: Op = "block" if is_gated or activation or residual is not None else "conv"
    config = choose_config(op, arch_of(x), x.dtype, num_pixels, out_channels, max(reduced, 1), flat=flat)
    is_map = condition is not None and condition.ndim == 4
    if condition is not None:
        condition = nhwc(condition) if is_map else condition.contiguous()
    conv_kernel[(triton.cdiv(num_pixels, config.block_m), triton.cdiv(out_channels, config.block_n))](
        x_ptr=nhwc(x),
        weight_ptr=packed.contiguous(),
        bias_ptr=bias if bias is None else bias.contiguous(),
        y_ptr=y,
        condition_ptr=condition,
        residual_ptr=residual if residual is None else nhwc(residual),
        saved_ptr=saved,
        num_pixels=num_pixels,
        height=height,
        width=width,
        num_taps=live,
        **divisors_of(height, width),
        C_IN=in_channels,
        C_OUT=out_channels,
        COLUMNS=columns,
        ABOVE=centre[0],
        BEFORE=centre[1],
        DILATION=dilation,
        DIRECTION=direction,
        FLAT=flat,
        GATED=is_gated,
        CONDITION_IS_MAP=is_map,
        ACTIVATION=activation,
        PRECISION=precision_of(x.dtype),
        **meta_of(config),
    )
    return y
