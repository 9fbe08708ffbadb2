"""The kernels of the last layer with its Bernoulli likelihood compile for every architecture we serve, no spills."""

from collections.abc import Callable

import pytest
from fastvae_kernels import linear_bernoulli_log_prob as kernels


@pytest.mark.parametrize(
    ("arch", "dtype", "precision"),
    [(80, "fp32", "tf32"), (90, "fp32", "tf32"), (90, "fp32", "tf32x3"), (90, "bf16", "ieee"), (100, "fp32", "tf32")],
)
@pytest.mark.parametrize("direction", ["forward", "grad_logits"])
def test_compiles(cross_compile: Callable, arch: int, dtype: str, precision: str, direction: str) -> None:
    c = kernels.config(10**6, 784, 200)
    pointers = {"x_ptr": "*u8", "h_ptr": f"*{dtype}", "weight_ptr": f"*{dtype}", "bias_ptr": f"*{dtype}"}
    if direction == "forward":
        pointers |= {"total_ptr": "*fp32"}
    else:
        pointers |= {"grad_ptr": "*fp32", "grad_logits_ptr": f"*{dtype}"}
    compiled = cross_compile(
        getattr(kernels, f"_{direction}_kernel"),
        pointers | {"num_rows": "i32", "num_data": "i32"},
        {
            "NUM_COLS": 784,
            "INNER": 200,
            "BLOCK_ROWS": c.block_rows,
            "BLOCK_COLS": c.block_cols,
            "BLOCK_INNER": c.block_inner,
            "PRECISION": precision,
        },
        arch,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
    if arch == 90 and precision != "tf32x3":
        assert "wgmma" in compiled.ptx
