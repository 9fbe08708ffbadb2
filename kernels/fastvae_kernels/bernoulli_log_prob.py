"""Log-likelihood of binary rows given logits, and its gradient: each reads the logits once."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .likelihood_terms import loadable, softplus

__all__ = ["Config", "bernoulli_log_prob_backward", "bernoulli_log_prob_forward", "config"]


@dataclass(frozen=True)
class Config:
    """Launch configuration of both kernels."""

    block_rows: int
    block_cols: int
    num_warps: int


def config(num_cols: int) -> Config:
    """The configuration for rows of ``num_cols``; no timing at run time."""
    return Config(block_rows=4, block_cols=min(1024, triton.next_power_of_2(num_cols)), num_warps=4)


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
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    data = rows % num_data  # the data repeat: one block of them for every importance sample
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for start in range(0, NUM_COLS, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        live = (rows < num_rows)[:, None] & (cols < NUM_COLS)[None, :]
        logits = tl.load(logits_ptr + rows[:, None] * NUM_COLS + cols[None, :], mask=live, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + data[:, None] * NUM_COLS + cols[None, :], mask=live, other=0).to(tl.float32)
        total += tl.where(live, softplus((1.0 - 2.0 * x) * logits), 0.0)
    tl.store(total_ptr + rows, -tl.sum(total, axis=1), mask=rows < num_rows)


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
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    data = rows % num_data
    grad = tl.load(grad_ptr + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
    for start in range(0, NUM_COLS, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        live = (rows < num_rows)[:, None] & (cols < NUM_COLS)[None, :]
        index = rows[:, None] * NUM_COLS + cols[None, :]
        logits = tl.load(logits_ptr + index, mask=live, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + data[:, None] * NUM_COLS + cols[None, :], mask=live, other=0).to(tl.float32)
        sign = 1.0 - 2.0 * x
        tl.store(grad_logits_ptr + index, -grad[:, None] * sign * tl.sigmoid(sign * logits), mask=live)


def bernoulli_log_prob_forward(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``x`` (X, D) and ``logits`` (R, D), contiguous, R a multiple of X; row r meets ``x[r % X]`` -> (R,) float32."""
    num_rows, num_cols = logits.shape
    total = torch.zeros(num_rows, device=logits.device, dtype=torch.float32)
    if logits.numel() == 0:
        return total
    c = config(num_cols)
    _forward_kernel[(triton.cdiv(num_rows, c.block_rows),)](
        x_ptr=loadable(x),
        logits_ptr=logits,
        total_ptr=total,
        num_rows=num_rows,
        num_data=x.shape[0],
        NUM_COLS=num_cols,
        BLOCK_ROWS=c.block_rows,
        BLOCK_COLS=c.block_cols,
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
    c = config(num_cols)
    _backward_kernel[(triton.cdiv(num_rows, c.block_rows),)](
        x_ptr=loadable(x),
        logits_ptr=logits,
        grad_ptr=grad,
        grad_logits_ptr=grad_logits,
        num_rows=num_rows,
        num_data=x.shape[0],
        NUM_COLS=num_cols,
        BLOCK_ROWS=c.block_rows,
        BLOCK_COLS=c.block_cols,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return grad_logits
