"""The NADE kernels compile for every architecture we serve, without spills."""

import re
from collections.abc import Callable

import pytest
from fastvae_kernels import nade as kernels

# architecture, rows, hidden units, whether it samples, which differs by one comparison
CASES = [(arch, rows, 500, False) for arch in (80, 90, 100) for rows in (64, 4096)]
CASES += [(90, 64, 500, True), (90, 4096, 16, False), (90, 64, 8192, False)]


@pytest.mark.parametrize(("arch", "rows", "hidden", "samples"), CASES)
def test_the_scan_fits(cross_compile: Callable, arch: int, rows: int, hidden: int, samples: bool) -> None:
    c = kernels.config(rows, hidden)
    names = ["x", "weight", "hidden_bias", "output_weight", "output_bias", "result"]
    pointers = {f"{name}_ptr": "*fp32" for name in names}
    compiled = cross_compile(
        kernels._scan_kernel,
        pointers | {"num_rows": "i32", "num_features": "i32"},
        {"SAMPLES": samples, "NUM_HIDDEN": hidden, "BLOCK_ROWS": c.block_rows, "BLOCK_HIDDEN": c.block_hidden},
        arch,
        num_warps=c.num_warps,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize(("rows", "hidden"), [(64, 500), (4096, 500)])
def test_the_backward_scan_fits_and_waits_between_tiles(
    cross_compile: Callable, arch: int, rows: int, hidden: int
) -> None:
    c = kernels.backward_config(rows, hidden)
    names = ["x", "weight", "output_weight", "running", "grad", "grad_weight", "grad_hidden_bias", "grad_output_weight"]
    pointers = {f"{name}_ptr": "*fp32" for name in names}
    meta = {"NUM_HIDDEN": hidden, "NUM_SHARES": c.num_shares}
    compiled = cross_compile(
        kernels._backward_kernel,
        pointers | {"num_rows": "i32", "num_features": "i32"},
        meta | {"BLOCK_ROWS": c.block_rows, "BLOCK_HIDDEN": c.block_hidden},
        arch,
        num_warps=c.num_warps,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
    *sums, bias = [found.start() for found in re.finditer("st.global", compiled.ptx)]
    # after the loop over dimensions, which stores sums, all threads meet before the next tile of rows loads them
    assert "bar.sync" in compiled.ptx[sums[-1] : bias]
