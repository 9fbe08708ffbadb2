"""Log-likelihood of integer levels given their logits, and its gradient: the logits are read once from memory."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .likelihood_terms import exp, loadable

__all__ = ["Config", "categorical_log_prob_backward", "categorical_log_prob_forward", "config"]


@dataclass(frozen=True)
class Config:
    """Launch configuration of both kernels: values and levels of a tile."""

    block_values: int
    block_levels: int
    num_warps: int


def config(num_values: int, num_levels: int, sites: int, size: int, *, is_backward: bool) -> Config:
    """The configuration for rows of values, ``sites`` of which are neighbours in memory, and logits of ``size`` bytes;
    no timing at run time."""
    most_values, most_levels = triton.next_power_of_2(num_values), triton.next_power_of_2(num_levels)
    if sites == 1:  # the levels are neighbours
        levels = min(256, most_levels)
        return Config(block_values=min(4096 // levels, most_values), block_levels=levels, num_warps=4)
    if is_backward:  # few values at a time: their logits stay in the first cache for the second walk
        return Config(block_values=min(64, most_values), block_levels=min(32, most_levels), num_warps=4)
    # a thread has all levels of some values, as many as it loads at once, and needs no other one for their sum
    return Config(block_values=min(512 // size, most_values), block_levels=min(2 * size, most_levels), num_warps=1)


@triton.jit
def _offsets(
    row, values, levels, NUM_VALUES: tl.constexpr, NUM_LEVELS: tl.constexpr, SITES: tl.constexpr
):  # a value is (channel, site) and its logits lie at (channel, level, site); what is beyond them is not live
    first = (row * NUM_VALUES + (values // SITES) * SITES) * NUM_LEVELS + values % SITES
    live = (values < NUM_VALUES)[:, None] & (levels < NUM_LEVELS)[None, :]
    return first[:, None] + levels[None, :] * SITES, live


@triton.jit
def _normalize(
    logits_ptr,
    row,
    values,
    NUM_VALUES: tl.constexpr,
    NUM_LEVELS: tl.constexpr,
    SITES: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
    BLOCK_LEVELS: tl.constexpr,
):
    """(m, s) of each value: log sum exp = m + log s."""
    maximum = tl.full([BLOCK_VALUES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_VALUES], tl.float32)
    for start in range(0, NUM_LEVELS, BLOCK_LEVELS):
        levels = start + tl.arange(0, BLOCK_LEVELS)
        index, live = _offsets(row, values, levels, NUM_VALUES, NUM_LEVELS, SITES)
        logits = tl.load(logits_ptr + index, mask=live, other=float("-inf")).to(tl.float32)
        new = tl.maximum(maximum, tl.max(logits, axis=1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # only zeros so far: -inf - -inf would be nan
        total = total * exp(maximum - shift) + tl.sum(exp(logits - shift[:, None]), axis=1)
        maximum = new
    return maximum, total


@triton.jit
def _forward_kernel(
    # pointers
    x_ptr,
    logits_ptr,
    partial_ptr,
    # sizes
    num_data,
    # meta
    NUM_VALUES: tl.constexpr,
    NUM_LEVELS: tl.constexpr,
    SITES: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
    BLOCK_LEVELS: tl.constexpr,
):
    num_blocks: tl.constexpr = (NUM_VALUES + BLOCK_VALUES - 1) // BLOCK_VALUES
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    values = (tl.program_id(0) % num_blocks) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)
    data = (row % num_data) * NUM_VALUES + values  # the data repeat: one block of them for every importance sample
    x = tl.load(x_ptr + data, mask=values < NUM_VALUES, other=0).to(tl.float32)
    maximum, total = _normalize(logits_ptr, row, values, NUM_VALUES, NUM_LEVELS, SITES, BLOCK_VALUES, BLOCK_LEVELS)
    # the logit of the value's level, -inf where it is no level
    is_level = (x >= 0.0) & (x < NUM_LEVELS) & (x == tl.floor(x))
    first = (row * NUM_VALUES + (values // SITES) * SITES) * NUM_LEVELS + values % SITES
    chosen_ptr = logits_ptr + first + tl.where(is_level, x, 0.0).to(tl.int32) * SITES
    chosen = tl.load(chosen_ptr, mask=is_level & (values < NUM_VALUES), other=float("-inf")).to(tl.float32)
    # in this order: the difference is exact where logits are large
    terms = tl.where(values < NUM_VALUES, (chosen - maximum) - tl.log(total), 0.0)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(terms, axis=0))


@triton.jit
def _backward_kernel(
    # pointers
    x_ptr,
    logits_ptr,
    grad_ptr,
    grad_logits_ptr,
    # sizes
    num_data,
    # meta
    NUM_VALUES: tl.constexpr,
    NUM_LEVELS: tl.constexpr,
    SITES: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
    BLOCK_LEVELS: tl.constexpr,
):
    num_blocks: tl.constexpr = (NUM_VALUES + BLOCK_VALUES - 1) // BLOCK_VALUES
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    values = (tl.program_id(0) % num_blocks) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)
    data = (row % num_data) * NUM_VALUES + values
    x = tl.load(x_ptr + data, mask=values < NUM_VALUES, other=0).to(tl.float32)
    maximum, total = _normalize(logits_ptr, row, values, NUM_VALUES, NUM_LEVELS, SITES, BLOCK_VALUES, BLOCK_LEVELS)
    log_total = tl.log(total)
    is_level = (x >= 0.0) & (x < NUM_LEVELS) & (x == tl.floor(x))
    grad = tl.where(is_level, tl.load(grad_ptr + row).to(tl.float32), 0.0)
    for start in range(0, NUM_LEVELS, BLOCK_LEVELS):  # read again, from the cache
        levels = start + tl.arange(0, BLOCK_LEVELS)
        index, live = _offsets(row, values, levels, NUM_VALUES, NUM_LEVELS, SITES)
        logits = tl.load(logits_ptr + index, mask=live, other=float("-inf")).to(tl.float32)
        p = exp((logits - maximum[:, None]) - log_total[:, None])
        onehot = tl.where(levels.to(tl.float32)[None, :] == x[:, None], 1.0, 0.0)
        tl.store(grad_logits_ptr + index, grad[:, None] * (onehot - p), mask=live)


def categorical_log_prob_forward(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``x`` (X, A, B) and ``logits`` (R, A, L, B), contiguous, R a multiple of X; row r meets ``x[r % X]``.

    Returns:
        (R,) float32.
    """
    num_rows, channels, num_levels, sites = logits.shape
    if logits.numel() == 0:
        return torch.zeros(num_rows, device=logits.device, dtype=torch.float32)
    num_values = channels * sites
    c = config(num_values, num_levels, sites, logits.element_size(), is_backward=False)
    blocks = triton.cdiv(num_values, c.block_values)
    partial = torch.empty(num_rows, blocks, device=logits.device, dtype=torch.float32)
    _forward_kernel[(num_rows * blocks,)](
        x_ptr=loadable(x),
        logits_ptr=logits,
        partial_ptr=partial,
        num_data=x.shape[0],
        NUM_VALUES=num_values,
        NUM_LEVELS=num_levels,
        SITES=sites,
        BLOCK_VALUES=c.block_values,
        BLOCK_LEVELS=c.block_levels,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return partial.sum(1)  # in a fixed order, no atomics


def categorical_log_prob_backward(x: torch.Tensor, logits: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """As forward, with ``grad`` (R,) -> the gradient of the logits in their shape and dtype."""
    num_rows, channels, num_levels, sites = logits.shape
    grad_logits = torch.empty_like(logits)
    if logits.numel() == 0:
        return grad_logits
    num_values = channels * sites
    c = config(num_values, num_levels, sites, logits.element_size(), is_backward=True)
    _backward_kernel[(num_rows * triton.cdiv(num_values, c.block_values),)](
        x_ptr=loadable(x),
        logits_ptr=logits,
        grad_ptr=grad,
        grad_logits_ptr=grad_logits,
        num_data=x.shape[0],
        NUM_VALUES=num_values,
        NUM_LEVELS=num_levels,
        SITES=sites,
        BLOCK_VALUES=c.block_values,
        BLOCK_LEVELS=c.block_levels,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return grad_logits
