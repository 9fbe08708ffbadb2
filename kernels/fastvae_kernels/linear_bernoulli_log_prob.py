"""A linear layer to logits with the Bernoulli likelihood behind it: logits live in registers, a tile at a time."""

import torch
import triton
import triton.language as tl

from .likelihood_terms import loadable, softplus
from .linear_tile import config, meta_of, outputs_tile

__all__ = ["linear_bernoulli_forward", "linear_bernoulli_grad_logits"]


@triton.jit
def _signs(x_ptr, rows, cols, num_rows, num_data, NUM_COLS: tl.constexpr):
    """1 - 2 x of the tile, and which of it is live; the data repeat for every importance sample."""
    live = (rows < num_rows)[:, None] & (cols < NUM_COLS)[None, :]
    x = tl.load(x_ptr + (rows % num_data)[:, None] * NUM_COLS + cols[None, :], mask=live, other=0).to(tl.float32)
    return 1.0 - 2.0 * x, live


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
    PRECISION: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(0, NUM_COLS, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        logits = outputs_tile(
            h_ptr, weight_ptr, bias_ptr, rows, rows < num_rows, cols, cols < NUM_COLS,
            INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PRECISION,
        )  # fmt: skip
        signs, live = _signs(x_ptr, rows, cols, num_rows, num_data, NUM_COLS)
        total += tl.sum(tl.where(live, softplus(signs * logits), 0.0), axis=1)
    tl.store(total_ptr + rows, -total, mask=rows < num_rows)


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
    PRECISION: tl.constexpr,
):
    num_blocks: tl.constexpr = (NUM_COLS + BLOCK_COLS - 1) // BLOCK_COLS
    rows = (tl.program_id(0) // num_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = (tl.program_id(0) % num_blocks) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    logits = outputs_tile(
        h_ptr, weight_ptr, bias_ptr, rows, rows < num_rows, cols, cols < NUM_COLS,
        INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PRECISION,
    )  # fmt: skip
    signs, live = _signs(x_ptr, rows, cols, num_rows, num_data, NUM_COLS)
    grad = tl.load(grad_ptr + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
    slope = -grad[:, None] * signs * tl.sigmoid(signs * logits)
    tl.store(grad_logits_ptr + rows[:, None] * NUM_COLS + cols[None, :], slope, mask=live)


def linear_bernoulli_forward(
    x: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``x`` (X, D), ``h`` (R, H), ``weight`` (D, H), contiguous; row r meets ``x[r % X]`` -> (R,) float32."""
    (num_rows, inner), num_cols = h.shape, weight.shape[0]
    total = torch.zeros(num_rows, device=h.device, dtype=torch.float32)
    if num_rows == 0 or num_cols == 0:
        return total
    c = config(num_rows, num_cols, inner)
    _forward_kernel[(triton.cdiv(num_rows, c.block_rows),)](
        x_ptr=loadable(x),
        h_ptr=h,
        weight_ptr=weight,
        bias_ptr=bias,
        total_ptr=total,
        num_rows=num_rows,
        num_data=x.shape[0],
        NUM_COLS=num_cols,
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
