"""What the kernels of a last linear layer with its likelihood share: the launch, and a tile of the layer's outputs."""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from .likelihood_terms import fills_tiles
from .masked_conv2d_launch import arch_of, precision_of

__all__ = [
    "FAMILIES",
    "Config",
    "choose_forward",
    "config",
    "forward_config",
    "keep_rows",
    "meta_of",
    "outputs_tile",
    "pieces_of",
]

# bytes of shared memory for a program, so that two are resident: the products of one run beside the sums of the other
_SHARED = {80: 82_944, 90: 115_712, 100: 115_712}
_LEAST_SHARED = 50_000  # of the other cards


@dataclass(frozen=True)
class Config:
    """Launch configuration: rows and outputs of a tile, and how much of H a step takes.

    Attributes:
        pieces: how H is cut where the rows stay in shared memory while all outputs pass by; zeros where they do not.
        one_datum: whether all rows of a tile are samples of one datapoint.
    """

    block_rows: int
    block_cols: int
    block_inner: int
    num_warps: int
    num_stages: int
    pieces: tuple[int, int, int] = (0, 0, 0)
    one_datum: bool = False


def config(num_rows: int, num_cols: int, inner: int) -> Config:
    """The configuration of one tile for rows (R, H) and weights (D, H); no timing at run time."""
    rows = max(16, min(128, triton.next_power_of_2(num_rows)))
    cols = max(16, min(64, triton.next_power_of_2(num_cols)))  # 128 spill on sm_100
    # steps of 32 pad H = 200 to 224; 64 would make it 256
    return Config(rows, cols, 16 if inner <= 16 else 32, num_warps=8 if rows * cols >= 8192 else 4, num_stages=3)


def forward_config(family: str, h: torch.Tensor, num_data: int, num_outputs: int) -> Config:
    """The configuration of a forward pass for ``h`` (R, H) of a family in ``FAMILIES``; no timing at run time."""
    (num_rows, inner), size = h.shape, h.element_size()
    return choose_forward(family, arch_of(h) or 90, precision_of(h.dtype), size, num_rows, inner, num_data, num_outputs)


FAMILIES = ("bernoulli", "gaussian", "gaussian, shared scales", "categorical")


def choose_forward(
    family: str, arch: int, precision: str, size: int, num_rows: int, inner: int, num_data: int, num_outputs: int
) -> Config:
    """``forward_config`` for an architecture, a precision and elements of ``size`` bytes.

    The tiles are those with the least predicted time of ``benchmarks.static_report`` that do not spill. Rows are kept
    where they fit beside two tiles of weights: otherwise each tile of outputs loads them again.
    """
    per_value = 2 if family == "gaussian" else 1
    rows, cols, warps = _tile_of(arch, precision, size)
    cols //= per_value
    warps = 8 if arch == 100 and family == "categorical" else warps  # 4 spill with Triton 3.6
    one_datum = fills_tiles(num_rows, num_data, rows)
    if not one_datum:
        if family == "bernoulli" and (arch, precision) == (80, "tf32"):
            return replace(config(num_rows, num_outputs, inner), block_cols=64)
        warps = 8 if (arch, size) == (100, 4) else warps  # with tiles of data, 4 spill
        rows = 64 if (arch, size, family) == (100, 4, "gaussian") else rows  # and so do 128 rows with Triton 3.6
        cols = cols // 2 if (arch, size) == (90, 2) and family.startswith("gaussian") else cols
    rows = max(16, min(rows, triton.next_power_of_2(num_rows)))
    cols = max(16, min(cols, triton.next_power_of_2(num_outputs)))
    step = 16 if inner <= 16 else 32
    if precision != "tf32x3":  # which keeps each factor in three parts
        pieces, buffers = pieces_of(inner), 2 if arch == 90 else 1
        most = _SHARED.get(arch, _LEAST_SHARED) * (2 if (arch, size) == (100, 4) else 1)
        if sum(pieces) * size * (rows + buffers * per_value * cols) <= most:
            return Config(rows, cols, step, warps, 2, pieces, one_datum)
    return Config(rows, cols, step, warps, 3, one_datum=one_datum)


