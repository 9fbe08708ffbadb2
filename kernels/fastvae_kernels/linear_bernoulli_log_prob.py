"""A linear layer to logits with the Bernoulli likelihood behind it: logits live in registers, a tile at a time."""

import torch
import triton
import triton.language as tl

from .likelihood_terms import LOG_2_E, join_log1p, loadable, log1p_joined, num_tiles, rows_of, signs_of
from .linear_tile import config, forward_config, keep_rows, meta_of, outputs_tile

__all__ = ["linear_bernoulli_forward", "linear_bernoulli_grad_logits"]


@triton.jit
def _bias(bias_ptr, cols, is_col):
    """-inf for columns that are none."""
    if bias_ptr is None:
        bias = tl.where(is_col, 0.0, float("-inf"))
    else:
        bias = tl.load(bias_ptr + cols, mask=is_col, other=float("-inf")).to(tl.float32)
    return bias


@triton.jit
def _forward_kernel(
    # pointers
    x_ptr,
    h_ptr,
    weight_ptr,
    bias_ptr,
    total_ptr,
    # sizes
    num_rows,
    num_data,
    # meta
    NUM_COLS: tl.constexpr,
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
    first, second, third = keep_rows(h_ptr, rows, is_row, INNER, PIECE_0, PIECE_1, PIECE_2)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(0, NUM_COLS, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        is_col = cols < NUM_COLS
        logits = outputs_tile(
            first, second, third, h_ptr, weight_ptr, rows, is_row, cols, is_col,
            INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION,
        )  # fmt: skip
        # a logit of -inf where there is none: a value of 0 has probability 1
        bias = _bias(bias_ptr, cols, is_col)[None, :]
        # t = (1 - 2 x) logit log2(e), so that its exponential is of base 2
        signs = LOG_2_E * signs_of(x_ptr, datum, cols, is_col, NUM_COLS, ONE_DATUM)
        # of one row of signs, one instruction for a logit
        t = logits * signs + bias * signs if ONE_DATUM else (logits + bias) * signs
        total += tl.sum(tl.maximum(t, 0.0), axis=1)
        total += LOG_2_E * log1p_joined(tl.reduce(tl.exp2(-tl.abs(t)), 1, join_log1p))
    tl.store(total_ptr + rows, total * (-1.0 / LOG_2_E), mask=is_row)


@triton.jit
def _grad_logits_kernel(
    # pointers
    x_ptr,
    h_ptr,
    weight_ptr,
    bias_ptr,
    grad_ptr,
    grad_logits_ptr,
    # sizes
    num_rows,
    num_data,
    # meta
    NUM_COLS: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    num_blocks: tl.constexpr = (NUM_COLS + BLOCK_COLS - 1) // BLOCK_COLS
    rows = (tl.program_id(0) // num_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = (tl.program_id(0) % num_blocks) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    is_row, is_col = rows < num_rows, cols < NUM_COLS
    first, second, third = keep_rows(h_ptr, rows, is_row, INNER, PIECE_0, PIECE_1, PIECE_2)
    logits = outputs_tile(
        first, second, third, h_ptr, weight_ptr, rows, is_row, cols, is_col,
        INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION,
    )  # fmt: skip
    logits += _bias(bias_ptr, cols, is_col)[None, :]
    signs = signs_of(x_ptr, rows % num_data, cols, is_col, NUM_COLS, False)
    grad = tl.load(grad_ptr + rows, mask=is_row, other=0.0).to(tl.float32)
    slope = -grad[:, None] * signs * tl.sigmoid(signs * logits)
    tl.store(grad_logits_ptr + rows[:, None] * NUM_COLS + cols[None, :], slope, mask=is_row[:, None] & is_col[None, :])


def linear_bernoulli_forward(
    x: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``x`` (X, D), ``h`` (R, H), ``weight`` (D, H), contiguous; row r meets ``x[r % X]`` -> (R,) float32."""
    (num_rows, inner), num_cols = h.shape, weight.shape[0]
    total = torch.zeros(num_rows, device=h.device, dtype=torch.float32)
    if num_rows == 0 or num_cols == 0:
        return total
    c = forward_config("bernoulli", h, x.shape[0], num_cols)
    _forward_kernel[(num_tiles(num_rows, x.shape[0], c.block_rows, c.one_datum),)](
        x_ptr=loadable(x),
        h_ptr=h,
        weight_ptr=weight,
        bias_ptr=bias,
        total_ptr=total,
        num_rows=num_rows,
        num_data=x.shape[0],
        NUM_COLS=num_cols,
        ONE_DATUM=c.one_datum,
        **meta_of(c, inner, h.dtype),
    )
    return total


def linear_bernoulli_grad_logits(
    x: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, grad: torch.Tensor
) -> torch.Tensor:
    """As forward, with ``grad`` (R,) -> the gradient of the logits (R, D) in the dtype of ``h``; R is one chunk."""
    (num_rows, inner), num_cols = h.shape, weight.shape[0]
    grad_logits = torch.empty(num_rows, num_cols, device=h.device, dtype=h.dtype)
    if grad_logits.numel() == 0:
        return grad_logits
    c = config(num_rows, num_cols, inner)
    _grad_logits_kernel[(triton.cdiv(num_rows, c.block_rows) * triton.cdiv(num_cols, c.block_cols),)](
        x_ptr=loadable(x),
        h_ptr=h,
        weight_ptr=weight,
        bias_ptr=bias,
        grad_ptr=grad,
        grad_logits_ptr=grad_logits,
        num_rows=num_rows,
        num_data=x.shape[0],
        NUM_COLS=num_cols,
        **meta_of(c, inner, h.dtype),
    )
    return grad_logits
