"""Log-density of rows under Gaussians, and its gradients: each reads the means and log-scales once."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .likelihood_terms import columns_of, exp, fills_tiles, loadable, num_tiles, rows_of

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
    """Launch configuration of the kernels.

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


@dataclass(frozen=True)
class SharedConfig:
    """Launch configuration of the backward pass where rows share log-scales: a program sums over ``repeats`` rows.

    Attributes:
        num_groups: rows of one program are this far apart, and so have the same log-scales.
        one_datum: whether they belong to the same datapoint, too.
    """

    block_rows: int
    block_cols: int
    repeats: int
    num_groups: int
    one_datum: bool
    num_warps: int


def shared_config(num_rows: int, num_data: int, num_scales: int, num_cols: int) -> SharedConfig:
    """The configuration for R rows of X datapoints with S rows of log-scales; no timing at run time."""
    cols = columns_of(num_cols, 256)
    of_datum = num_data % num_scales == 0 and fills_tiles(num_rows, num_data, 16)
    groups = num_data if of_datum else num_scales
    rows = max(1, min(1024 // cols, triton.next_power_of_2(num_rows // groups)))
    return SharedConfig(rows, cols, max(64, rows), groups, groups % num_data == 0, num_warps=2)


@triton.jit
def _inverse(log_scale):
    # finite: x = loc must not give 0 * inf
    return exp(-tl.maximum(log_scale, -80.0))


@triton.jit
def _data(x_ptr, datum, cols, is_col, NUM_COLS: tl.constexpr, ONE_DATUM: tl.constexpr):
    """The values of every row, or of all."""
    if ONE_DATUM:
        x = tl.load(x_ptr + datum * NUM_COLS + cols, mask=is_col, other=0)[None, :]
    else:
        x = tl.load(x_ptr + datum[:, None] * NUM_COLS + cols[None, :], mask=is_col[None, :], other=0)
    return x.to(tl.float32)


@triton.jit
def _log_scales(log_scale_ptr, rows, num_scales, cols, is_col, NUM_COLS: tl.constexpr, IS_PER_COL: tl.constexpr):
    scale_rows = rows % num_scales  # they repeat as the data do
    if IS_PER_COL:
        index = scale_rows[:, None] * NUM_COLS + cols[None, :]
        log_scale = tl.load(log_scale_ptr + index, mask=is_col[None, :], other=0.0)
    else:
        log_scale = tl.load(log_scale_ptr + scale_rows)[:, None]
    return log_scale.to(tl.float32)


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
    ONE_DATUM: tl.constexpr,
):
    rows, is_row, datum = rows_of(num_rows, num_data, ONE_DATUM, BLOCK_ROWS)
    loaded = tl.minimum(rows, num_rows - 1)  # no mask
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for start in range(0, NUM_COLS, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        is_col = cols < NUM_COLS
        index = loaded[:, None] * NUM_COLS + cols[None, :]
        loc = tl.load(loc_ptr + index, mask=is_col[None, :], other=0.0).to(tl.float32)
        x = _data(x_ptr, datum, cols, is_col, NUM_COLS, ONE_DATUM)
        log_scale = _log_scales(log_scale_ptr, loaded, num_scales, cols, is_col, NUM_COLS, IS_PER_COL)
        noise = (x - loc) * _inverse(log_scale)  # 0 beyond the last column
        total += 0.5 * noise * noise
        if IS_PER_COL:
            total += log_scale
        else:
            total += tl.where(is_col[None, :], log_scale, 0.0)
    # log(2 pi) / 2 for every column
    tl.store(total_ptr + rows, -tl.sum(total, axis=1) - NUM_COLS * 0.9189385332046727, mask=is_row)


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
    ONE_DATUM: tl.constexpr,
):
    """The gradient of every log-scale of a row, or where a row has but one its sum."""
    rows, is_row, datum = rows_of(num_rows, num_data, ONE_DATUM, BLOCK_ROWS)
    loaded = tl.minimum(rows, num_rows - 1)  # no mask
    grad = tl.load(grad_ptr + loaded).to(tl.float32)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for start in range(0, NUM_COLS, BLOCK_COLS):
        cols = start + tl.arange(0, BLOCK_COLS)
        is_col = cols < NUM_COLS
        live = is_row[:, None] & is_col[None, :]
        index = loaded[:, None] * NUM_COLS + cols[None, :]
        loc = tl.load(loc_ptr + index, mask=is_col[None, :], other=0.0).to(tl.float32)
        x = _data(x_ptr, datum, cols, is_col, NUM_COLS, ONE_DATUM)
        inverse = _inverse(_log_scales(log_scale_ptr, loaded, num_scales, cols, is_col, NUM_COLS, IS_PER_COL))
        noise = (x - loc) * inverse
        tl.store(grad_loc_ptr + index, noise * inverse * grad[:, None], mask=live)
        if IS_PER_COL:
            tl.store(grad_log_scale_ptr + index, (noise * noise - 1.0) * grad[:, None], mask=live)
        else:
            total += tl.where(is_col[None, :], noise * noise - 1.0, 0.0)
    if not IS_PER_COL:
        tl.store(grad_log_scale_ptr + rows, tl.sum(total, axis=1) * grad, mask=is_row)


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
    num_groups,
    # meta
    NUM_COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    REPEATS: tl.constexpr,
    ONE_DATUM: tl.constexpr,
):
    """Log-scales that rows share: a program walks over some rows that do, ``num_groups`` apart, and sums."""
    group = (tl.program_id(0) % num_groups).to(tl.int64)
    first = (tl.program_id(0) // num_groups) * REPEATS
    cols = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    is_col = cols < NUM_COLS
    scale_ptr = log_scale_ptr + (group % num_scales) * NUM_COLS + cols
    inverse = _inverse(tl.load(scale_ptr, mask=is_col, other=0.0).to(tl.float32))[None, :]
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for start in range(first, first + REPEATS, BLOCK_ROWS):
        rows = (start + tl.arange(0, BLOCK_ROWS)).to(tl.int64) * num_groups + group
        is_row = rows < num_rows
        loaded = tl.minimum(rows, num_rows - 1)
        index = loaded[:, None] * NUM_COLS + cols[None, :]
        loc = tl.load(loc_ptr + index, mask=is_col[None, :], other=0.0).to(tl.float32)
        if ONE_DATUM:
            x = _data(x_ptr, group % num_data, cols, is_col, NUM_COLS, True)
        else:
            x = _data(x_ptr, loaded % num_data, cols, is_col, NUM_COLS, False)
        grad = tl.load(grad_ptr + rows, mask=is_row, other=0.0).to(tl.float32)[:, None]
        noise = (x - loc) * inverse
        scaled = noise * grad
        tl.store(grad_loc_ptr + index, scaled * inverse, mask=is_row[:, None] & is_col[None, :])
        total += noise * scaled - grad
    partial = tl.program_id(0).to(tl.int64)
    tl.store(grad_log_scale_ptr + partial * NUM_COLS + cols, tl.sum(total, axis=0), mask=is_col)


def gaussian_log_prob_forward(x: torch.Tensor, loc: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """``x`` (X, D), ``loc`` (R, D), ``log_scale`` (S, D) or (S, 1), contiguous -> (R,) float32.

    X and S divide R; row r meets ``x[r % X]`` and ``log_scale[r % S]``.
    """
    num_rows, num_cols = loc.shape
    total = torch.zeros(num_rows, device=loc.device, dtype=torch.float32)
    if loc.numel() == 0:
        return total
    c = config(num_rows, x.shape[0], num_cols)
    _forward_kernel[(num_tiles(num_rows, x.shape[0], c.block_rows, c.one_datum),)](
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
        ONE_DATUM=c.one_datum,
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
    c = config(num_rows, x.shape[0], num_cols)
    _backward_kernel[(num_tiles(num_rows, x.shape[0], c.block_rows, c.one_datum),)](
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
        ONE_DATUM=c.one_datum,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )


def _launch_shared_backward(
    x: torch.Tensor, loc: torch.Tensor, log_scale: torch.Tensor, grad: torch.Tensor, grad_loc: torch.Tensor
) -> torch.Tensor:
    """The sums of programs, (programs, D) float32: program p has rows of ``log_scale[p % S]``."""
    num_rows, num_cols = loc.shape
    c = shared_config(num_rows, x.shape[0], log_scale.shape[0], num_cols)
    programs = c.num_groups * triton.cdiv(num_rows // c.num_groups, c.repeats)
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
        num_scales=log_scale.shape[0],
        num_groups=c.num_groups,
        NUM_COLS=num_cols,
        BLOCK_ROWS=c.block_rows,
        BLOCK_COLS=c.block_cols,
        REPEATS=c.repeats,
        ONE_DATUM=c.one_datum,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return partials
