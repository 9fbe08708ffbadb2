"""What the kernels of a last linear layer with its likelihood share: the launch, and a tile of the layer's outputs."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .masked_conv2d_launch import precision_of

__all__ = ["Config", "config", "meta_of", "outputs_tile"]


@dataclass(frozen=True)
class Config:
    """Launch configuration: rows and outputs of a tile, and how much of H a step takes."""

    block_rows: int
    block_cols: int
    block_inner: int
    num_warps: int
    num_stages: int


def config(num_rows: int, num_cols: int, inner: int) -> Config:
    """The configuration for rows (R, H) and weights (D, H); no timing at run time."""
    rows = max(16, min(128, triton.next_power_of_2(num_rows)))
    cols = max(16, min(64, triton.next_power_of_2(num_cols)))  # 128 spill on sm_100
    # steps of 32 pad H = 200 to 224; 64 would make it 256
    return Config(rows, cols, 16 if inner <= 16 else 32, num_warps=8 if rows * cols >= 8192 else 4, num_stages=3)


@triton.jit
def outputs_tile(
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
    PRECISION: tl.constexpr,
):
    """The tile (rows, outs) of ``h @ weight.T + bias`` in float32; ``rows`` are 64-bit, the bias may be None."""
    acc = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for start in range(0, INNER, BLOCK_INNER):
        inner = start + tl.arange(0, BLOCK_INNER)
        h_live = is_row[:, None] & (inner < INNER)[None, :]
        h = tl.load(h_ptr + rows[:, None] * INNER + inner[None, :], mask=h_live, other=0.0)
        w_live = is_out[:, None] & (inner < INNER)[None, :]
        w = tl.load(weight_ptr + outs.to(tl.int64)[:, None] * INNER + inner[None, :], mask=w_live, other=0.0)
        acc = tl.dot(h, tl.trans(w), acc, input_precision=PRECISION)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + outs, mask=is_out, other=0.0).to(tl.float32)[None, :]
    return acc


def meta_of(c: Config, inner: int, dtype: torch.dtype) -> dict[str, object]:
    """The launch options of a configuration."""
    return {
        "INNER": inner,
        "BLOCK_ROWS": c.block_rows,
        "BLOCK_COLS": c.block_cols,
        "BLOCK_INNER": c.block_inner,
        "PRECISION": precision_of(dtype),
        "num_warps": c.num_warps,
        "num_stages": c.num_stages,
        "enable_fp_fusion": True,
    }