def _tile_of(arch: int, precision: str, size: int) -> tuple[int, int, int]:
    """Rows and outputs of a tile, and warps."""
    if precision == "tf32x3":
        return 64, 64, 4
    if size == 4:  # on sm_100, where a product costs least, the weights have to serve more rows
        return (128, 32, 4) if arch == 100 else (64, 32, 4)
    return (128, 64, 4) if arch in (90, 100) else (64, 64, 4)


def pieces_of(inner: int) -> tuple[int, int, int]:
    """Powers of two, or 0, that cover H: 200 as 128 + 64 + 16, with 4 % of padding instead of 28."""
    pieces, rest = [], inner
    for _ in range(2):
        piece = 1 << max(4, rest.bit_length() - 1) if rest > 0 else 0
        pieces.append(piece)
        rest -= piece
    return pieces[0], pieces[1], max(16, triton.next_power_of_2(rest)) if rest > 0 else 0


@triton.jit
def _piece(ptr, rows, is_row, START: tl.constexpr, SIZE: tl.constexpr, INNER: tl.constexpr):
    """Columns START ... START + SIZE of a matrix with rows of INNER."""
    inner = START + tl.arange(0, SIZE)
    live = is_row[:, None] & (inner < INNER)[None, :]
    return tl.load(ptr + rows[:, None] * INNER + inner[None, :], mask=live, other=0.0)


@triton.jit
def keep_rows(
    h_ptr,
    rows,
    is_row,
    INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
):
    """The rows of ``h`` in pieces, for ``outputs_tile``; nothing where PIECE_0 is 0."""
    first = rows
    if PIECE_0 > 0:
        first = _piece(h_ptr, rows, is_row, 0, PIECE_0, INNER)
    second, third = first, first
    if PIECE_1 > 0:
        second = _piece(h_ptr, rows, is_row, PIECE_0, PIECE_1, INNER)
    if PIECE_2 > 0:
        third = _piece(h_ptr, rows, is_row, PIECE_0 + PIECE_1, PIECE_2, INNER)
    return first, second, third


@triton.jit
def outputs_tile(
    first,
    second,
    third,
    h_ptr,
    weight_ptr,
    rows,
    is_row,
    outs,
    is_out,
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    PIECE_2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The tile (rows, outs) of ``h @ weight.T`` in float32, from the pieces of ``keep_rows`` or from memory."""
    acc = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    outs = outs.to(tl.int64)
    if PIECE_0 > 0:
        w = _piece(weight_ptr, outs, is_out, 0, PIECE_0, INNER)
        acc = tl.dot(first, tl.trans(w), acc, input_precision=PRECISION)
        if PIECE_1 > 0:
            w = _piece(weight_ptr, outs, is_out, PIECE_0, PIECE_1, INNER)
            acc = tl.dot(second, tl.trans(w), acc, input_precision=PRECISION)
        if PIECE_2 > 0:
            w = _piece(weight_ptr, outs, is_out, PIECE_0 + PIECE_1, PIECE_2, INNER)
            acc = tl.dot(third, tl.trans(w), acc, input_precision=PRECISION)
    else:
        for start in range(0, INNER, BLOCK_INNER):
            inner = start + tl.arange(0, BLOCK_INNER)
            h_live = is_row[:, None] & (inner < INNER)[None, :]
            h = tl.load(h_ptr + rows[:, None] * INNER + inner[None, :], mask=h_live, other=0.0)
            w_live = is_out[:, None] & (inner < INNER)[None, :]
            w = tl.load(weight_ptr + outs[:, None] * INNER + inner[None, :], mask=w_live, other=0.0)
            acc = tl.dot(h, tl.trans(w), acc, input_precision=PRECISION)
    return acc


def meta_of(c: Config, inner: int, dtype: torch.dtype) -> dict[str, object]:
    """The launch options of a configuration."""
    return {
        "INNER": inner,
        "BLOCK_ROWS": c.block_rows,
        "BLOCK_COLS": c.block_cols,
        "BLOCK_INNER": c.block_inner,
        "PIECE_0": c.pieces[0],
        "PIECE_1": c.pieces[1],
        "PIECE_2": c.pieces[2],
        "PRECISION": precision_of(dtype),
        "num_warps": c.num_warps,
        "num_stages": c.num_stages,
        "enable_fp_fusion": True,
    }
