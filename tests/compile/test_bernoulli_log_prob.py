"""The Bernoulli kernels compile for every architecture we serve, without spills."""

from collections.abc import Callable

import pytest
from fastvae_kernels import bernoulli_log_prob as kernels

# tiles of one datapoint each, and on one architecture as many datapoints as rows
CASES = [(arch, dtype, 100) for arch in (80, 90, 100) for dtype in ("fp32", "bf16")] + [(90, "bf16", 10**5)]


@pytest.mark.parametrize(("arch", "dtype", "num_data"), CASES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compiles(cross_compile: Callable, arch: int, dtype: str, num_data: int, direction: str) -> None:
    c = kernels.config(10**5, num_data, 784)
    assert c.one_datum == (num_data == 100)
    pointers = {"x_ptr": "*fp32", "logits_ptr": f"*{dtype}"}
    if direction == "forward":
        pointers |= {"total_ptr": "*fp32"}
    else:
        pointers |= {"grad_ptr": "*fp32", "grad_logits_ptr": f"*{dtype}"}
    compiled = cross_compile(
        getattr(kernels, f"_{direction}_kernel"),
        pointers | {"num_rows": "i32", "num_data": "i32"},
        {"NUM_COLS": 784, "BLOCK_ROWS": c.block_rows, "BLOCK_COLS": c.block_cols, "ONE_DATUM": c.one_datum},
        arch,
        num_warps=c.num_warps,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.registers <= 128  # two programs of four warps per 64k registers would already hide the loads
    assert compiled.shared <= compiled.shared_limit
