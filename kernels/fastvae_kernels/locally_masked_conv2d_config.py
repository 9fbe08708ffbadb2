"""Launch configurations of the locally masked convolution kernels."""

from dataclasses import dataclass
from typing import Literal

import torch

from .masked_conv2d_config import fitted

__all__ = ["FLAT", "TABLE", "Config", "Op", "bucket_of", "choose_config", "is_flat"]

Op = Literal["conv", "grad_weight"]


@dataclass(frozen=True)
class Config:
    """One launch: tile sizes in elements, and how the compiler pipelines them.

    For ``conv`` (forward and input gradient) a program makes block_m pixels x block_n output channels and reduces
    block_k input channels of one tap at a time. For ``grad_weight`` it makes block_m output channels x block_n input
    channels of one tap and reduces block_k pixels at a time.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4  # 8 warps gave silently wrong convolutions elsewhere (pytorch#173068): only verified rows
    num_stages: int = 3


FLAT = 0  # the bucket of layers with so few input channels that one block spans several taps

# (op, architecture or None for all others, element type, bucket of the channels that block_n covers)
TABLE: dict[tuple[Op, int | None, torch.dtype, int], Config] = {
    ("conv", None, torch.float32, FLAT): Config(64, 64, 16),
    ("conv", None, torch.float32, 16): Config(128, 16, 32, num_stages=2),
    ("conv", None, torch.float32, 32): Config(128, 32, 32, num_stages=2),
    ("conv", None, torch.float32, 64): Config(64, 64, 32),
    ("grad_weight", None, torch.float32, FLAT): Config(64, 32, 32, num_stages=2),  # 64 x 64 spills on sm_80
    ("grad_weight", None, torch.float32, 16): Config(64, 64, 32, num_stages=2),
    ("grad_weight", None, torch.float32, 32): Config(32, 128, 32, num_stages=2),
    ("grad_weight", None, torch.float32, 64): Config(64, 64, 32),
}
for _half in (torch.float16, torch.bfloat16):
    TABLE |= {
        ("conv", None, _half, FLAT): Config(64, 64, 16),
        ("conv", None, _half, 16): Config(128, 16, 64, num_stages=2),
        ("conv", None, _half, 32): Config(256, 32, 32, num_stages=2),
        ("conv", None, _half, 64): Config(128, 64, 32),
        ("grad_weight", None, _half, FLAT): Config(64, 64, 32),
        ("grad_weight", None, _half, 16): Config(64, 64, 64, num_stages=2),
        ("grad_weight", None, _half, 32): Config(32, 128, 64, num_stages=2),
        ("grad_weight", None, _half, 64): Config(64, 128, 64, num_stages=2),
        ("conv", 90, _half, 64): Config(128, 128, 32),
        ("conv", 100, _half, 64): Config(256, 64, 32, num_stages=2),
        ("grad_weight", 100, _half, 64): Config(64, 64, 64),  # 64 x 128 spills
    }
for _arch in (90, 100):
    TABLE["conv", _arch, torch.float32, 64] = Config(128, 64, 16)
    TABLE["grad_weight", _arch, torch.float32, FLAT] = Config(64, 64, 32, num_stages=2)
    TABLE["grad_weight", _arch, torch.float32, 64] = Config(64, 128, 32, num_stages=2)


def is_flat(in_channels: int) -> bool:
    """Whether a tap has so few channels that one block spans several taps."""
    return in_channels < 16


def bucket_of(num_n: int, *, flat: bool) -> int:
    """The column of the table; wider layers take several blocks of 64."""
    return FLAT if flat else next((size for size in (16, 32) if num_n <= size), 64)


def choose_config(
    op: Op, arch: int | None, dtype: torch.dtype, num_m: int, num_n: int, num_k: int, *, flat: bool, taps: int = 1
) -> Config:
    """The row of the table, with blocks no larger than what they cover: block_n ``taps`` times ``num_n`` at most.

    ``arch`` is 10 * major + minor of the compute capability, None for the default rows.
    """
    bucket = bucket_of(num_n, flat=flat)
    config = TABLE.get((op, arch, dtype, bucket)) or TABLE[op, None, dtype, bucket]
    return fitted(config, num_m, num_n * taps, num_k, divided=op == "grad_weight")
