"""The categorical kernels compile for every architecture we serve, without spills."""

from collections.abc import Callable

import pytest
from fastvae_kernels import categorical_log_prob as kernels

# levels before the sites, and on one architecture levels last too
CASES = [(arch, dtype, 1024) for arch in (80, 90, 100) for dtype in ("fp32", "bf16")] + [(90, "bf16", 1)]


@pytest.mark.parametrize(("arch", "dtype", "sites"), CASES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compiles(cross_compile: Callable, arch: int, dtype: str, sites: int, direction: str) -> None:
    c = kernels.config(3072, 256, sites, 4 if dtype == "fp32" else 2, is_backward=direction == "backward")
    pointers = {"x_ptr": "*fp32", "logits_ptr": f"*{dtype}"}
    if direction == "forward":
        pointers |= {"partial_ptr": "*fp32"}
    else:
        pointers |= {"grad_ptr": "*fp32", "grad_logits_ptr": f"*{dtype}"}
    meta = {"NUM_VALUES": 3072, "NUM_LEVELS": 256, "SITES": sites}
    compiled = cross_compile(
        getattr(kernels, f"_{direction}_kernel"),
        pointers | {"num_data": "i32"},
        meta | {"BLOCK_VALUES": c.block_values, "BLOCK_LEVELS": c.block_levels},
        arch,
        num_warps=c.num_warps,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.registers <= 128  # two programs of four warps per 64k registers would already hide the loads
    assert compiled.shared <= compiled.shared_limit
