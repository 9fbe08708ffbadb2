"""Launch configurations of the locally masked convolution kernels."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

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

# (op, element type, bucket of the channels that block_n covers); one row serves all architectures
TABLE: dict[tuple[Op, torch.dtype, int], Config] = {
    ("conv", torch.float32, FLAT): Config(64, 64, 16),
    ("conv", torch.float32, 16): Config(64, 16, 32),
    ("conv", torch.float32, 32): Config(64, 32, 32),
    ("conv", torch.float32, 64): Config(64, 64, 32),
    ("grad_weight", torch.float32, FLAT): Config(64, 32, 32),
    ("grad_weight", torch.float32, 16): Config(64, 16, 32),
    ("grad_weight", torch.float32, 32): Config(64, 32, 32),
    ("grad_weight", torch.float32, 64): Config(64, 64, 32),
}
for _half in (torch.float16, torch.bfloat16):
    TABLE |= {
        ("conv", _half, FLAT): Config(64, 64, 16),
        ("conv", _half, 16): Config(128, 16, 64),
        ("conv", _half, 32): Config(128, 32, 64),
        ("conv", _half, 64): Config(128, 64, 64),
        ("grad_weight", _half, FLAT): Config(64, 32, 32),
        ("grad_weight", _half, 16): Config(64, 16, 64),
        ("grad_weight", _half, 32): Config(64, 32, 64),
        ("grad_weight", _half, 64): Config(64, 64, 64),
    }


def is_flat(in_channels: int) -> bool:
    """Whether a tap has so few channels that one block spans several taps."""
    return in_channels < 16


def bucket_of(num_n: int, *, flat: bool) -> int:
    """The column of the table; wider layers take several blocks of 64."""
    return FLAT if flat else next((size for size in (16, 32) if num_n <= size), 64)


def choose_config(op: Op, dtype: torch.dtype, num_m: int, num_n: int, num_k: int, *, flat: bool) -> Config:
    """The row of the table, with blocks no larger than what they cover."""
    config = TABLE[op, dtype, bucket_of(num_n, flat=flat)]
    return replace(
        config,
        block_m=min(config.block_m, _cover(num_m)),
        block_n=min(config.block_n, _cover(num_n)),
        block_k=min(config.block_k, _cover(num_k)),
    )


def _cover(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())  # tl.dot reduces at least 16, and pads smaller sides to 16
