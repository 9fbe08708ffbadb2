"""NADE: a program keeps the running pre-activation of some rows in registers and walks over the dimensions."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["BackwardConfig", "Config", "backward_config", "config", "nade_backward", "nade_forward", "nade_sample"]

_MOST_SHARES = 8  # of the rows, each with a gradient of its own in memory before they are added up


@dataclass(frozen=True)
class Config:
    """Launch of the forward and the sampling kernel: all hidden units of a few rows in registers."""

    block_rows: int
    block_hidden: int
    num_warps: int


@dataclass(frozen=True)
class BackwardConfig:
    """Launch of the backward kernel: a program owns some hidden units and walks over a share of the rows."""

    block_rows: int
    block_hidden: int
    num_shares: int
    num_warps: int


def config(num_rows: int, num_hidden: int) -> Config:
    """The configuration for a batch; no timing at run time."""
    block_hidden = max(32, triton.next_power_of_2(num_hidden))
    # few rows: more programs; many: at most 32 units in each thread's registers
    rows = min(16, max(1, 4096 // block_hidden), max(1, triton.next_power_of_2(num_rows) // 128))
    return Config(rows, block_hidden, num_warps=8 if rows * block_hidden > 4096 else 4)


def backward_config(num_rows: int, num_hidden: int) -> BackwardConfig:
    """The configuration for a batch; no timing at run time."""
    block_rows = min(32, triton.next_power_of_2(max(num_rows, 1)))
    block_hidden = min(32, triton.next_power_of_2(num_hidden))
    shares = min(_MOST_SHARES, triton.cdiv(max(num_rows, 1), block_rows))
    return BackwardConfig(block_rows, block_hidden, shares, num_warps=4)


@triton.jit
def _scan_kernel(
    # pointers
    x_ptr,
    weight_ptr,
    hidden_bias_ptr,
    output_weight_ptr,
    output_bias_ptr,
    result_ptr,
    # sizes
    num_rows,
    num_features,
    # meta
    SAMPLES: tl.constexpr,
    NUM_HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    units = tl.arange(0, BLOCK_HIDDEN)
    is_row, is_unit = rows < num_rows, units < NUM_HIDDEN
    bias = tl.load(hidden_bias_ptr + units, mask=is_unit, other=0.0).to(tl.float32)
    running = tl.zeros([BLOCK_ROWS, BLOCK_HIDDEN], tl.float32) + bias[None, :]
    places = units.to(tl.int64)  # in the weights: the row of a dimension
    for i in range(0, num_features):
        output_row = tl.load(output_weight_ptr + places, mask=is_unit, other=0.0).to(tl.float32)
        weight_row = tl.load(weight_ptr + places, mask=is_unit, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + rows * num_features + i, mask=is_row, other=0.0).to(tl.float32)
        # units beyond the last have no output weight
        logit = tl.sum(tl.sigmoid(running) * output_row[None, :], axis=1) + tl.load(output_bias_ptr + i).to(tl.float32)
        if SAMPLES:  # x is uniform noise
            x = (x < tl.sigmoid(logit)).to(tl.float32)
            tl.store(result_ptr + rows * num_features + i, x, mask=is_row)
        else:
            tl.store(result_ptr + rows * num_features + i, logit, mask=is_row)
        running += x[:, None] * weight_row[None, :]
        places += NUM_HIDDEN


@triton.jit
def _backward_kernel(
    # pointers
    x_ptr,
    weight_ptr,
    output_weight_ptr,
    running_ptr,
    grad_ptr,
    grad_weight_ptr,
    grad_hidden_bias_ptr,
    grad_output_weight_ptr,
    # sizes
    num_rows,
    num_features,
    # meta
    NUM_HIDDEN: tl.constexpr,
    NUM_SHARES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    units = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    share = tl.program_id(1).to(tl.int64)
    is_unit = units < NUM_HIDDEN
    own = share * num_features * NUM_HIDDEN  # this program's part of the gradients
    grad_bias = tl.zeros([BLOCK_HIDDEN], tl.float32)
    for first in range(tl.program_id(1) * BLOCK_ROWS, num_rows, NUM_SHARES * BLOCK_ROWS):
        rows = tl.arange(0, BLOCK_ROWS).to(tl.int64) + first
        is_row = rows < num_rows
        both = is_row[:, None] & is_unit[None, :]
        # after the last dimension; taken back one dimension at a time
        running = tl.load(running_ptr + rows[:, None] * NUM_HIDDEN + units[None, :], mask=both, other=0.0)
        later = tl.zeros([BLOCK_ROWS, BLOCK_HIDDEN], tl.float32)  # the gradient of running, from later dimensions
        has_sums = is_unit & (units * 0 + first >= NUM_SHARES * BLOCK_ROWS)  # earlier tiles of rows have left theirs
        places = (units.to(tl.int64) * 0 + num_features) * NUM_HIDDEN + units
        for step in range(0, num_features):
            i = num_features - 1 - step
            places -= NUM_HIDDEN
            weight_row = tl.load(weight_ptr + places, mask=is_unit, other=0.0).to(tl.float32)
            output_row = tl.load(output_weight_ptr + places, mask=is_unit, other=0.0).to(tl.float32)
            x = tl.load(x_ptr + rows * num_features + i, mask=is_row, other=0.0).to(tl.float32)
            grad = tl.load(grad_ptr + rows * num_features + i, mask=is_row, other=0.0).to(tl.float32)
            old_weight = tl.load(grad_weight_ptr + own + places, mask=has_sums, other=0.0)
            old_output = tl.load(grad_output_weight_ptr + own + places, mask=has_sums, other=0.0)
            running -= x[:, None] * weight_row[None, :]
            hidden = tl.sigmoid(running)
            grad_weight = old_weight + tl.sum(x[:, None] * later, axis=0)
            grad_output = old_output + tl.sum(grad[:, None] * hidden, axis=0)
            tl.store(grad_weight_ptr + own + places, grad_weight, mask=is_unit)
            tl.store(grad_output_weight_ptr + own + places, grad_output, mask=is_unit)
            later += grad[:, None] * output_row[None, :] * hidden * (1.0 - hidden)
        grad_bias += tl.sum(later, axis=0)
        tl.debug_barrier()  # what this tile stored, the next one loads, perhaps by another thread
    tl.store(grad_hidden_bias_ptr + share * NUM_HIDDEN + units, grad_bias, mask=is_unit)


def nade_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    output_weight: torch.Tensor,
    output_bias: torch.Tensor,
) -> torch.Tensor:
    """``x`` (B, D), weights (D, H), biases (H,) and (D,), all float32 -> logits (B, D)."""
    return _scan(x, weight, hidden_bias, output_weight, output_bias, samples=False)


def nade_sample(
    uniform: torch.Tensor,
    weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    output_weight: torch.Tensor,
    output_bias: torch.Tensor,
) -> torch.Tensor:
    """As :func:`nade_forward`, from uniform numbers to values (B, D)."""
    return _scan(uniform, weight, hidden_bias, output_weight, output_bias, samples=True)


def _scan(
    x: torch.Tensor,
    weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    output_weight: torch.Tensor,
    output_bias: torch.Tensor,
    samples: bool,
) -> torch.Tensor:
    num_rows, num_features = x.shape
    result = x.new_empty(num_rows, num_features)
    if num_rows == 0:
        return result
    c = config(num_rows, weight.shape[1])
    _scan_kernel[(triton.cdiv(num_rows, c.block_rows),)](
        x_ptr=x.contiguous(),
        weight_ptr=weight.contiguous(),
        hidden_bias_ptr=hidden_bias.contiguous(),
        output_weight_ptr=output_weight.contiguous(),
        output_bias_ptr=output_bias.contiguous(),
        result_ptr=result,
        num_rows=num_rows,
        num_features=num_features,
        SAMPLES=samples,
        NUM_HIDDEN=weight.shape[1],
        BLOCK_ROWS=c.block_rows,
        BLOCK_HIDDEN=c.block_hidden,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return result


def nade_backward(
    x: torch.Tensor,
    weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    output_weight: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`nade_forward`, with the gradient of the logits -> those of weight, hidden bias and output weight."""
    num_rows, num_features = x.shape
    num_hidden = weight.shape[1]
    if num_rows == 0:
        return torch.zeros_like(weight), torch.zeros_like(hidden_bias), torch.zeros_like(output_weight)
    c = backward_config(num_rows, num_hidden)
    running = torch.addmm(hidden_bias, x, weight)  # (B, H)
    grad_weight = x.new_empty(c.num_shares, num_features, num_hidden)
    grad_output_weight = torch.empty_like(grad_weight)
    grad_hidden_bias = x.new_empty(c.num_shares, num_hidden)
    _backward_kernel[(triton.cdiv(num_hidden, c.block_hidden), c.num_shares)](
        x_ptr=x.contiguous(),
        weight_ptr=weight.contiguous(),
        output_weight_ptr=output_weight.contiguous(),
        running_ptr=running,
        grad_ptr=grad.contiguous(),
        grad_weight_ptr=grad_weight,
        grad_hidden_bias_ptr=grad_hidden_bias,
        grad_output_weight_ptr=grad_output_weight,
        num_rows=num_rows,
        num_features=num_features,
        NUM_HIDDEN=num_hidden,
        NUM_SHARES=c.num_shares,
        BLOCK_ROWS=c.block_rows,
        BLOCK_HIDDEN=c.block_hidden,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return grad_weight.sum(0), grad_hidden_bias.sum(0), grad_output_weight.sum(0)
