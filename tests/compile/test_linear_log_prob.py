"""The kernels of a last layer with its likelihood compile for every architecture we serve, without spills."""

from collections.abc import Callable
from typing import Any

import pytest
from fastvae_kernels import linear_bernoulli_log_prob as bernoulli
from fastvae_kernels import linear_categorical_log_prob as categorical
from fastvae_kernels import linear_gaussian_log_prob as gaussian
from fastvae_kernels.linear_tile import Config, config

HALF_LOG_TWO_PI = 0.9189385332046727
TARGETS = [
    (80, "fp32", "tf32"),
    (90, "fp32", "tf32"),
    (90, "fp32", "tf32x3"),
    (90, "bf16", "ieee"),
    (100, "fp32", "tf32"),
]


def compile_kernel(
    cross_compile: Callable,
    kernel: Any,
    target: tuple[int, str, str],
    c: Config,
    pointers: dict[str, str],
    meta: dict[str, Any],
    sizes: tuple[str, ...] = (),
) -> None:
    arch, dtype, precision = target
    pointers = dict.fromkeys(("h_ptr", "weight_ptr", "bias_ptr"), f"*{dtype}") | pointers
    blocks = {"BLOCK_ROWS": c.block_rows, "BLOCK_COLS": c.block_cols, "BLOCK_INNER": c.block_inner}
    compiled = cross_compile(
        kernel,
        pointers | dict.fromkeys(("num_rows", "num_data", *sizes), "i32"),
        {"INNER": 200, "PRECISION": precision, **blocks, **meta},
        arch,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
        divisible=list(pointers),
    )
    assert compiled.spills == 0
    assert compiled.shared <= compiled.shared_limit
    if arch == 90 and precision != "tf32x3":
        assert "wgmma" in compiled.ptx


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("direction", ["forward", "grad_logits"])
def test_bernoulli_compiles(cross_compile: Callable, direction: str, target: tuple[int, str, str]) -> None:
    pointers = {"x_ptr": "*u8"}
    if direction == "forward":
        pointers |= {"total_ptr": "*fp32"}
    else:
        pointers |= {"grad_ptr": "*fp32", "grad_logits_ptr": f"*{target[1]}"}
    kernel = getattr(bernoulli, f"_{direction}_kernel")
    compile_kernel(cross_compile, kernel, target, config(10**6, 784, 200), pointers, {"NUM_COLS": 784})


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("has_scales", [True, False])
@pytest.mark.parametrize("direction", ["forward", "grad_params"])
def test_gaussian_compiles(
    cross_compile: Callable, direction: str, has_scales: bool, target: tuple[int, str, str]
) -> None:
    pointers = {"x_ptr": "*fp32"} | ({} if has_scales else {"log_scale_ptr": "*fp32"})
    meta: dict[str, Any] = {"NUM_VALUES": 784, "NUM_PLACES": 784, "HAS_ONE_SCALE": not has_scales}
    meta |= {"LEAST_LOG_SCALE": -80.0} | ({"log_scale_ptr": None} if has_scales else {})
    if direction == "forward":
        pointers |= {"total_ptr": "*fp32"}
        meta |= {"HALF_LOG_TWO_PI": HALF_LOG_TWO_PI}
    else:
        pointers |= {"grad_ptr": "*fp32", "grad_params_ptr": f"*{target[1]}"}
        pointers |= {} if has_scales else {"partial_ptr": "*fp32"}
        meta |= {"partial_ptr": None} if has_scales else {}
    kernel = getattr(gaussian, f"_{direction}_kernel")
    compile_kernel(cross_compile, kernel, target, gaussian.gaussian_config(10**6, 784, 200, has_scales), pointers, meta)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_categorical_compiles(cross_compile: Callable, target: tuple[int, str, str]) -> None:
    meta = {"NUM_VALUES": 3072, "NUM_PLACES": 1024, "NUM_LEVELS": 256}
    pointers = {"x_ptr": "*u8", "partial_ptr": "*fp32"}
    c = categorical.categorical_config(10**6, 256, 200)
    compile_kernel(cross_compile, categorical._forward_kernel, target, c, pointers, meta, sizes=("num_shares",))


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("num_levels", [16, 256, 1000])
def test_gradient_of_categorical_compiles(
    cross_compile: Callable, num_levels: int, target: tuple[int, str, str]
) -> None:
    meta = {"NUM_VALUES": 3072, "NUM_LEVELS": num_levels}
    pointers = {"x_ptr": "*u8", "grad_ptr": "*fp32", "grad_logits_ptr": f"*{target[1]}"}
    c = categorical.categorical_grad_config(10**6, num_levels, 200)
    compile_kernel(cross_compile, categorical._grad_logits_kernel, target, c, pointers, meta)
