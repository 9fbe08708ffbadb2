"""What one program of each kernel has to compute, read and write: the model behind ``benchmarks.static_report``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from benchmarks.cross_compile import Compiled

__all__ = ["Work", "element_bytes", "products_of", "work_of"]

TAPS, FLAT_TAPS = 5, 24  # of the layers that are assumed: 3x3 of type B, 7x7 of type A
WIDTH = 32  # of the images that are assumed
LINE = 128  # bytes of a line of a cache
PIXELS = 4096  # that a program of a weight gradient sums over
SAMPLES = 4096  # that a program of importance weights walks over
VALUES = 8  # whose levels a program of a categorical last layer walks over


@dataclass(frozen=True)
class Work:
    """Of one program.

    Attributes:
        flops: in products; other arithmetic is counted from the machine code.
        bytes: that have to come from memory or go there once.
        cached_bytes: that it loads and stores, from the common cache where others load them too.
        in_flight: bytes that it can wait for at once.
        trips: how often the body of its loop runs; None where the instructions do not matter.
        inner_trips: of the loops inside that one, from the outside; code outside of all loops runs once.
        steps: how often the loop around its products runs, where the rest of its code runs once.
        near_bytes: of what it loads, those that pass the multiprocessor's own cache.
        repeated_bytes: of those, the ones loaded before by the same program.
        held_bytes: what the own cache has to hold of this program so that they are found there.
        padded: operations of the tensor cores, with those on what only fills a block; 0 where there are none of them.
        waits: whether the other instructions need what the products made, so that only another program's run beside.
    """

    flops: float
    bytes: float
    cached_bytes: float
    in_flight: float
    trips: float | None = None
    steps: float | None = None
    near_bytes: float = 0.0
    repeated_bytes: float = 0.0
    held_bytes: float = 0.0
    inner_trips: tuple[float, ...] = ()
    padded: float = 0
    waits: bool = False


def element_bytes(compiled: Compiled, pointer: str) -> int:
    """Bytes of what a pointer points to."""
    kind = compiled.signature[pointer].removeprefix("*")
    return {"u8": 1, "i8": 1, "bf16": 2, "fp16": 2, "fp32": 4, "i32": 4, "fp64": 8, "i64": 8}[kind]


def products_of(compiled: Compiled) -> str:
    """What tensor cores multiply, "fp32" without them."""
    precision = compiled.constexprs.get("PRECISION")
    if precision is None:
        return "fp32"
    return "bf16" if precision == "ieee" else precision


def work_of(compiled: Compiled) -> Work | None:
    """The work of a program; None for serial kernels, whose time is their number of steps.

    Raises:
        KeyError: for a kernel without a model.
    """
    function = compiled.kernel.fn
    model = _MODELS[function.__module__.rpartition(".")[2], function.__name__.strip("_")]
    return model(compiled, compiled.constexprs) if model else None


Model = Callable[[Compiled, Mapping[str, Any]], Work]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _taps(m: Mapping[str, Any]) -> tuple[int, int]:
    """Live taps of the layer that is assumed, and how many pixels further than one they reach in raster order."""
    if "KERNEL_SIZE" in m:
        return m["KERNEL_SIZE"] ** 2, (m["KERNEL_SIZE"] - 1) * (WIDTH + 1)
    return (FLAT_TAPS, 3 * (WIDTH + 2)) if m["C_IN"] < 16 else (TAPS, WIDTH + 2)  # first layers, and all others


def _near(c: Compiled) -> bool:
    """Whether pixels pass the multiprocessor's own cache: asynchronous copies of 16 bytes go by, all else does not."""
    return "cp.async.ca" in c.ptx or "cp.async" not in c.ptx


def _convolution(c: Compiled, m: Mapping[str, Any]) -> Work:
    """A tile of pixels and channels out.

    All taps of a block of channels follow each other and read nearly the same pixels. What passes the own cache comes
    from the common one once, if there is room for it.
    """
    size, rows, columns = element_bytes(c, "x_ptr"), m["BLOCK_M"], min(m["BLOCK_N"], m["C_OUT"])
    taps, reach = _taps(m)
    depth = taps * m["C_IN"]
    given = sum(m.get(name, True) is not None for name in ("condition_ptr", "residual_ptr", "saved_ptr"))
    results = rows * columns * size * (1 + (given if "ACTIVATION" in m else 0))
    once = rows * m["C_IN"] * size * columns / m["C_OUT"] + results  # others of its pixels share the input
    in_flight = max(1, c.num_stages - 1) * (m["BLOCK_M"] + m["BLOCK_N"]) * m["BLOCK_K"] * size
    loaded, distinct = depth * (rows + columns) * size, min(taps * rows, rows + reach)
    near = depth * rows * size if _near(c) else 0
    steps = _ceil(depth, m["BLOCK_K"]) if m["FLAT"] else taps * _ceil(m["C_IN"], m["BLOCK_K"])
    return Work(
        flops=2 * rows * columns * depth,
        bytes=once,
        cached_bytes=loaded + results,
        in_flight=in_flight,
        steps=steps,
        near_bytes=near,
        repeated_bytes=near * (1 - distinct / (taps * rows)),
        held_bytes=_lines(distinct, m["C_IN"], m["BLOCK_K"], size),
    )


