"""Sampling a masked MLP: a program owns a tile of rows and solves the network step by step, each weight used once.

The network is data: a table of operators that the kernel reads at run time, so one compiled kernel serves all networks.
As in a triangular system, a matrix product brings in what lies before a block of steps, and inside the block every
unit is made in the step in which it becomes final.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .likelihood_terms import softplus
from .masked_conv2d_launch import precision_of
from .masked_mlp_draws import addressed, values_of

__all__ = ["ACTIVATIONS", "FIELDS", "KINDS", "Config", "Program", "config", "solve"]

# numbers by which the table names operators; an activation may follow any operator in the same step
KINDS = {"activation": 0, "linear": 1, "add": 2, "multiply": 3, "shift": 4, "scale": 5, "select": 6}
_NAMES = ("relu", "elu", "gelu", "gelu_tanh", "leaky_relu", "sigmoid", "silu", "softplus", "tanh")
ACTIVATIONS = {name: code for code, name in enumerate(_NAMES, start=1)}
FIELDS = 12  # of an operator in the table, see Program


@dataclass(frozen=True)
class Config:
    """Launch configuration: rows of a tile; units and known units of a step; units and known units of a product."""

    block_rows: int
    block_units: int
    block_window: int
    block_out: int
    block_inner: int
    num_warps: int


@dataclass(frozen=True)
class Program:
    """A network as the kernel reads it. All its values are rows of one matrix, node by node.

    Attributes:
        table: (operators, FIELDS) int64: kind; node; source node; first row of the source; first row of the result,
            -1 to keep none; first row of the second operand, or the first number of the weight, term or index; columns
            of the weight; first row of a term of a linear node, -1 for none; whether that term or operand has a column
            for each row of the batch; activation; first row of what the activation gives; 0.
        numbers: (operators,) float32, what the activations take.
        counts: (nodes, steps + 2) int32, units of a node with a level below t.
        blocks: (blocks, 2) int32, first step and end.
        last_row: the first row of the last node.
        num_units: rows of the matrix.
        most_units: the most units that a node gets in one step.
    """

    table: torch.Tensor
    numbers: torch.Tensor
    counts: torch.Tensor
    blocks: torch.Tensor
    last_row: int
    num_units: int
    most_units: int


def config(num_rows: int, most_units: int) -> Config:
    """The configuration for a batch; no timing at run time."""
    rows = 16 if num_rows <= 2048 else 32 if num_rows <= 8192 else 64  # a card has about 132 processors
    units = 8 if rows == 16 and most_units > 4 else 4
    return Config(rows, units, 64 if rows == 16 else 32, 32, 32, num_warps=8 if rows == 64 else 4)


@triton.jit
def _activate(h, code, number):
    if code == 1:
        y = tl.where(h < 0.0, 0.0, h)
    elif code == 2:
        y = tl.where(h > 0.0, h, number * (tl.exp(tl.minimum(h, 0.0)) - 1.0))
    elif code == 3:
        y = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
    elif code == 4:
        y = h * tl.sigmoid(1.5957691216057308 * (h + 0.044715 * h * h * h))  # 1 + tanh(a) = 2 sigmoid(2 a)
    elif code == 5:
        y = tl.where(h < 0.0, number * h, h)
    elif code == 6:
        y = tl.sigmoid(h)
    elif code == 7:
        y = h * tl.sigmoid(h)
    elif code == 8:
        y = tl.where(h * number > 20.0, h, softplus(h * number) / number)
    else:
        y = 2.0 * tl.sigmoid(2.0 * h) - 1.0
    return y


@triton.jit
def _term(biases_ptr, conditions_ptr, first, is_condition, units, is_unit, cols, is_col, batch):
    """(units, rows) of a term, which has one column for all rows of the batch or one for each."""
    has_own = (units * 0 + is_condition) != 0  # masks are blocks, also where all of a block is alike
    shared = tl.load(biases_ptr + first + units, mask=is_unit & (has_own == 0), other=0.0)
    live = (is_unit & has_own)[:, None] & is_col[None, :]
    own = tl.load(conditions_ptr + (first + units)[:, None] * batch + cols[None, :], mask=live, other=0.0)
    return shared[:, None] + own


@triton.jit
def _products(
    # pointers
    values_ptr,
    weights_ptr,
    biases_ptr,
    conditions_ptr,
    op_ptr,
    counts_ptr,
    # sizes
    first,
    end,
    length,
    batch,
    cols,
    is_col,
    # meta
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block's units of a linear node: the term, and what comes from before the block."""
    node, source = tl.load(op_ptr + 1), tl.load(op_ptr + 2)
    source_row, result_row = tl.load(op_ptr + 3), tl.load(op_ptr + 4)
    weight, columns = tl.load(op_ptr + 5), tl.load(op_ptr + 6)
    term, is_condition = tl.load(op_ptr + 7), tl.load(op_ptr + 8)
    start, stop = tl.load(counts_ptr + node * length + first), tl.load(counts_ptr + node * length + end)
    known = tl.load(counts_ptr + source * length + first)
    for unit in range(start, stop, BLOCK_OUT):
        units = (unit + tl.arange(0, BLOCK_OUT)).to(tl.int64)
        is_unit = units < stop
        has_term = is_unit & ((units * 0 + term) >= 0)
        acc = _term(biases_ptr, conditions_ptr, term, is_condition, units, has_term, cols, is_col, batch)
        for inner in range(0, known, BLOCK_INNER):
            k = (inner + tl.arange(0, BLOCK_INNER)).to(tl.int64)
            w_live = is_unit[:, None] & (k < known)[None, :]
            w = tl.load(weights_ptr + weight + units[:, None] * columns + k[None, :], mask=w_live, other=0.0)
            v_live = (k < known)[:, None] & is_col[None, :]
            v = tl.load(values_ptr + (source_row + k)[:, None] * batch + cols[None, :], mask=v_live, other=0.0)
            acc = tl.dot(w, v, acc, input_precision=PRECISION)
        result = values_ptr + (result_row + units)[:, None] * batch + cols[None, :]
        tl.store(result, acc, mask=is_unit[:, None] & is_col[None, :])


