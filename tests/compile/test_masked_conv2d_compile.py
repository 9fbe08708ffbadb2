"""Every row of the masked convolution table compiles for its architectures: no spills, shared memory, wgmma."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="cross-compilation needs triton, which is not installed")

from fastvae_kernels import masked_conv2d as kernels
from fastvae_kernels import masked_conv2d_epilogues as epilogues
from fastvae_kernels.masked_conv2d_config import FLAT, TABLE, bucket_of, choose_config, is_flat

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
PRECISIONS = {torch.float32: ["tf32x3", "tf32"], torch.float16: ["ieee"], torch.bfloat16: ["ieee"]}
# (in, out) channels that a bucket serves: it is one of output channels for conv, of input channels for grad_weight
CHANNELS: dict[str, dict[int, tuple[int, int]]] = {
    "conv": {FLAT: (3, 64), 16: (64, 16), 32: (32, 32), 64: (64, 64), 128: (128, 128)},
    "grad_weight": {FLAT: (3, 64), 16: (16, 64), 32: (32, 32), 64: (64, 64), 128: (128, 128)},
}
PLAIN: dict[str, Any] = {}
# the most that each may do; the pointers are given
GATE = {"GATED": True, "CONDITION_IS_MAP": True, "condition_ptr": True, "saved_ptr": True}
RESIDUAL = {"ACTIVATION": "elu", "residual_ptr": True, "saved_ptr": True}
CHANNELS["block"] = CHANNELS["conv"]
ARCHITECTURES = (80, 90, 100)
ROWS = [
    (*key, precision, arch)
    for key in TABLE
    for precision in PRECISIONS[key[2]]
    for arch in ARCHITECTURES
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
    epilogue: dict[str, Any] = PLAIN,
    num_pixels: int = 1 << 20,
) -> Any:
    flat, live, element = is_flat(in_channels), 25, f"*{TYPES[dtype]}"
    meta = {
        "C_IN": in_channels,
        "C_OUT": out_channels,
        "COLUMNS": 7,
        "ABOVE": 3,
        "BEFORE": 3,
        "DILATION": 1,
        "PRECISION": precision,
    }
    sizes = dict.fromkeys(("num_pixels", "height", "width", "num_taps", "area_shift", "width_shift"), "i32")
    sizes |= dict.fromkeys(("origin_factor", "area_factor", "width_factor"), "i64")
    if op in ("conv", "block"):
        reduced = live * in_channels if flat else in_channels
        config = choose_config(op, arch, dtype, num_pixels, out_channels, reduced, flat=flat)
        pointers = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "y_ptr"), element)
        kernel = kernels.conv_kernel
        meta |= {"DIRECTION": 1, "GATED": False, "CONDITION_IS_MAP": False, "ACTIVATION": ""}
        meta |= dict.fromkeys({"condition_ptr", "residual_ptr", "saved_ptr"} - set(epilogue))
        pointers |= {name: element for name in epilogue if name.endswith("_ptr")}
        meta |= {name: value for name, value in epilogue.items() if not name.endswith("_ptr")}
    else:
        config = choose_config(op, arch, dtype, out_channels, in_channels, num_pixels, flat=flat, taps=live)
        flat = config.block_n > in_channels
        pointers = {"x_ptr": element, "grad_y_ptr": element, "partial_ptr": "*fp32"}
        kernel, sizes = kernels.grad_weight_kernel, sizes | {"pixels_per_share": "i32"}
    meta["FLAT"] = flat
    meta |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    compiled = cross_compile(
        kernel,
        pointers | sizes,
        meta,
        arch,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        divisible=list(pointers),
    )
    return compiled, config


@pytest.mark.parametrize(
    ("op", "row_arch", "dtype", "bucket", "precision", "arch"),
    [row for row in ROWS if row[0] != "block"],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_a_row_fits(
    cross_compile: Callable, op: str, row_arch: int | None, dtype: torch.dtype, bucket: int, precision: str, arch: int
) -> None:
    in_channels, out_channels = CHANNELS[op][bucket]
    assert bucket_of(out_channels if op != "grad_weight" else in_channels, flat=is_flat(in_channels)) == bucket
    compiled, config = compile_row(cross_compile, op, dtype, in_channels, out_channels, precision, arch)
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
    assert config.num_warps == 4  # more only after a parity test of exactly that row on a card
    if arch == 90 and config.block_m >= 64:
        assert "wgmma" in compiled.ptx
    if bucket != FLAT or dtype == torch.float32:  # a gather of single 2-byte elements cannot be asynchronous
        assert "cp.async" in compiled.ptx  # loads overlap with products


@pytest.mark.parametrize(
    ("row_arch", "dtype", "bucket", "precision", "arch"),
    [row[1:] for row in ROWS if row[0] == "block"],
    ids=lambda value: str(value).removeprefix("torch."),
)
@pytest.mark.parametrize("epilogue", [GATE, RESIDUAL], ids=["gated", "residual"])
def test_a_row_with_an_epilogue_fits(
    cross_compile: Callable,
    row_arch: int | None,
    dtype: torch.dtype,
    bucket: int,
    precision: str,
    arch: int,
    epilogue: dict[str, Any],
) -> None:
    in_channels, out_channels = CHANNELS["block"][bucket]
    compiled, config = compile_row(
        cross_compile, "block", dtype, in_channels, out_channels, precision, arch, epilogue=epilogue
    )
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
    if arch == 90 and config.block_m >= 64:
        assert "wgmma" in compiled.ptx


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("activation", ["gate", "relu", "elu"])
def test_the_derivative_of_an_epilogue_fits(cross_compile: Callable, activation: str, dtype: str, arch: int) -> None:
    pointers = dict.fromkeys(("saved_ptr", "grad_y_ptr", "grad_h_ptr"), f"*{dtype}")
    meta = {"CHANNELS": 64, "ACTIVATION": activation, "BLOCK": epilogues.BLOCK}
    compiled = cross_compile(
        epilogues.epilogue_backward_kernel,
        pointers | {"num_values": "i32"},
        meta,
        arch,
        divisible=[*pointers, "num_values"],
    )
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
    assert "ld.global.v" in compiled.ptx  # several values at once


@pytest.mark.parametrize("op", ["conv", "grad_weight"])
def test_channels_that_fill_no_block_compile_too(cross_compile: Callable, op: str) -> None:
    compiled, _ = compile_row(cross_compile, op, torch.bfloat16, 120, 120, "ieee", 90)
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit


def test_the_largest_default_row_fits_into_the_small_shared_memory_of_sm_89(cross_compile: Callable) -> None:
    compiled, _ = compile_row(cross_compile, "conv", torch.bfloat16, 128, 128, "ieee", 89)
    assert compiled.shared <= compiled.shared_limit == 101_376
