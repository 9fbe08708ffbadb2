"""The kernels of importance weighting compile for every architecture we serve, without spills."""

from collections.abc import Callable

import pytest
from fastvae_kernels import log_weights as kernels


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize(
    ("num_points", "dtype"),
    [(1, "fp32"), (2, "fp32"), (3, "fp32"), (7, "fp32"), (10, "fp32"), (1000, "fp32"), (1000, "bf16")],
)
def test_update_compiles(cross_compile: Callable, arch: int, num_points: int, dtype: str) -> None:
    c = kernels.config(num_points)
    compiled = cross_compile(
        kernels._update_kernel,
        {
            "state_ptr": "*fp64",
            "log_w_ptr": f"*{dtype}",
            "out_ptr": "*fp64",
            "num_samples": "i32",
            "num_points": "i32",
            "stride_log_w_sample": "i32",
            "stride_log_w_point": "i32",
        },
        {"BLOCK_SAMPLES": c.block_samples, "BLOCK_POINTS": c.block_points},
        arch,
        num_warps=c.num_warps,
        divisible=["state_ptr", "log_w_ptr", "out_ptr"],
    )
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