@triton.jit
def _make_units(
    # pointers
    values_ptr,
    weights_ptr,
    biases_ptr,
    conditions_ptr,
    indices_ptr,
    op_ptr,
    counts_ptr,
    # sizes
    number,
    start,
    stop,
    first,
    step,
    length,
    batch,
    cols,
    is_col,
    # meta
    BLOCK_UNITS: tl.constexpr,
    BLOCK_WINDOW: tl.constexpr,
):
    """The units of a node that become final in this step."""
    kind, source, source_row = tl.load(op_ptr), tl.load(op_ptr + 2), tl.load(op_ptr + 3)
    result_row, other, is_condition = tl.load(op_ptr + 4), tl.load(op_ptr + 5), tl.load(op_ptr + 8)
    activation, active_row = tl.load(op_ptr + 9), tl.load(op_ptr + 10)
    for unit in range(start, stop, BLOCK_UNITS):
        units = (unit + tl.arange(0, BLOCK_UNITS)).to(tl.int64)
        is_unit = units < stop
        live = is_unit[:, None] & is_col[None, :]
        places = units[:, None] * batch + cols[None, :]
        if kind == 1:  # linear, the part inside the block
            columns = tl.load(op_ptr + 6)
            known = tl.load(counts_ptr + source * length + step + 1)
            h = tl.load(values_ptr + result_row * batch + places, mask=live, other=0.0)
            for inner in range(tl.load(counts_ptr + source * length + first), known, BLOCK_WINDOW):
                k = (inner + tl.arange(0, BLOCK_WINDOW)).to(tl.int64)
                w_live = is_unit[:, None] & (k < known)[None, :]
                w = tl.load(weights_ptr + other + units[:, None] * columns + k[None, :], mask=w_live, other=0.0)
                v_live = (k < known)[:, None] & is_col[None, :]
                v = tl.load(values_ptr + (source_row + k)[:, None] * batch + cols[None, :], mask=v_live, other=0.0)
                h += tl.sum(w[:, :, None] * v[None, :, :], axis=1)
        else:
            taken = units
            if kind == 6:
                taken = tl.load(indices_ptr + other + units, mask=is_unit, other=0)
            h = tl.load(values_ptr + (source_row + taken)[:, None] * batch + cols[None, :], mask=live, other=0.0)
            if (kind == 2) | (kind == 3):
                second = tl.load(values_ptr + other * batch + places, mask=live, other=0.0)
                h = tl.where(kind == 2, h + second, h * second)
            elif (kind == 4) | (kind == 5):
                term = _term(biases_ptr, conditions_ptr, other, is_condition, units, is_unit, cols, is_col, batch)
                h = tl.where(kind == 4, h + term, h * term)
        is_kept = live & ((units * 0 + result_row) >= 0)[:, None]
        tl.store(values_ptr + result_row * batch + places, h, mask=is_kept)
        if activation != 0:
            tl.store(values_ptr + active_row * batch + places, _activate(h, activation, number), mask=live)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "first_id"])