def _lines(pixels: int, channels: int, block: int, size: int) -> int:
    """Bytes that a block of the channels of neighbouring pixels takes in a cache: whole lines, or all channels."""
    return pixels * min(channels * size, _ceil(block * size, LINE) * LINE)


def _weight_gradient(c: Compiled, m: Mapping[str, Any]) -> Work:
    """A tile of channels out and channels in, of one tap or of several, summed over pixels in raster order.

    Taps of one tile read nearly the same pixels, as in a convolution.
    """
    size, rows, columns = element_bytes(c, "x_ptr"), m["BLOCK_M"], m["BLOCK_N"]
    taps, reach = _taps(m)
    spanned = max(1.0, min(taps, columns / m["C_IN"]))
    loaded, partial = PIXELS * (rows + columns) * size, 4 * rows * columns
    once = PIXELS * (min(rows, m["C_OUT"]) + min(columns, m["C_IN"])) * size  # all taps read the same pixels
    near = PIXELS * columns * size if _near(c) else 0
    return Work(
        flops=2 * rows * columns * PIXELS,
        bytes=once * spanned / taps + partial,
        cached_bytes=loaded + partial,
        in_flight=max(1, c.num_stages - 1) * (rows + columns) * m["BLOCK_K"] * size,
        steps=PIXELS / m["BLOCK_K"],
        near_bytes=near,
        repeated_bytes=near * (1 - 1 / spanned),
        held_bytes=_lines(m["BLOCK_K"] + reach, m["C_IN"], min(columns, m["C_IN"]), size),
    )


def _epilogue(c: Compiled, m: Mapping[str, Any]) -> Work:
    values = m["BLOCK"] * (5 if m["ACTIVATION"] == "gate" else 3) * element_bytes(c, "saved_ptr")
    return Work(0, values, values, values * 3 / 5, trips=1)


def _pointwise(*pointers: str, repeated: tuple[str, ...] = ()) -> Model:
    """A walk over rows, which reads or writes an element of each pointer for each column.

    What is ``repeated`` other programs read, too; where all rows of a tile are of one datapoint, it is read once.
    """

    def model(c: Compiled, m: Mapping[str, Any]) -> Work:
        rows, width, trips = m["BLOCK_ROWS"], float(m["NUM_COLS"]), _ceil(m["NUM_COLS"], m["BLOCK_COLS"])
        if "REPEATS" in m:  # a program for some columns of many rows
            rows, width, trips = m["REPEATS"], width / trips, m["REPEATS"] // m["BLOCK_ROWS"]
        present = [name for name in pointers if name in c.signature]
        once = sum(rows * width * element_bytes(c, name) for name in present if name not in repeated)
        shared = rows // m["BLOCK_ROWS"] if m["ONE_DATUM"] else rows
        every = once + sum(shared * width * element_bytes(c, name) for name in present if name in repeated)
        return Work(0, once, every, every / trips, trips)

    return model


def _categorical(passes: int) -> Model:
    def model(c: Compiled, m: Mapping[str, Any]) -> Work:
        size = m["BLOCK_VALUES"] * m["NUM_LEVELS"] * element_bytes(c, "logits_ptr")
        trips = _ceil(m["NUM_LEVELS"], m["BLOCK_LEVELS"])
        forward = passes == 1
        return Work(0, size if forward else 2 * size, size * (1 if forward else 3), size / trips, trips)

    return model


def _mixture(c: Compiled, m: Mapping[str, Any]) -> Work:
    parameters = m["NUM_COMPONENTS"] * {1: 3, 3: 10}[m["NUM_CHANNELS"]]
    size = m["BLOCK_SITES"] * parameters * element_bytes(c, "params_ptr")
    total = 2 * size if m["IS_BACKWARD"] else size
    return Work(0, total, total, size / m["NUM_COMPONENTS"], trips=m["NUM_COMPONENTS"])


def _weights(c: Compiled, m: Mapping[str, Any]) -> Work:
    size = SAMPLES * m["BLOCK_POINTS"] * element_bytes(c, "log_w_ptr")
    trips = SAMPLES / m["BLOCK_SAMPLES"]
    return Work(0, size, size, size / trips, trips)


