"""The Gaussian kernels compile for every architecture we serve, without spills."""

from collections.abc import Callable

import pytest
from fastvae_kernels import gaussian_log_prob as kernels

SIZES = {"num_rows": "i32", "num_data": "i32", "num_scales": "i32"}


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel", "_shared_backward_kernel"])
def test_compiles(cross_compile: Callable, arch: int, dtype: str, kernel: str) -> None:
    pointers = {"x_ptr": "*fp32", "loc_ptr": f"*{dtype}", "log_scale_ptr": f"*{dtype}"}
    if kernel == "_forward_kernel":
        pointers |= {"total_ptr": "*fp32"}
    else:
        pointers |= {"grad_ptr": "*fp32", "grad_loc_ptr": f"*{dtype}", "grad_log_scale_ptr": f"*{dtype}"}
    if kernel == "_shared_backward_kernel":
        c = kernels.shared_config(784)
        meta = {"BLOCK_COLS": c.block_cols, "REPEATS": c.repeats}
        pointers["grad_log_scale_ptr"] = "*fp32"  # partial sums
    else:
        c = kernels.config(784)
        meta = {"IS_PER_COL": True, "BLOCK_ROWS": c.block_rows, "BLOCK_COLS": c.block_cols}
    compiled = cross_compile(
        getattr(kernels, kernel),
        pointers | SIZES,
        {"NUM_COLS": 784} | meta,
        arch,
        num_warps=c.num_warps,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.registers <= 128  # two programs of four warps per 64k registers would already hide the loads
    assert compiled.shared <= compiled.shared_limit
