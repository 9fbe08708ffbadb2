"""The Gaussian kernels compile for every architecture we serve, without spills."""

from collections.abc import Callable

import pytest
from fastvae_kernels import gaussian_log_prob as kernels

# tiles of one datapoint each, and on one architecture as many datapoints as rows
CASES = [(arch, dtype, 100) for arch in (80, 90, 100) for dtype in ("fp32", "bf16")] + [(90, "bf16", 10**5)]


@pytest.mark.parametrize(("arch", "dtype", "num_data"), CASES)
@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel", "_shared_backward_kernel"])
def test_compiles(cross_compile: Callable, arch: int, dtype: str, num_data: int, kernel: str) -> None:
    sizes = dict.fromkeys(("num_rows", "num_data", "num_scales"), "i32")
    pointers = {"x_ptr": "*fp32", "loc_ptr": f"*{dtype}", "log_scale_ptr": f"*{dtype}"}
    if kernel == "_forward_kernel":
        pointers |= {"total_ptr": "*fp32"}
    else:
        pointers |= {"grad_ptr": "*fp32", "grad_loc_ptr": f"*{dtype}", "grad_log_scale_ptr": f"*{dtype}"}
    if kernel == "_shared_backward_kernel":
        c = kernels.shared_config(10**5, num_data, 1, 784)
        meta: dict[str, object] = {"REPEATS": c.repeats}
        sizes["num_groups"] = "i32"
        pointers["grad_log_scale_ptr"] = "*fp32"  # partial sums
    else:
        c = kernels.config(10**5, num_data, 784)
        meta = {"IS_PER_COL": True}
    assert c.one_datum == (num_data == 100)
    blocks = {"BLOCK_ROWS": c.block_rows, "BLOCK_COLS": c.block_cols, "ONE_DATUM": c.one_datum}
    compiled = cross_compile(
        getattr(kernels, kernel),
        pointers | sizes,
        {"NUM_COLS": 784} | blocks | meta,
        arch,
        num_warps=c.num_warps,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.registers <= 128  # two programs of four warps per 64k registers would already hide the loads
    assert compiled.shared <= compiled.shared_limit
