"""The persistent sampling kernels compile for every architecture we serve, without spills, and wait once per step."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastvae_kernels.persistent_config import MOST_REGISTERS, TABLE, Config
from fastvae_kernels.persistent_gated import gated_kernel
from fastvae_kernels.persistent_plain import plain_kernel

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SIZES = "num_images height width num_layers num_heads num_taps skew num_steps length bias_layer bias_pixel bias_image"
SLOTS = 8  # 28 x 28 pixels after a first kernel of 7 x 7
GATED = {"NUM_NEWEST": 1, "LINK_ROWS": 1, "LINK_GATED": True, "REDUCED_ROW": 16}
UPPER_ROWS = {"NUM_NEWEST": 0, "LINK_ROWS": 0, "LINK_GATED": False, "REDUCED_ROW": 16}


def compiled(
    cross_compile: Callable,
    config: Config,
    arch: int,
    dtype: torch.dtype,
    channels: int,
    precision: str,
    **changed: Any,
) -> Any:
    is_gated = "LINK_ROWS" in changed
    kernel = gated_kernel if is_gated else plain_kernel
    pointers = {name: f"*{NAMES[dtype]}" for name in kernel.arg_names if name.endswith("_ptr")}
    pointers |= {name: "*i32" for name in pointers if "tap" in name}
    pointers |= {name: "*fp32" for name in pointers if "bias" in name}
    pointers |= {"log_prob_ptr": "*fp64"}
    absent = {name: None for name in ("noise_ptr", "before_ptr") if name in pointers}
    signature = {name: kind for name, kind in pointers.items() if name not in absent}
    more = " num_row_taps row_length lead lead_step newest" if is_gated else ""
    signature |= dict.fromkeys((SIZES + more).split(), "i32")
    signature |= {"first_id": "i64", "seed": "i64", "scale": "fp32", "shift": "fp32"}
    meta = {"KIND": "bernoulli", "ACTIVATION": "relu", "HAS_RESIDUAL": True, "VARIES": False, "NUM_VALUES": 1}
    meta |= {"NUM_PARAMS": 1, "VALUES": 16, "PARAMS": 1, "REDUCED": 32, "CHANNELS": channels, "SLOTS": SLOTS}
    meta |= {"IMAGES": config.rows // SLOTS, "PRECISION": precision, **absent, **changed}
    return cross_compile(
        kernel,
        signature,
        meta,
        arch,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        most_registers=MOST_REGISTERS,
        divisible=[*(name for name in signature if name in pointers), "bias_layer"],
    )


LEVELS = {"KIND": "categorical", "NUM_PARAMS": 4, "VALUES": 4, "PARAMS": 4}
CONDITIONED = {"KIND": "gaussian", "NUM_PARAMS": 2, "VALUES": 8, "PARAMS": 2, "VARIES": True}
# architecture, kernel, type, channels, which tile, precision, and what is unlike the usual
CASES = [
    (80, "plain", torch.bfloat16, 64, 0, "ieee", {}),
    (90, "plain", torch.bfloat16, 64, 1, "ieee", {}),
    (100, "plain", torch.bfloat16, 64, 1, "ieee", {}),
    (90, "plain", torch.bfloat16, 64, 0, "ieee", LEVELS),
    (90, "plain", torch.bfloat16, 64, 0, "ieee", CONDITIONED),
    (80, "plain", torch.bfloat16, 128, 1, "ieee", {}),
    (90, "plain", torch.bfloat16, 128, 0, "ieee", {}),
    (90, "plain", torch.float32, 64, 0, "tf32", {}),
    (100, "plain", torch.float32, 64, 0, "tf32x3", {}),
    (80, "gated", torch.bfloat16, 64, 0, "ieee", GATED),
    (90, "gated", torch.bfloat16, 64, 0, "ieee", UPPER_ROWS),
    (100, "gated", torch.float32, 64, 0, "tf32", GATED),
    (90, "gated", torch.float32, 64, 0, "tf32x3", UPPER_ROWS),
]


@pytest.mark.parametrize(("arch", "kernel", "dtype", "channels", "tile", "precision", "changed"), CASES)
def test_fits_and_waits_once_between_a_store_and_the_next_steps_loads(
    cross_compile: Callable,
    arch: int,
    kernel: str,
    dtype: torch.dtype,
    channels: int,
    tile: int,
    precision: str,
    changed: dict[str, Any],
) -> None:
    config = TABLE[kernel, "half" if dtype == torch.bfloat16 else precision, channels][tile]
    found = compiled(cross_compile, config, arch, dtype, channels, precision, **changed)
    assert found.spills == 0
    assert found.shared <= found.shared_limit
    # the barrier at the end of a step: without it a thread could load a cell that another one has not stored yet
    lines, first = inspect.getsourcelines((gated_kernel if kernel == "gated" else plain_kernel).fn)
    (barrier,) = (first + number for number, line in enumerate(lines) if "debug_barrier()" in line)
    (waits,) = re.finditer(rf"\.loc\s+\d+ {barrier} \d+[^\n]*\n\s*bar\.sync", found.ptx)
    assert "st.global" in found.ptx[: waits.start()]
