"""The kernel of masked MLPs compiles for every architecture we serve, without spills, and waits between steps."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastvae_kernels import masked_mlp as kernels

NAMES = ["values", "noise", "weights", "biases", "conditions", "numbers"]
LONG, INTEGERS = ["indices", "table", "order"], ["counts", "blocks"]
SIZES = ["batch", "num_ops", "num_blocks", "length", "last_node", "last_row", "num_params"]
# architecture, rows, most units in a step, draw, noise
CASES = [
    (arch, rows, units, "affine", "given") for arch in (80, 90, 100) for rows in (64, 5000, 9000) for units in (2, 5)
]
CASES += [(90, 64, 4, "bernoulli", "uniform"), (90, 64, 4, "affine", "normal"), (90, 9000, 4, "categorical", "uniform")]


@pytest.mark.parametrize(("arch", "rows", "units", "draw", "noise"), CASES)
def test_fits_and_waits(cross_compile: Callable, arch: int, rows: int, units: int, draw: str, noise: str) -> None:
    c = kernels.config(rows, units)
    pointers = {f"{name}_ptr": "*fp32" for name in NAMES}
    pointers |= {f"{name}_ptr": "*i64" for name in LONG} | {f"{name}_ptr": "*i32" for name in INTEGERS}
    given = noise == "given"
    if given:
        pointers.pop("order_ptr")
    else:
        pointers.pop("noise_ptr")
    compiled = cross_compile(
        kernels._solve_kernel,
        pointers | dict.fromkeys([*SIZES, "seed_low", "seed_high", "first_id"], "i32"),
        {
            "order_ptr" if given else "noise_ptr": None,
            "DRAW": draw,
            "NOISE": noise,
            "FIELDS": kernels.FIELDS,
            "BLOCK_ROWS": c.block_rows,
            "BLOCK_UNITS": c.block_units,
            "BLOCK_WINDOW": c.block_window,
            "BLOCK_OUT": c.block_out,
            "BLOCK_INNER": c.block_inner,
            "PRECISION": "tf32x3",
        },
        arch,
        num_warps=c.num_warps,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
    # between products and steps, between operators, between steps: what one thread stored, another one loads
    lines = Path(kernels.__file__).read_text().splitlines()
    barriers = [number for number, line in enumerate(lines, start=1) if "debug_barrier" in line]
    assert len(barriers) == 3
    for number in barriers:
        assert re.search(rf"masked_mlp\.py:{number}:\d+\n(\$?[\w.]*:?[^\n]*\n)?\s*bar\.sync", compiled.ptx)
