"""Log-density of rows under Gaussians, and its gradients: each reads the means and log-scales once."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .likelihood_terms import loadable

__all__ = [
    "Config",
    "SharedConfig",
    "config",
    "gaussian_log_prob_backward",
    "gaussian_log_prob_forward",
    "shared_config",
]


@dataclass(frozen=True)
class Config:
    """Launch configuration of the kernels."""

    block_rows: int
    block_cols: int
    num_warps: int


def config(num_cols: int) -> Config:
    """The configuration for rows of ``num_cols``; no timing at run time."""
    return Config(block_rows=2, block_cols=min(1024, triton.next_power_of_2(num_cols)), num_warps=4)


@dataclass(frozen=True)
class SharedConfig:
    """Launch configuration of the backward pass where rows share log-scales: a program sums over ``repeats`` rows."""

    repeats: int
    block_cols: int
    num_warps: int


def shared_config(num_cols: int) -> SharedConfig:
    """The configuration for rows of ``num_cols``; no timing at run time."""
    return SharedConfig(repeats=16, block_cols=min(256, triton.next_power_of_2(num_cols)), num_warps=2)


@triton.jit
def _inverse(log_scale):
    # finite: x = loc must not give 0 * inf
    return tl.exp(-tl.maximum(log_scale, -80.0))


@triton.jit
def _forward_kernel(
    # pointers
    x_ptr,
    loc_ptr,
    log_scale_ptr,
    total_ptr,
    # sizes
    num_rows,
    num_data,
    num_scales,
    # meta
    NUM_COLS: tl.constexpr,
    IS_PER_COL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    data = rows % num_data  # data and scales repeat: one block of them for every importance sample
    scale_rows = rows % num_scales
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for start in range(0, NUM_COLS, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        live = (rows < num_rows)[:, None] & (cols < NUM_COLS)[None, :]
        loc = tl.load(loc_ptr + rows[:, None] * NUM_COLS + cols[None, :], mask=live, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + data[:, None] * NUM_COLS + cols[None, :], mask=live, other=0).to(tl.float32)
        if IS_PER_COL:
            index = scale_rows[:, None] * NUM_COLS + cols[None, :]
        else:
            index = scale_rows[:, None] + 0 * cols[None, :]
        log_scale = tl.load(log_scale_ptr + index, mask=live, other=0.0).to(tl.float32)
        noise = (x - loc) * _inverse(log_scale)
        total += tl.where(live, 0.5 * noise * noise + log_scale, 0.0)
    # log(2 pi) / 2 for every column
    tl.store(total_ptr + rows, -tl.sum(total, axis=1) - NUM_COLS * 0.9189385332046727, mask=rows < num_rows)


@triton.jit
def _backward_kernel(
    # pointers
    x_ptr,
    loc_ptr,
    log_scale_ptr,
    grad_ptr,
    grad_loc_ptr,
    grad_log_scale_ptr,
    # sizes
    num_rows,
    num_data,
    num_scales,
    # meta
    NUM_COLS: tl.constexpr,
    IS_PER_COL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """The gradient of every log-scale of a row, or where a row has but one its sum."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    data = rows % num_data
    scale_rows = rows % num_scales
    grad = tl.load(grad_ptr + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for start in range(0, NUM_COLS, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        live = (rows < num_rows)[:, None] & (cols < NUM_COLS)[None, :]
        index = rows[:, None] * NUM_COLS + cols[None, :]
        loc = tl.load(loc_ptr + index, mask=live, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + data[:, None] * NUM_COLS + cols[None, :], mask=live, other=0).to(tl.float32)
        if IS_PER_COL:
            scale_index = scale_rows[:, None] * NUM_COLS + cols[None, :]
        else:
            scale_index = scale_rows[:, None] + 0 * cols[None, :]
        inverse = _inverse(tl.load(log_scale_ptr + scale_index, mask=live, other=0.0).to(tl.float32))
        noise = (x - loc) * inverse
        tl.store(grad_loc_ptr + index, noise * inverse * grad[:, None], mask=live)
        if IS_PER_COL:
            tl.store(grad_log_scale_ptr + index, (noise * noise - 1.0) * grad[:, None], mask=live)
        else:
            total += tl.where(live, noise * noise - 1.0, 0.0)
    if not IS_PER_COL:
        tl.store(grad_log_scale_ptr + rows, tl.sum(total, axis=1) * grad, mask=rows < num_rows)


@triton.jit
def _shared_backward_kernel(
    # pointers
    x_ptr,
    loc_ptr,
    log_scale_ptr,
    grad_ptr,
    grad_loc_ptr,
    grad_log_scale_ptr,
    # sizes
    num_rows,
    num_data,
    num_scales,
    # meta
    NUM_COLS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    REPEATS: tl.constexpr,
):
    """Log-scales that rows share: a program walks over the rows of one of them and sums."""
    scale_row = (tl.program_id(0) % num_scales).to(tl.int64)
    first = (tl.program_id(0) // num_scales).to(tl.int64) * REPEATS
    cols = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    inside = cols < NUM_COLS
    inverse = _inverse(tl.load(log_scale_ptr + scale_row * NUM_COLS + cols, mask=inside, other=0.0).to(tl.float32))
    total = tl.zeros([BLOCK_COLS], tl.float32)
    for repeat in range(REPEATS):
        row = (first + repeat) * num_scales + scale_row
        live = inside & (row + 0 * cols < num_rows)  # a block: the interpreter takes no scalar here
        loc = tl.load(loc_ptr + row * NUM_COLS + cols, mask=live, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + (row % num_data) * NUM_COLS + cols, mask=live, other=0).to(tl.float32)
        grad = tl.load(grad_ptr + tl.minimum(row, num_rows - 1)).to(tl.float32)  # not live beyond
        noise = (x - loc) * inverse
        tl.store(grad_loc_ptr + row * NUM_COLS + cols, noise * inverse * grad, mask=live)
        total += tl.where(live, (noise * noise - 1.0) * grad, 0.0)
    partial = tl.program_id(0).to(tl.int64)
    tl.store(grad_log_scale_ptr + partial * NUM_COLS + cols, total, mask=inside)


def gaussian_log_prob_forward(x: torch.Tensor, loc: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """``x`` (X, D), ``loc`` (R, D), ``log_scale`` (S, D) or (S, 1), contiguous -> (R,) float32.

    X and S divide R; row r meets ``x[r % X]`` and ``log_scale[r % S]``.
    """
    num_rows, num_cols = loc.shape
    total = torch.zeros(num_rows, device=loc.device, dtype=torch.float32)
    if loc.numel() == 0:
        return total
    c = config(num_cols)
    _forward_kernel[(triton.cdiv(num_rows, c.block_rows),)](
        x_ptr=loadable(x),
        loc_ptr=loc,
        log_scale_ptr=log_scale,
        total_ptr=total,
        num_rows=num_rows,
        num_data=x.shape[0],
        num_scales=log_scale.shape[0],
        NUM_COLS=num_cols,
        IS_PER_COL=log_scale.shape[1] == num_cols,
        BLOCK_ROWS=c.block_rows,
        BLOCK_COLS=c.block_cols,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return total


def gaussian_log_prob_backward(
    x: torch.Tensor, loc: torch.Tensor, log_scale: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As forward, with ``grad`` (R,) -> the gradients of ``loc`` and ``log_scale`` in their shapes and dtypes."""
    if loc.numel() == 0:
        return torch.zeros_like(loc), torch.zeros_like(log_scale)
    grad_loc = torch.empty_like(loc)
    if log_scale.shape == loc.shape:
        grad_log_scale = torch.empty_like(log_scale)
        _launch_backward(x, loc, log_scale, grad, grad_loc, grad_log_scale)
        return grad_loc, grad_log_scale
    if log_scale.shape[1] == loc.shape[1]:
        partials = _launch_shared_backward(x, loc, log_scale, grad, grad_loc)
    else:
        partials = torch.empty(loc.shape[0], 1, device=loc.device, dtype=torch.float32)
        _launch_backward(x, loc, log_scale, grad, grad_loc, partials)
    # partial sums in a fixed order, no atomics: the same numbers every time
    return grad_loc, partials.view(-1, *log_scale.shape).sum(0).to(log_scale.dtype)


def _launch_backward(
    x: torch.Tensor,
    loc: torch.Tensor,
    log_scale: torch.Tensor,
    grad: torch.Tensor,
    grad_loc: torch.Tensor,
    grad_log_scale: torch.Tensor,
) -> None:
    """``grad_log_scale``: of the shape of ``loc``, or (R, 1) sums where a row has one log-scale."""
    num_rows, num_cols = loc.shape
    c = config(num_cols)
    _backward_kernel[(triton.cdiv(num_rows, c.block_rows),)](
        x_ptr=loadable(x),
        loc_ptr=loc,
        log_scale_ptr=log_scale,
        grad_ptr=grad,
        grad_loc_ptr=grad_loc,
        grad_log_scale_ptr=grad_log_scale,
        num_rows=num_rows,
        num_data=x.shape[0],
        num_scales=log_scale.shape[0],
        NUM_COLS=num_cols,
        IS_PER_COL=log_scale.shape[1] == num_cols,
        BLOCK_ROWS=c.block_rows,
        BLOCK_COLS=c.block_cols,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )


def _launch_shared_backward(
    x: torch.Tensor, loc: torch.Tensor, log_scale: torch.Tensor, grad: torch.Tensor, grad_loc: torch.Tensor
) -> torch.Tensor:
    """The sums of programs, (programs, D) float32: program p has the rows of ``log_scale[p % S]``."""
    num_rows, num_cols = loc.shape
    num_scales = log_scale.shape[0]
    c = shared_config(num_cols)
    programs = num_scales * triton.cdiv(num_rows // num_scales, c.repeats)
    partials = torch.empty(programs, num_cols, device=loc.device, dtype=torch.float32)
    _shared_backward_kernel[(programs, triton.cdiv(num_cols, c.block_cols))](
        x_ptr=loadable(x),
        loc_ptr=loc,
        log_scale_ptr=log_scale,
        grad_ptr=grad,
        grad_loc_ptr=grad_loc,
        grad_log_scale_ptr=partials,
        num_rows=num_rows,
        num_data=x.shape[0],
        num_scales=num_scales,
        NUM_COLS=num_cols,
        BLOCK_COLS=c.block_cols,
        REPEATS=c.repeats,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return partials
