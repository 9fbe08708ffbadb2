"""A linear layer to means, and log-scales, with the Gaussian likelihood behind it: they live in registers only."""

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl

from .likelihood_terms import exp, loadable, num_tiles, rows_of
from .linear_tile import Config, config, forward_config, keep_rows, meta_of, outputs_tile
from .masked_conv2d_launch import arch_of

__all__ = ["choose_grad", "linear_gaussian_forward", "linear_gaussian_grad_params"]

_LEAST_LOG_SCALE = -80.0  # below, 1 / s would be infinite and a value that is met exactly nan


@triton.jit
def _affine(
    kept_0,
    kept_1,
    kept_2,
    h_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    is_row,
    outs,
    is_out,
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of outputs without their bias, and the bias."""
    acc = outputs_tile(
        kept_0, kept_1, kept_2, h_ptr, weight_ptr, rows, is_row, outs, is_out,
        INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION,
    )  # fmt: skip
    if bias_ptr is None:
        bias = tl.zeros([BLOCK_COLS], tl.float32)
    else:
        bias = tl.load(bias_ptr + outs, mask=is_out, other=0.0).to(tl.float32)
    return acc, bias


@triton.jit
def _tile(
    kept_0,
    kept_1,
    kept_2,
    x_ptr,
    h_ptr,
    weight_ptr,
    bias_ptr,
    log_scale_ptr,
    rows,
    is_row,
    datum,
    value,
    NUM_VALUES: tl.constexpr,
    NUM_PLACES: tl.constexpr,
    HAS_ONE_SCALE: tl.constexpr,
    LEAST_LOG_SCALE: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_DATUM: tl.constexpr,
):
    """Of the tile (rows, values): (x - mean) / s, 1 / s, log s, and where the layer puts the means."""
    is_value = value < NUM_VALUES
    if log_scale_ptr is None:
        outs = value + (value // NUM_PLACES) * NUM_PLACES  # (A, 2, B): means, then log-scales
        log_scale, bias = _affine(
            kept_0, kept_1, kept_2, h_ptr, weight_ptr, bias_ptr, rows, is_row, outs + NUM_PLACES, is_value,
            INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION,
        )  # fmt: skip
        log_scale += bias[None, :]
    else:
        outs = value
        where = value * 0 if HAS_ONE_SCALE else value
        log_scale = tl.load(log_scale_ptr + where, mask=is_value, other=0.0)[None, :]
    loc, bias = _affine(
        kept_0, kept_1, kept_2, h_ptr, weight_ptr, bias_ptr, rows, is_row, outs, is_value,
        INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION,
    )  # fmt: skip
    inverse = exp(-tl.maximum(log_scale, LEAST_LOG_SCALE))
    if ONE_DATUM:
        x = tl.load(x_ptr + datum * NUM_VALUES + value, mask=is_value, other=0).to(tl.float32)[None, :]
    else:
        live = is_row[:, None] & is_value[None, :]
        x = tl.load(x_ptr + datum[:, None] * NUM_VALUES + value[None, :], mask=live, other=0).to(tl.float32)
    return ((x - bias[None, :]) - loc) * inverse, inverse, log_scale, outs


@triton.jit
def _forward_kernel(
    # pointers
    x_ptr,  # (X, A * B)
    h_ptr,  # (R, H)
    weight_ptr,  # (A * L * B, H), L = 1 with log-scales of their own, else 2
    bias_ptr,  # (A * L * B,) or None
    log_scale_ptr,  # (A * B,) or (1,) float32, or None
    total_ptr,  # (R,)
    # sizes
    num_rows,
    num_data,
    # meta
    NUM_VALUES: tl.constexpr,  # A * B
    NUM_PLACES: tl.constexpr,  # B
    HAS_ONE_SCALE: tl.constexpr,
    LEAST_LOG_SCALE: tl.constexpr,
    HALF_LOG_TWO_PI: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_DATUM: tl.constexpr,
):
    rows, is_row, datum = rows_of(num_rows, num_data, ONE_DATUM, BLOCK_ROWS)
    kept_0, kept_1, kept_2 = keep_rows(h_ptr, rows, is_row, INNER, PIECE_0, PIECE_1, PIECE_2)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    of_all_rows = tl.zeros([1, BLOCK_COLS], tl.float32)
    for start in range(0, NUM_VALUES, BLOCK_COLS):
        value = start + tl.arange(0, BLOCK_COLS)
        noise, _, log_scale, _ = _tile(
            kept_0, kept_1, kept_2, x_ptr, h_ptr, weight_ptr, bias_ptr, log_scale_ptr,
            rows, is_row, datum, value, NUM_VALUES, NUM_PLACES, HAS_ONE_SCALE, LEAST_LOG_SCALE,
            INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION, ONE_DATUM,
        )  # fmt: skip
        # beyond the last value everything is 0
        if log_scale_ptr is None:
            total += tl.sum(0.5 * noise * noise + log_scale, axis=1)
        else:
            total += 0.5 * tl.sum(noise * noise, axis=1)
            of_all_rows += log_scale
    total += NUM_VALUES * HALF_LOG_TWO_PI + tl.sum(tl.sum(of_all_rows, axis=1), axis=0)
    tl.store(total_ptr + rows, -total, mask=is_row)


@triton.jit
def _grad_params_kernel(
    # pointers
    x_ptr,
    h_ptr,
    weight_ptr,
    bias_ptr,
    log_scale_ptr,
    grad_ptr,  # (R,)
    grad_params_ptr,  # (R, A * L * B)
    partial_ptr,  # (tiles of rows, A * B): of the log-scales that rows share, or None
    # sizes
    num_rows,
    num_data,
    # meta
    NUM_VALUES: tl.constexpr,
    NUM_PLACES: tl.constexpr,
    HAS_ONE_SCALE: tl.constexpr,
    LEAST_LOG_SCALE: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    num_blocks: tl.constexpr = (NUM_VALUES + BLOCK_COLS - 1) // BLOCK_COLS
    tile = (tl.program_id(0) // num_blocks).to(tl.int64)
    rows = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    value = (tl.program_id(0) % num_blocks) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    is_row = rows < num_rows
    kept_0, kept_1, kept_2 = keep_rows(h_ptr, rows, is_row, INNER, PIECE_0, PIECE_1, PIECE_2)
    noise, inverse, _, outs = _tile(
        kept_0, kept_1, kept_2, x_ptr, h_ptr, weight_ptr, bias_ptr, log_scale_ptr,
        rows, is_row, rows % num_data, value, NUM_VALUES, NUM_PLACES, HAS_ONE_SCALE, LEAST_LOG_SCALE,
        INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION, False,
    )  # fmt: skip
    live = is_row[:, None] & (value < NUM_VALUES)[None, :]
    grad = tl.load(grad_ptr + rows, mask=rows < num_rows, other=0.0).to(tl.float32)[:, None]
    by_log_scale = (noise * noise - 1.0) * grad
    if log_scale_ptr is None:
        out_ptr = grad_params_ptr + rows[:, None] * (2 * NUM_VALUES) + outs[None, :]
        tl.store(out_ptr + NUM_PLACES, by_log_scale, mask=live)
    else:
        out_ptr = grad_params_ptr + rows[:, None] * NUM_VALUES + outs[None, :]
        total = tl.sum(tl.where(live, by_log_scale, 0.0), axis=0)
        tl.store(partial_ptr + tile * NUM_VALUES + value, total, mask=value < NUM_VALUES)
    tl.store(out_ptr, noise * inverse * grad, mask=live)


def choose_grad(arch: int, size: int, num_rows: int, inner: int, num_values: int, has_scales: bool) -> Config:
    """The configuration of the gradient; where log-scales are outputs, too, two tiles are in registers at once."""
    c = config(num_rows, num_values, inner)
    if not has_scales:
        return replace(c, block_rows=min(64, c.block_rows))  # 128 spill on sm_80 with Triton 3.6
    most = 128 if (arch, size) == (100, 4) else 64
    return replace(c, block_rows=min(most, c.block_rows), block_cols=max(16, c.block_cols // 2), num_warps=4)


def linear_gaussian_forward(
    x: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    log_scale: torch.Tensor | None,
) -> torch.Tensor:
    """``x`` (X, A, B), ``h`` (R, H), ``weight`` (A * L * B, H), contiguous; row r meets ``x[r % X]`` -> (R,) float32.

    ``log_scale`` (1,) or (A * B,) with L = 1; None with L = 2 outputs, mean and log-scale, for each value.
    """
    num_rows, num_values = h.shape[0], x.shape[1] * x.shape[2]
    total = torch.zeros(num_rows, device=h.device, dtype=torch.float32)
    if num_rows == 0 or num_values == 0:
        return total
    c = forward_config("gaussian" if log_scale is None else "gaussian, shared scales", h, x.shape[0], num_values)
    _forward_kernel[(num_tiles(num_rows, x.shape[0], c.block_rows, c.one_datum),)](
        x_ptr=loadable(x),
        h_ptr=h,
        weight_ptr=weight,
        bias_ptr=bias,
        log_scale_ptr=log_scale,
        total_ptr=total,
        num_rows=num_rows,
        num_data=x.shape[0],
        HALF_LOG_TWO_PI=0.5 * math.log(2.0 * math.pi),
        ONE_DATUM=c.one_datum,
        **_sizes_of(x, log_scale),
        **meta_of(c, h.shape[1], h.dtype),
    )
    return total


def linear_gaussian_grad_params(
    x: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    log_scale: torch.Tensor | None,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As forward, with ``grad`` (R,) -> the gradients of the outputs (R, A * L * B) in the dtype of ``h`` and of
    ``log_scale`` where it is given; R is one chunk."""
    num_rows, num_values = h.shape[0], x.shape[1] * x.shape[2]
    grad_params = torch.empty(num_rows, weight.shape[0], device=h.device, dtype=h.dtype)
    if grad_params.numel() == 0:
        return grad_params, None if log_scale is None else torch.zeros_like(log_scale)
    c = choose_grad(arch_of(h) or 90, h.element_size(), num_rows, h.shape[1], num_values, log_scale is None)
    tiles = triton.cdiv(num_rows, c.block_rows)
    partial = None if log_scale is None else torch.empty(tiles, num_values, device=h.device, dtype=torch.float32)
    _grad_params_kernel[(tiles * triton.cdiv(num_values, c.block_cols),)](
        x_ptr=loadable(x),
        h_ptr=h,
        weight_ptr=weight,
        bias_ptr=bias,
        log_scale_ptr=log_scale,
        grad_ptr=grad,
        grad_params_ptr=grad_params,
        partial_ptr=partial,
        num_rows=num_rows,
        num_data=x.shape[0],
        **_sizes_of(x, log_scale),
        **meta_of(c, h.shape[1], h.dtype),
    )
    if partial is None or log_scale is None:
        return grad_params, None
    # partial sums in a fixed order, no atomics: the same numbers every time
    by_value = partial.sum(0)
    return grad_params, by_value if log_scale.numel() == num_values else by_value.sum(0, keepdim=True)


def _sizes_of(x: torch.Tensor, log_scale: torch.Tensor | None) -> dict[str, object]:
    return {
        "NUM_VALUES": x.shape[1] * x.shape[2],
        "NUM_PLACES": x.shape[2],
        "HAS_ONE_SCALE": log_scale is not None and log_scale.numel() == 1,
        "LEAST_LOG_SCALE": _LEAST_LOG_SCALE,
    }
