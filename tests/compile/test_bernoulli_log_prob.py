"""The Bernoulli kernels compile for every architecture we serve, without spills."""

from collections.abc import Callable

import pytest
from fastvae_kernels import bernoulli_log_prob as kernels


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compiles(cross_compile: Callable, arch: int, dtype: str, direction: str) -> None:
    c = kernels.config(784)
    pointers = {"x_ptr": "*fp32", "logits_ptr": f"*{dtype}"}
    if direction == "forward":
        pointers |= {"total_ptr": "*fp32"}
    else:
        pointers |= {"grad_ptr": "*fp32", "grad_logits_ptr": f"*{dtype}"}
    compiled = cross_compile(
        getattr(kernels, f"_{direction}_kernel"),
        pointers | {"num_rows": "i32", "num_data": "i32"},
        {"NUM_COLS": 784, "BLOCK_ROWS": c.block_rows, "BLOCK_COLS": c.block_cols},
        arch,
        num_warps=c.num_warps,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.registers <= 128  # two programs of four warps per 64k registers would already hide the loads
    assert compiled.shared <= compiled.shared_limit
