"""A linear layer to the logits of levels with the categorical likelihood behind it: logits live in registers only."""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from .likelihood_terms import LOG_2_E, loadable, num_tiles, rows_of
from .linear_tile import Config, choose_forward, forward_config, keep_rows, meta_of, outputs_tile
from .masked_conv2d_launch import arch_of, precision_of

__all__ = [
    "choose_grad",
    "linear_categorical_forward",
    "linear_categorical_grad_logits",
]


@triton.jit
def _add_levels(largest, exponentials, logits):
    """The running pair (m, s) of log2 sum 2^ = m + log2 s of each row with a tile of logits more, -inf for none."""
    new = tl.maximum(largest, tl.max(logits, axis=1))
    shift = tl.where(new == float("-inf"), 0.0, new)  # only zeros so far: -inf - -inf would be nan
    return new, exponentials * tl.exp2(largest - shift) + tl.sum(tl.exp2(logits - shift[:, None]), axis=1)


@triton.jit
def _logits(
    kept_0,
    kept_1,
    kept_2,
    h_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    is_row,
    outs,
    is_level,
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of logits in units of base 2, -inf where there is no level."""
    acc = outputs_tile(
        kept_0, kept_1, kept_2, h_ptr, weight_ptr, rows, is_row, outs, is_level,
        INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION,
    )  # fmt: skip
    if bias_ptr is None:
        bias = tl.where(is_level, 0.0, float("-inf"))
    else:
        bias = LOG_2_E * tl.load(bias_ptr + outs, mask=is_level, other=float("-inf")).to(tl.float32)
    return acc * LOG_2_E + bias[None, :]


@triton.jit
def _forward_kernel(
    # pointers
    x_ptr,  # (X, A * B)
    h_ptr,  # (R, H)
    weight_ptr,  # (A * L * B, H)
    bias_ptr,  # (A * L * B,) or None
    partial_ptr,  # (S, R): the sum over every S-th value
    # sizes
    num_rows,
    num_data,
    num_shares,  # S
    # meta
    NUM_VALUES: tl.constexpr,  # A * B
    NUM_PLACES: tl.constexpr,  # B
    NUM_LEVELS: tl.constexpr,  # L
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,  # levels at once
    BLOCK_INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_DATUM: tl.constexpr,
):
    rows, is_row, datum = rows_of(num_rows, num_data, ONE_DATUM, BLOCK_ROWS)
    kept_0, kept_1, kept_2 = keep_rows(h_ptr, rows, is_row, INNER, PIECE_0, PIECE_1, PIECE_2)
    share = tl.program_id(1)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for value in range(share, NUM_VALUES, num_shares):
        if ONE_DATUM:
            x = tl.load(x_ptr + datum * NUM_VALUES + value).to(tl.float32)
        else:
            x = tl.load(x_ptr + datum * NUM_VALUES + value, mask=is_row, other=0).to(tl.float32)
        first = (value // NUM_PLACES) * (NUM_LEVELS * NUM_PLACES) + value % NUM_PLACES  # the output of level 0
        largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        exponentials = tl.zeros([BLOCK_ROWS], tl.float32)
        chosen = tl.zeros([BLOCK_ROWS], tl.float32)
        for start in range(0, NUM_LEVELS, BLOCK_COLS):
            level = start + tl.arange(0, BLOCK_COLS)
            is_level = level < NUM_LEVELS
            logits = _logits(
                kept_0, kept_1, kept_2, h_ptr, weight_ptr, bias_ptr, rows, is_row, first + level * NUM_PLACES, is_level,
                INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION,
            )  # fmt: skip
            if ONE_DATUM:
                is_chosen = (is_level & (x == level.to(tl.float32)))[None, :]
            else:
                is_chosen = (x[:, None] == level.to(tl.float32)[None, :]) & is_level[None, :]
            chosen += tl.sum(tl.where(is_chosen, logits, 0.0), axis=1)
            largest, exponentials = _add_levels(largest, exponentials, logits)
        known = (x >= 0.0) & (x < NUM_LEVELS) & (x == tl.floor(x))
        total += tl.where(known, (chosen - largest - tl.log2(exponentials)) * (1.0 / LOG_2_E), float("-inf"))
    tl.store(partial_ptr + share.to(tl.int64) * num_rows + rows, total, mask=is_row)


@triton.jit
def _grad_logits_kernel(
    # pointers
    x_ptr,  # (X, V)
    h_ptr,  # (R, H)
    weight_ptr,  # (V * L, H)
    bias_ptr,  # (V * L,) or None
    grad_ptr,  # (R,)
    grad_logits_ptr,  # (R, V * L)
    # sizes
    num_rows,
    num_data,
    # meta
    NUM_VALUES: tl.constexpr,  # V
    NUM_LEVELS: tl.constexpr,  # L
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,  # levels at once
    BLOCK_INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = (num_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    rows = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    value = tl.program_id(0) // tiles  # programs that run together read the same weights
    is_row = rows < num_rows
    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    exponentials = tl.zeros([BLOCK_ROWS], tl.float32)
    logits = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    kept_0, kept_1, kept_2 = keep_rows(h_ptr, rows, is_row, INNER, PIECE_0, PIECE_1, PIECE_2)
    for start in range(0, NUM_LEVELS, BLOCK_COLS):
        level = start + tl.arange(0, BLOCK_COLS)
        is_level = level < NUM_LEVELS
        logits = _logits(
            kept_0, kept_1, kept_2, h_ptr, weight_ptr, bias_ptr, rows, is_row, value * NUM_LEVELS + level, is_level,
            INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION,
        )  # fmt: skip
        largest, exponentials = _add_levels(largest, exponentials, logits)
    log_total = tl.log2(exponentials)
    x = tl.load(x_ptr + (rows % num_data) * NUM_VALUES + value, mask=is_row, other=0).to(tl.float32)
    known = (x >= 0.0) & (x < NUM_LEVELS) & (x == tl.floor(x))
    grad = tl.where(known, tl.load(grad_ptr + rows, mask=is_row, other=0.0).to(tl.float32), 0.0)
    out_ptr = grad_logits_ptr + (rows[:, None] * NUM_VALUES + value) * NUM_LEVELS
    for start in range(0, NUM_LEVELS, BLOCK_COLS):
        level = start + tl.arange(0, BLOCK_COLS)
        is_level = level < NUM_LEVELS
        if NUM_LEVELS > BLOCK_COLS:  # else they are still there
            logits = _logits(
                kept_0, kept_1, kept_2, h_ptr, weight_ptr, bias_ptr, rows, is_row, value * NUM_LEVELS + level, is_level,
                INNER, BLOCK_ROWS, BLOCK_COLS, BLOCK_INNER, PIECE_0, PIECE_1, PIECE_2, PRECISION,
            )  # fmt: skip
        p = tl.exp2((logits - largest[:, None]) - log_total[:, None])
        onehot = tl.where(x[:, None] == level.to(tl.float32)[None, :], 1.0, 0.0)
        tl.store(out_ptr + level[None, :], grad[:, None] * (onehot - p), mask=is_row[:, None] & is_level[None, :])


def choose_grad(arch: int, precision: str, size: int, num_rows: int, inner: int, num_levels: int) -> Config:
    """The configuration of the gradient: up to 256 levels are one tile, whose logits are computed once."""
    if num_levels <= 256:
        cols = max(16, triton.next_power_of_2(num_levels))
        most = 32768 if (arch, size) == (100, 4) else 16384
        rows = max(16, min(128 if most > 16384 else 64, most // cols, triton.next_power_of_2(num_rows)))
        # with two stages sm_80 spills
        return Config(rows, cols, 16 if inner <= 16 else 32, num_warps=8 if rows * cols >= 8192 else 4, num_stages=3)
    # more take several tiles, twice: as in a forward pass, but that sm_80 spills where it keeps the rows
    c = choose_forward("categorical", arch, precision, size, num_rows, inner, 1, num_levels)
    return replace(c, block_cols=64, pieces=(0, 0, 0), num_stages=3) if arch not in (90, 100) else c


def linear_categorical_forward(
    x: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``x`` (X, A, B), ``h`` (R, H), ``weight`` (A * L * B, H) -> (R,) float32: row r meets ``x[r % X]``."""
    (num_rows, inner), num_values = h.shape, x.shape[1] * x.shape[2]
    if num_rows == 0 or num_values == 0:
        return torch.zeros(num_rows, device=h.device, dtype=torch.float32)
    num_levels = weight.shape[0] // num_values
    c = forward_config("categorical", h, x.shape[0], num_levels)
    tiles = num_tiles(num_rows, x.shape[0], c.block_rows, c.one_datum)
    # enough programs for any card, and a number that depends on the problem alone: sums are the same on every card
    shares = max(1, min(num_values, 512 // triton.cdiv(num_rows, 64)))
    partial = torch.empty(shares, num_rows, device=h.device, dtype=torch.float32)
    _forward_kernel[(tiles, shares)](
        x_ptr=loadable(x),
        h_ptr=h,
        weight_ptr=weight,
        bias_ptr=bias,
        partial_ptr=partial,
        num_rows=num_rows,
        num_data=x.shape[0],
        num_shares=shares,
        NUM_VALUES=num_values,
        NUM_PLACES=x.shape[2],
        NUM_LEVELS=num_levels,
        ONE_DATUM=c.one_datum,
        **meta_of(c, inner, h.dtype),
    )
    return partial.sum(0)


def linear_categorical_grad_logits(
    x: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, grad: torch.Tensor
) -> torch.Tensor:
    """``x`` (X, V), ``h`` (R, H), ``weight`` (V * L, H), ``grad`` (R,) -> the gradient of the logits (R, V * L) in the
    dtype of ``h``; R is one chunk."""
    (num_rows, inner), num_values = h.shape, x.shape[1]
    grad_logits = torch.empty(num_rows, weight.shape[0], device=h.device, dtype=h.dtype)
    if grad_logits.numel() == 0:
        return grad_logits
    num_levels = weight.shape[0] // num_values
    arch, precision = arch_of(h) or 90, precision_of(h.dtype)
    c = choose_grad(arch, precision, h.element_size(), num_rows, inner, num_levels)
    _grad_logits_kernel[(triton.cdiv(num_rows, c.block_rows) * num_values,)](
        x_ptr=loadable(x),
        h_ptr=h,
        weight_ptr=weight,
        bias_ptr=bias,
        grad_ptr=grad,
        grad_logits_ptr=grad_logits,
        num_rows=num_rows,
        num_data=x.shape[0],
        NUM_VALUES=num_values,
        NUM_LEVELS=num_levels,
        **meta_of(c, inner, h.dtype),
    )
    return grad_logits