def _solve_kernel(
    # pointers
    values_ptr,  # (units, batch)
    noise_ptr,  # (D, batch); None for addressed numbers
    weights_ptr,
    biases_ptr,
    conditions_ptr,
    indices_ptr,
    table_ptr,
    numbers_ptr,
    counts_ptr,
    blocks_ptr,
    order_ptr,
    # sizes
    batch,
    num_ops,
    num_blocks,
    length,
    last_node,
    last_row,
    num_params,
    seed_low,
    seed_high,
    first_id,
    # meta
    DRAW: tl.constexpr,
    NOISE: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_WINDOW: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    cols = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_col = cols < batch
    for block in range(0, num_blocks):
        first, end = tl.load(blocks_ptr + 2 * block), tl.load(blocks_ptr + 2 * block + 1)
        for op in range(0, num_ops):
            op_ptr = table_ptr + op * FIELDS
            if tl.load(op_ptr) == 1:
                _products(
                    values_ptr, weights_ptr, biases_ptr, conditions_ptr, op_ptr, counts_ptr,
                    first, end, length, batch, cols, is_col, BLOCK_ROWS, BLOCK_OUT, BLOCK_INNER, PRECISION,
                )  # fmt: skip
        tl.debug_barrier()  # what one thread stored, another one loads
        for step in range(first, end):
            for op in range(0, num_ops):
                op_ptr = table_ptr + op * FIELDS
                place = counts_ptr + tl.load(op_ptr + 1) * length + step
                start, stop = tl.load(place), tl.load(place + 1)
                if start < stop:
                    _make_units(
                        values_ptr, weights_ptr, biases_ptr, conditions_ptr, indices_ptr, op_ptr, counts_ptr,
                        tl.load(numbers_ptr + op), start, stop, first, step, length, batch, cols, is_col,
                        BLOCK_UNITS, BLOCK_WINDOW,
                    )  # fmt: skip
                    tl.debug_barrier()
            # what this step makes has the next level
            made, made_end = tl.load(counts_ptr + step + 1), tl.load(counts_ptr + step + 2)
            params = last_row + tl.load(counts_ptr + last_node * length + step)
            for dim in range(made, made_end, BLOCK_UNITS):
                dims = (dim + tl.arange(0, BLOCK_UNITS)).to(tl.int64)
                live = (dims < made_end)[:, None] & is_col[None, :]
                places = dims[:, None] * batch + cols[None, :]
                if NOISE == "given":
                    noise = tl.load(noise_ptr + places, mask=live, other=0.0)
                else:
                    noise = addressed(order_ptr, dims, dims < made_end, first_id + cols, seed_low, seed_high, NOISE)
                params_ptr = values_ptr + (params + dims - made)[:, None] * batch + cols[None, :]
                stride = (made_end - made).to(tl.int64) * batch
                tl.store(values_ptr + places, values_of(params_ptr, stride, noise, live, num_params, DRAW), mask=live)
            tl.debug_barrier()


def solve(
    program: Program,
    noise: torch.Tensor | None,
    weights: torch.Tensor,
    biases: torch.Tensor,
    conditions: torch.Tensor,
    indices: torch.Tensor,
    num_rows: int,
    num_params: int,
    draw: str,
    *,
    order: torch.Tensor | None = None,
    seed: int = 0,
    first_id: int = 0,
) -> torch.Tensor:
    """Values of all units, (units, B) float32.

    Args:
        program: the network.
        noise: (D, B) in the order of the plan; None for numbers addressed by (seed, first_id + b, dimension).
        weights, biases: all of them, one after the other, float32.
        conditions: (rows of all conditions, B) float32.
        indices: of all ``select`` nodes, int64.
        num_rows: B.
        num_params: P.
        draw: "affine", "affine_inverse", "bernoulli" or "categorical".
        order: (D,) the dimensions in the order of the plan; where noise is None.
        seed, first_id: the address of the numbers.
    """
    values = torch.empty(program.num_units, num_rows, device=weights.device)
    if num_rows == 0:
        return values
    c = config(num_rows, program.most_units)
    kind = "given" if noise is not None else "normal" if draw.startswith("affine") else "uniform"
    _solve_kernel[(triton.cdiv(num_rows, c.block_rows),)](
        values_ptr=values,
        noise_ptr=noise,
        weights_ptr=weights,
        biases_ptr=biases,
        conditions_ptr=conditions,
        indices_ptr=indices,
        table_ptr=program.table,
        numbers_ptr=program.numbers,
        counts_ptr=program.counts,
        blocks_ptr=program.blocks,
        order_ptr=order,
        batch=num_rows,
        num_ops=len(program.table),
        num_blocks=len(program.blocks),
        length=program.counts.shape[1],
        last_node=len(program.counts) - 1,
        last_row=program.last_row,
        num_params=num_params,
        seed_low=_signed(seed & 0xFFFFFFFF),
        seed_high=_signed(seed >> 32),
        first_id=first_id,
        DRAW=draw,
        NOISE=kind,
        FIELDS=FIELDS,
        BLOCK_ROWS=c.block_rows,
        BLOCK_UNITS=c.block_units,
        BLOCK_WINDOW=c.block_window,
        BLOCK_OUT=c.block_out,
        BLOCK_INNER=c.block_inner,
        PRECISION=precision_of(torch.float32),
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return values


def _signed(word: int) -> int:
    """The 32-bit integer with the bits of ``word``: one type of argument for all seeds."""
    return word - (1 << 32) if word >= 1 << 31 else word