def _last_layer(
    loops_of: Callable[[Mapping[str, Any]], tuple[int, ...]],
    outputs_of: Callable[[Mapping[str, Any]], int] | None = None,
    makes_again: bool = False,
) -> Model:
    """A tile of rows, or of rows and outputs, of a linear layer that stays in registers.

    ``loops_of``: the trips of its loops over tiles of outputs, ``outputs_of``: how many these are, by default as
    many as the tiles hold. Rows that are kept are loaded once, others for every tile; so are
    data, but those of one datapoint.
    ``makes_again``: whether outputs of more than one tile are computed twice.
    """

    def model(c: Compiled, m: Mapping[str, Any]) -> Work:
        size, rows, columns = element_bytes(c, "h_ptr"), m["BLOCK_ROWS"], m["BLOCK_COLS"]
        trips = loops_of(m)
        tiles = prod(trips)
        passes = 2 if makes_again and tiles > 1 else 1
        per_value = 2 if "log_scale_ptr" in m else 1  # where it is a constant it is None: another output
        outputs = outputs_of(m) if outputs_of else per_value * tiles * columns
        steps = _ceil(m["INNER"], m["BLOCK_INNER"])
        pieces = m["PIECE_0"] + m["PIECE_1"] + m["PIECE_2"]
        loads = 1 if pieces else per_value * tiles * passes
        data = 0 if m.get("ONE_DATUM") or "NUM_LEVELS" in m else outputs // per_value * element_bytes(c, "x_ptr")
        has_gradient = {"grad_logits_ptr", "grad_params_ptr"} & set(c.signature)
        written = rows * outputs * size if has_gradient else 0
        once = rows * m["INNER"] * size + written
        cached = (loads * rows + passes * outputs) * m["INNER"] * size + rows * data + written
        step = columns * per_value * pieces if pieces else (rows + columns) * m["BLOCK_INNER"]
        padded = passes * 2 * rows * per_value * tiles * columns * (pieces or steps * m["BLOCK_INNER"])
        loops = [*(each for each in trips if each > 1), *([] if pieces else [steps])]
        return Work(
            flops=2 * rows * outputs * m["INNER"],
            bytes=once,
            cached_bytes=cached,
            in_flight=max(1, c.num_stages - 1) * step * size,
            trips=loops[0] if loops else 1,
            inner_trips=tuple(loops[1:]),
            padded=padded,
            waits=True,
        )

    return model


_GAUSSIAN = ("x_ptr", "loc_ptr", "log_scale_ptr")
_MODELS: dict[tuple[str, str], Model | None] = {
    ("persistent_plain", "plain_kernel"): None,
    ("persistent_gated", "gated_kernel"): None,
    ("masked_conv2d", "conv_kernel"): _convolution,
    ("locally_masked_conv2d", "conv_kernel"): _convolution,
    ("masked_conv2d_grad_weight", "grad_weight_kernel"): _weight_gradient,
    ("locally_masked_conv2d", "grad_weight_kernel"): _weight_gradient,
    ("masked_conv2d_epilogues", "epilogue_backward_kernel"): _epilogue,
    ("bernoulli_log_prob", "forward_kernel"): _pointwise("x_ptr", "logits_ptr", repeated=("x_ptr",)),
    ("bernoulli_log_prob", "backward_kernel"): _pointwise(
        "x_ptr", "logits_ptr", "grad_logits_ptr", repeated=("x_ptr",)
    ),
    ("gaussian_log_prob", "forward_kernel"): _pointwise(*_GAUSSIAN, repeated=("x_ptr",)),
    ("gaussian_log_prob", "backward_kernel"): _pointwise(
        *_GAUSSIAN, "grad_loc_ptr", "grad_log_scale_ptr", repeated=("x_ptr",)
    ),
    ("gaussian_log_prob", "shared_backward_kernel"): _pointwise(
        "x_ptr", "loc_ptr", "grad_loc_ptr", repeated=("x_ptr",)
    ),
    ("categorical_log_prob", "forward_kernel"): _categorical(1),
    ("categorical_log_prob", "backward_kernel"): _categorical(2),
    ("logistic_mixture_log_prob", "kernel"): _mixture,
    ("log_weights", "update_kernel"): _weights,
    ("linear_bernoulli_log_prob", "forward_kernel"): _last_layer(
        lambda m: (_ceil(m["NUM_COLS"], m["BLOCK_COLS"]),), lambda m: m["NUM_COLS"]
    ),
    ("linear_bernoulli_log_prob", "grad_logits_kernel"): _last_layer(lambda m: ()),
    ("linear_gaussian_log_prob", "forward_kernel"): _last_layer(
        lambda m: (_ceil(m["NUM_VALUES"], m["BLOCK_COLS"]),),
        lambda m: m["NUM_VALUES"] * (2 if "log_scale_ptr" in m else 1),
    ),
    ("linear_gaussian_log_prob", "grad_params_kernel"): _last_layer(lambda m: ()),
    ("linear_categorical_log_prob", "forward_kernel"): _last_layer(
        lambda m: (VALUES, _ceil(m["NUM_LEVELS"], m["BLOCK_COLS"])), lambda m: VALUES * m["NUM_LEVELS"]
    ),
    ("linear_categorical_log_prob", "grad_logits_kernel"): _last_layer(
        lambda m: (_ceil(m["NUM_LEVELS"], m["BLOCK_COLS"]),), lambda m: m["NUM_LEVELS"], makes_again=True
    ),
    ("masked_mlp", "solve_kernel"): None,
    ("nade", "scan_kernel"): None,
    ("nade", "backward_kernel"): None,
}
