"""The measuring instrument of this folder: it sees spills and matrix instructions where there are some."""

from collections.abc import Callable

import pytest
import triton
import triton.language as tl


@triton.jit
def _product(
    # pointers
    x_ptr,
    y_ptr,
    # meta
    SIZE: tl.constexpr,
):
    index = tl.arange(0, SIZE)
    square = index[:, None] * SIZE + index[None, :]
    x = tl.load(x_ptr + square)
    tl.store(y_ptr + square, tl.dot(x, tl.trans(x)))


SIGNATURE = {"x_ptr": "*fp16", "y_ptr": "*fp32"}


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_a_small_product_fits_into_registers(cross_compile: Callable, arch: int) -> None:
    small = cross_compile(_product, SIGNATURE, {"SIZE": 64}, arch, divisible=["x_ptr", "y_ptr"])
    assert small.spills == 0
    assert 16 <= small.registers <= 255
    assert 0 < small.shared <= small.shared_limit
    assert ("wgmma" in small.ptx) == (arch == 90)


def test_a_large_product_in_one_warp_is_seen_to_spill(cross_compile: Callable) -> None:
    large = cross_compile(_product, SIGNATURE, {"SIZE": 128}, 80, num_warps=1, divisible=["x_ptr", "y_ptr"])
    assert large.spills > 0


def test_a_misspelt_argument_is_named(cross_compile: Callable) -> None:
    with pytest.raises(ValueError, match=r"unknown arguments \['SIDE'\], missing arguments \['SIZE'\]"):
        cross_compile(_product, SIGNATURE, {"SIDE": 64}, 80)
