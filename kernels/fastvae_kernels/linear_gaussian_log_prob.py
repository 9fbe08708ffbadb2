"""A linear layer to means, and log-scales, with the Gaussian likelihood behind it: they live in registers only."""

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl

from .likelihood_terms import loadable
from .linear_tile import Config, config, meta_of, outputs_tile

__all__ = ["gaussian_config", "linear_gaussian_forward"]

_LEAST_LOG_SCALE = -80.0  # below, 1 / s would be infinite and a value that is met exactly nan


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
    PRECISION: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = rows < num_rows
    data = rows % num_data  # the data repeat: one block of them for every importance sample
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(0, NUM_VALUES, BLOCK_COLS):
        value = start + tl.arange(0, BLOCK_COLS)
        is_value = value < NUM_VALUES
        if log_scale_ptr is None:
            outs = value + (value // NUM_PLACES) * NUM_PLACES  # (A, 2, B): means, then log-scales
            log_scale = outputs_tile(
                h_ptr, weight_ptr, bias_ptr, rows, is_row, outs + NUM_PLACES, is_value,
                INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PRECISION,
            )  # fmt: skip
        else:
            outs = value
            where = value * 0 if HAS_ONE_SCALE else value
            log_scale = tl.load(log_scale_ptr + where, mask=is_value, other=0.0)[None, :]
        loc = outputs_tile(
            h_ptr, weight_ptr, bias_ptr, rows, is_row, outs, is_value,
            INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PRECISION,
        )  # fmt: skip
        live = is_row[:, None] & is_value[None, :]
        x = tl.load(x_ptr + data[:, None] * NUM_VALUES + value[None, :], mask=live, other=0).to(tl.float32)
        noise = (x - loc) * tl.exp(-tl.maximum(log_scale, LEAST_LOG_SCALE))
        total += tl.sum(tl.where(live, 0.5 * noise * noise + log_scale + HALF_LOG_TWO_PI, 0.0), axis=1)
    tl.store(total_ptr + rows, -total, mask=is_row)


def gaussian_config(num_rows: int, num_values: int, inner: int, has_scales: bool) -> Config:
    """The configuration; where log-scales are outputs, too, two tiles are in registers at once."""
    c = config(num_rows, num_values, inner)
    c = replace(c, block_rows=min(64, c.block_rows))  # 128 spill on sm_80 with Triton 3.6
    return replace(c, block_cols=max(16, c.block_cols // 2)) if has_scales else c


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
    num_rows, inner = h.shape
    num_values, num_places = x.shape[1] * x.shape[2], x.shape[2]
    total = torch.zeros(num_rows, device=h.device, dtype=torch.float32)
    if num_rows == 0 or num_values == 0:
        return total
    c = gaussian_config(num_rows, num_values, inner, log_scale is None)
    _forward_kernel[(triton.cdiv(num_rows, c.block_rows),)](
        x_ptr=loadable(x),
        h_ptr=h,
        weight_ptr=weight,
        bias_ptr=bias,
        log_scale_ptr=log_scale,
        total_ptr=total,
        num_rows=num_rows,
        num_data=x.shape[0],
        NUM_VALUES=num_values,
        NUM_PLACES=num_places,
        HAS_ONE_SCALE=log_scale is not None and log_scale.numel() == 1,
        LEAST_LOG_SCALE=_LEAST_LOG_SCALE,
        HALF_LOG_TWO_PI=0.5 * math.log(2.0 * math.pi),
        **meta_of(c, inner, h.dtype),
    )
    return total
