"""The kernels of a last layer with its likelihood compile for every architecture we serve, without spills."""

from collections.abc import Callable
from typing import Any

import pytest
from fastvae_kernels import linear_bernoulli_log_prob as bernoulli
from fastvae_kernels import linear_categorical_log_prob as categorical
from fastvae_kernels import linear_gaussian_log_prob as gaussian
from fastvae_kernels.linear_tile import Config, choose_forward, config

HALF_LOG_TWO_PI = 0.9189385332046727
TARGETS = [
    (80, "fp32", "tf32"),
    (90, "fp32", "tf32"),
    (90, "fp32", "tf32x3"),
    (90, "bf16", "ieee"),
    (100, "fp32", "tf32"),
]
# a forward pass has the samples of one datapoint in a tile, or rows as they come
FORWARD = [(*target, True) for target in [*TARGETS, (80, "bf16", "ieee"), (100, "bf16", "ieee")]]
FORWARD += [(80, "fp32", "tf32", False), (90, "bf16", "ieee", False), (100, "fp32", "tf32", False)]


def forward_of(family: str, target: tuple[int, str, str, bool], num_outputs: int) -> Config:
    arch, dtype, precision, one_datum = target
    num_rows = 10**6
    num_data = 100 if one_datum else num_rows
    c = choose_forward(family, arch, precision, 4 if dtype == "fp32" else 2, num_rows, 200, num_data, num_outputs)
    assert c.one_datum == one_datum
    return c


def compile_kernel(
    cross_compile: Callable,
    kernel: Any,
    target: tuple[Any, ...],
    c: Config,
    pointers: dict[str, str],
    meta: dict[str, Any],
    sizes: tuple[str, ...] = (),
) -> None:
    arch, dtype, precision, *_ = target
    pointers = dict.fromkeys(("h_ptr", "weight_ptr", "bias_ptr"), f"*{dtype}") | pointers
    blocks = {"BLOCK_ROWS": c.block_rows, "BLOCK_COLS": c.block_cols, "BLOCK_INNER": c.block_inner}
    blocks |= {f"PIECE_{i}": piece for i, piece in enumerate(c.pieces)}
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


@pytest.mark.parametrize("target", FORWARD, ids=str)
def test_bernoulli_compiles(cross_compile: Callable, target: tuple[int, str, str, bool]) -> None:
    pointers, meta = {"x_ptr": "*u8", "total_ptr": "*fp32"}, {"NUM_COLS": 784, "ONE_DATUM": target[3]}
    c = forward_of("bernoulli", target, 784)
    compile_kernel(cross_compile, bernoulli._forward_kernel, target, c, pointers, meta)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_gradient_of_bernoulli_compiles(cross_compile: Callable, target: tuple[int, str, str]) -> None:
    pointers = {"x_ptr": "*u8", "grad_ptr": "*fp32", "grad_logits_ptr": f"*{target[1]}"}
    c = config(10**6, 784, 200)
    compile_kernel(cross_compile, bernoulli._grad_logits_kernel, target, c, pointers, {"NUM_COLS": 784})


def gaussian_arguments(has_scales: bool) -> tuple[dict[str, str], dict[str, Any]]:
    pointers = {"x_ptr": "*fp32"} | ({} if has_scales else {"log_scale_ptr": "*fp32"})
    meta: dict[str, Any] = {"NUM_VALUES": 784, "NUM_PLACES": 784, "HAS_ONE_SCALE": not has_scales}
    return pointers, meta | {"LEAST_LOG_SCALE": -80.0} | ({"log_scale_ptr": None} if has_scales else {})


@pytest.mark.parametrize("target", FORWARD, ids=str)
@pytest.mark.parametrize("has_scales", [True, False])
def test_gaussian_compiles(cross_compile: Callable, has_scales: bool, target: tuple[int, str, str, bool]) -> None:
    pointers, meta = gaussian_arguments(has_scales)
    pointers |= {"total_ptr": "*fp32"}
    meta |= {"HALF_LOG_TWO_PI": HALF_LOG_TWO_PI, "ONE_DATUM": target[3]}
    c = forward_of("gaussian" if has_scales else "gaussian, shared scales", target, 784)
    compile_kernel(cross_compile, gaussian._forward_kernel, target, c, pointers, meta)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("has_scales", [True, False])
def test_gradient_of_gaussian_compiles(cross_compile: Callable, has_scales: bool, target: tuple[int, str, str]) -> None:
    arch, dtype, _ = target
    pointers, meta = gaussian_arguments(has_scales)
    pointers |= {"grad_ptr": "*fp32", "grad_params_ptr": f"*{dtype}"} | ({} if has_scales else {"partial_ptr": "*fp32"})
    meta |= {"partial_ptr": None} if has_scales else {}
    c = gaussian.choose_grad(arch, 4 if dtype == "fp32" else 2, 10**6, 200, 784, has_scales)
    compile_kernel(cross_compile, gaussian._grad_params_kernel, target, c, pointers, meta)


@pytest.mark.parametrize("target", FORWARD, ids=str)
def test_categorical_compiles(cross_compile: Callable, target: tuple[int, str, str, bool]) -> None:
    meta = {"NUM_VALUES": 3072, "NUM_PLACES": 1024, "NUM_LEVELS": 256, "ONE_DATUM": target[3]}
    pointers = {"x_ptr": "*u8", "partial_ptr": "*fp32"}
    c = forward_of("categorical", target, 256)
    compile_kernel(cross_compile, categorical._forward_kernel, target, c, pointers, meta, sizes=("num_shares",))


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("num_levels", [16, 256, 1000])
def test_gradient_of_categorical_compiles(
    cross_compile: Callable, num_levels: int, target: tuple[int, str, str]
) -> None:
    arch, dtype, precision = target
    meta = {"NUM_VALUES": 3072, "NUM_LEVELS": num_levels}
    pointers = {"x_ptr": "*u8", "grad_ptr": "*fp32", "grad_logits_ptr": f"*{dtype}"}
    c = categorical.choose_grad(arch, precision, 4 if dtype == "fp32" else 2, 10**6, 200, num_levels)
    compile_kernel(cross_compile, categorical._grad_logits_kernel, target, c, pointers, meta)
