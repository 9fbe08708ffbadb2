"""Log-likelihood of binary rows given logits, and its gradient: each reads the logits once."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .likelihood_terms import (
    columns_of,
    exp,
    fills_tiles,
    join_log1p,
    loadable,
    log1p_joined,
    num_tiles,
    rows_of,
    sigmoid,
    signs_of,
)

__all__ = ["Config", "bernoulli_log_prob_backward", "bernoulli_log_prob_forward", "config"]


@dataclass(frozen=True)
class Config:
    """Launch configuration of both kernels.

    Attributes:
        one_datum: whether all rows of a tile are samples of one datapoint, whose values are loaded once.
    """

    block_rows: int
    block_cols: int
    num_warps: int
    one_datum: bool


def config(num_rows: int, num_data: int, num_cols: int) -> Config:
    """The configuration for rows of ``num_cols``; no timing at run time."""
    cols = columns_of(num_cols, 256)
    rows = max(1, min(1024 // cols, triton.next_power_of_2(num_rows)))
    return Config(rows, cols, num_warps=4, one_datum=fills_tiles(num_rows, num_data, rows))


@triton.jit
def _forward_kernel(
    # pointers
    x_ptr,
    logits_ptr,
    total_ptr,
    # sizes
    num_rows,
    num_data,
    # meta
    NUM_COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ONE_DATUM: tl.constexpr,
):
    rows, is_row, datum = rows_of(num_rows, num_data, ONE_DATUM, BLOCK_ROWS)
    loaded = tl.minimum(rows, num_rows - 1)  # no mask
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for chunk in range(0, NUM_COLS, 64 * BLOCK_COLS):  # as many as can be joined
        joined = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
        for start in range(chunk, tl.minimum(chunk + 64 * BLOCK_COLS, NUM_COLS), BLOCK_COLS):
            cols = start + tl.arange(0, BLOCK_COLS)
            is_col = cols < NUM_COLS
            # beyond the last column a certain 0
            index = loaded[:, None] * NUM_COLS + cols[None, :]
            logits = tl.load(logits_ptr + index, mask=is_col[None, :], other=float("-inf")).to(tl.float32)
            t = logits * signs_of(x_ptr, datum, cols, is_col, NUM_COLS, ONE_DATUM)
            total += tl.maximum(t, 0.0)
            joined = join_log1p(joined, exp(-tl.abs(t)))
        total += log1p_joined(joined)
    tl.store(total_ptr + rows, -tl.sum(total, axis=1), mask=is_row)


@triton.jit
def _backward_kernel(
    # pointers
    x_ptr,
    logits_ptr,
    grad_ptr,
    grad_logits_ptr,
    # sizes
    num_rows,
    num_data,
    # meta
    NUM_COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ONE_DATUM: tl.constexpr,
):
    rows, is_row, datum = rows_of(num_rows, num_data, ONE_DATUM, BLOCK_ROWS)
    grad = tl.load(grad_ptr + rows, mask=is_row, other=0.0).to(tl.float32)
    loaded = tl.minimum(rows, num_rows - 1)  # no mask
    for start in range(0, NUM_COLS, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        is_col = cols < NUM_COLS
        index = loaded[:, None] * NUM_COLS + cols[None, :]
        logits = tl.load(logits_ptr + index, mask=is_col[None, :], other=0.0).to(tl.float32)
        signs = signs_of(x_ptr, datum, cols, is_col, NUM_COLS, ONE_DATUM)
        slope = -grad[:, None] * signs * sigmoid(signs * logits)
        tl.store(grad_logits_ptr + index, slope, mask=is_row[:, None] & is_col[None, :])


def bernoulli_log_prob_forward(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``x`` (X, D) and ``logits`` (R, D), contiguous, R a multiple of X; row r meets ``x[r % X]`` -> (R,) float32."""
    num_rows, num_cols = logits.shape
    total = torch.zeros(num_rows, device=logits.device, dtype=torch.float32)
    if logits.numel() == 0:
        return total
    c = config(num_rows, x.shape[0], num_cols)
    _forward_kernel[(num_tiles(num_rows, x.shape[0], c.block_rows, c.one_datum),)](
        x_ptr=loadable(x),
        logits_ptr=logits,
        total_ptr=total,
        num_rows=num_rows,
        num_data=x.shape[0],
        NUM_COLS=num_cols,
        BLOCK_ROWS=c.block_rows,
        BLOCK_COLS=c.block_cols,
        ONE_DATUM=c.one_datum,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return total


def bernoulli_log_prob_backward(x: torch.Tensor, logits: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """As forward, with ``grad`` (R,) -> the gradient of the logits (R, D) in their dtype."""
    num_rows, num_cols = logits.shape
    grad_logits = torch.empty_like(logits)
    if logits.numel() == 0:
        return grad_logits
    c = config(num_rows, x.shape[0], num_cols)
    _backward_kernel[(num_tiles(num_rows, x.shape[0], c.block_rows, c.one_datum),)](
        x_ptr=loadable(x),
        logits_ptr=logits,
        grad_ptr=grad,
        grad_logits_ptr=grad_logits,
        num_rows=num_rows,
        num_data=x.shape[0],
        NUM_COLS=num_cols,
        BLOCK_ROWS=c.block_rows,
        BLOCK_COLS=c.block_cols,
        ONE_DATUM=c.one_datum,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return grad_logits
