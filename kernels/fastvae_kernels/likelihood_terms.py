"""What the kernels of likelihoods share: logarithms that keep their digits, sums of exponentials, loadable data."""

import torch
import triton
import triton.language as tl

__all__ = [
    "LOG_2_E",
    "add_to_logsumexp",
    "columns_of",
    "exp",
    "fills_tiles",
    "join_log1p",
    "loadable",
    "log1mexp",
    "log1p_above",
    "log1p_below",
    "log1p_joined",
    "num_tiles",
    "rows_of",
    "sigmoid",
    "signs_of",
    "softplus",
]

LOG_2_E = tl.constexpr(1.4426950408889634)


# log(1 + y) as y + y^2 q(y), q the polynomial with the least relative error: within one unit in the last place, down to
# the smallest y. With a logarithm and the division that corrects it, it took five times the instructions of the rest of
# a Bernoulli likelihood, and these kernels were bound by them (benchmarks.static_report).


@triton.jit
def log1p_above(y):
    """log(1 + y) for 0 <= y <= 1."""
    q = 5.364832002669573e-3 * y - 3.006582520902157e-2
    q = q * y + 7.920458912849426e-2
    q = q * y - 1.3753807544708252e-1
    q = q * y + 1.915365755558014e-1
    q = q * y - 2.4857164919376373e-1
    q = q * y + 3.332132399082184e-1
    q = q * y - 4.9999648332595825e-1
    return y + y * y * q


@triton.jit
def log1p_below(y):
    """log(1 + y) for -exp(-1) <= y <= 0."""
    q = -5.725060105323792e-1 * y - 1.997874528169632e-1
    q = q * y - 2.8604018688201904e-1
    q = q * y + 1.782672256231308e-1
    q = q * y - 2.5206267833709717e-1
    q = q * y + 3.3324190974235535e-1
    q = q * y - 5.000013709068298e-1
    return y + y * y * q


@triton.jit
def exp(t):
    """exp(t) as one instruction behind a product: ``tl.exp`` takes three more for what is below 2^-126, here 0."""
    return tl.exp2(t * LOG_2_E)


@triton.jit
def sigmoid(t):
    return 1.0 / (1.0 + exp(-t))


@triton.jit
def softplus(t):
    return tl.maximum(t, 0.0) + log1p_above(exp(-tl.abs(t)))


@triton.jit
def join_log1p(a, b):
    """log(1 + join_log1p(a, b)) = log(1 + a) + log(1 + b): two instructions where a polynomial has ten, and no digit
    of a small number is lost as it were in the product of 1 + a and 1 + b. Up to 126 numbers of at most 1 fit."""
    return a * b + (a + b)


@triton.jit
def log1p_joined(y):
    """log(1 + y) for what ``join_log1p`` made, 0 <= y < 2^127."""
    return tl.where(y <= 1.0, log1p_above(y), tl.log(1.0 + y))


@triton.jit
def log1mexp(w, log_w):
    """log(1 - exp(-w)) for w >= 0 and its logarithm, which may be below what w itself can hold."""
    h = 0.5 * w
    q = h * h
    # log(sinh(h) / h) as a series: nothing cancels, and its error for w < 1 is 3e-10
    small = log_w - h + q * (1.0 / 6.0 - q * (1.0 / 180.0 - q * (1.0 / 2835.0 - q * (1.0 / 37800.0))))
    return tl.where(w < 1.0, small, log1p_below(-exp(-w)))


@triton.jit
def add_to_logsumexp(maximum, total, value):
    """The running pair (m, s) of log sum exp = m + log s, started at (-inf, 0), with one more value."""
    new = tl.maximum(maximum, value)
    shift = tl.where(new == float("-inf"), 0.0, new)  # only zeros so far: -inf - -inf would be nan
    return new, total * exp(maximum - shift) + exp(value - shift)


@triton.jit
def rows_of(num_rows, num_data, ONE_DATUM: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """The rows of this program's tile, in 64 bits, and the datapoint of each, or where it has but one of all.

    The data repeat: one block of them for every importance sample.
    """
    if ONE_DATUM:
        datum = (tl.program_id(0) % num_data).to(tl.int64)
        rows = ((tl.program_id(0) // num_data) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64) * num_data + datum
    else:
        rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        datum = rows % num_data
    return rows, rows < num_rows, datum


@triton.jit
def signs_of(x_ptr, datum, cols, is_col, NUM_COLS: tl.constexpr, ONE_DATUM: tl.constexpr):
    """1 - 2 x of binary data, of every row or of all: -log p(x) is the softplus of the logits times these."""
    if ONE_DATUM:
        x = tl.load(x_ptr + datum * NUM_COLS + cols, mask=is_col, other=0)[None, :]
    else:
        x = tl.load(x_ptr + datum[:, None] * NUM_COLS + cols[None, :], mask=is_col[None, :], other=0)
    return 1.0 - 2.0 * x.to(tl.float32)


def fills_tiles(num_rows: int, num_data: int, block_rows: int) -> bool:
    """Whether tiles with the samples of one datapoint each are nearly full."""
    samples = num_rows // num_data
    return num_data == 1 or triton.cdiv(samples, block_rows) * block_rows <= 1.25 * samples


def num_tiles(num_rows: int, num_data: int, block_rows: int, one_datum: bool) -> int:
    """How many tiles ``rows_of`` makes of the rows."""
    if one_datum:
        return num_data * triton.cdiv(num_rows // num_data, block_rows)
    return triton.cdiv(num_rows, block_rows)


def columns_of(num_cols: int, most: int) -> int:
    """The columns of a tile of rows of ``num_cols``: the power of two that pads them least, 64 to ``most``."""
    sizes = [size for size in (1024, 512, 256, 128, 64) if size <= most]
    return min(min(sizes, key=lambda size: triton.cdiv(num_cols, size) * size), triton.next_power_of_2(num_cols))


def loadable(x: torch.Tensor) -> torch.Tensor:
    """Data as a kernel can load them: booleans as bytes."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x
