"""Every row of the locally masked convolution table compiles for its architectures: no spills, shared memory, wgmma."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="cross-compilation needs triton, which is not installed")

from fastvae_kernels import locally_masked_conv2d as kernels
from fastvae_kernels.locally_masked_conv2d_config import FLAT, TABLE, bucket_of, choose_config, is_flat

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# (in, out) channels that a bucket serves: it is one of output channels for conv, of input channels for grad_weight
CHANNELS = {
    "conv": {FLAT: (3, 64), 16: (64, 16), 32: (32, 32), 64: (128, 128)},
    "grad_weight": {FLAT: (3, 64), 16: (16, 64), 32: (32, 32), 64: (128, 128)},
}
ROWS = [
    (*key, precision, arch)
    for key in TABLE
    for precision in (("tf32x3", "tf32") if key[2] == torch.float32 else ("ieee",))
    for arch in (80, 90, 100)
    # a default row is not used where the architecture has its own
    if (key[1] == arch or (key[1] is None and (key[0], arch, *key[2:]) not in TABLE))
    # float16 compiles like bfloat16, and one tf32 product takes less than three: one architecture is enough
    and ((key[2] != torch.float16 and precision != "tf32") or arch == 90)
]


def compile_row(
    cross_compile: Callable,
    op: Any,
    dtype: torch.dtype,
    in_channels: int,
    out_channels: int,
    precision: str,
    arch: int,
    kernel_size: int = 7,
    per_image: bool = False,
) -> Any:
    flat, taps, element = is_flat(in_channels), kernel_size**2, f"*{TYPES[dtype]}"
    sizes = dict.fromkeys(("num_pixels", "height", "width", "area_shift", "width_shift"), "i32")
    sizes |= dict.fromkeys(("origin_factor", "area_factor", "width_factor"), "i64")
    if op == "conv":
        reduced = taps * in_channels if flat else in_channels
        config = choose_config(op, arch, dtype, 1 << 20, out_channels, reduced, flat=flat)
        pointers = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "y_ptr"), element)
        kernel = kernels.conv_kernel
    else:
        config = choose_config(op, arch, dtype, out_channels, in_channels, 1 << 20, flat=flat, taps=taps)
        flat = config.block_n > in_channels
        pointers = {"x_ptr": element, "grad_y_ptr": element, "partial_ptr": "*fp32"}
        kernel, sizes = kernels.grad_weight_kernel, sizes | {"pixels_per_share": "i32"}
    pointers["mask_ptr"] = "*i64"
    meta = {
        "C_IN": in_channels,
        "C_OUT": out_channels,
        "KERNEL_SIZE": kernel_size,
        "DILATION": 1,
        "MASK_PER_IMAGE": per_image,
        "FLAT": flat,
        "PRECISION": precision,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return cross_compile(kernel, pointers | sizes, meta, arch, divisible=list(pointers), **options), config


@pytest.mark.parametrize(
    ("op", "row_arch", "dtype", "bucket", "precision", "arch"),
    ROWS,
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_a_row_fits(
    cross_compile: Callable, op: str, row_arch: int | None, dtype: torch.dtype, bucket: int, precision: str, arch: int
) -> None:
    in_channels, out_channels = CHANNELS[op][bucket]
    assert bucket_of(out_channels if op == "conv" else in_channels, flat=is_flat(in_channels)) == bucket
    compiled, config = compile_row(cross_compile, op, dtype, in_channels, out_channels, precision, arch)
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
    assert config.num_warps == 4  # more only after a parity test of exactly that row on a card
    if arch == 90 and config.block_m >= 64:
        assert "wgmma" in compiled.ptx
    if bucket != FLAT or dtype == torch.float32:  # a gather of single 2-byte elements cannot be asynchronous
        assert "cp.async" in compiled.ptx  # loads overlap with products


@pytest.mark.parametrize("op", ["conv", "grad_weight"])
def test_channels_that_fill_no_block_and_masks_for_each_image_compile_too(cross_compile: Callable, op: str) -> None:
    compiled, _ = compile_row(cross_compile, op, torch.bfloat16, 120, 120, "ieee", 90, kernel_size=3, per_image=True)
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
