"""Launch configurations of the masked convolution kernels, and where they are known to be the fastest."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

__all__ = ["TABLE", "Config", "Op", "choose_config", "is_fastest", "is_flat"]

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
    fastest: bool = False  # measured to beat the cropped cuDNN convolution, forward and backward, on this architecture


# (op, architecture or None for all others, element type, bucket of the channels that block_n covers)
TABLE: dict[tuple[Op, int | None, torch.dtype, int], Config] = {
    ("conv", None, torch.float32, 16): Config(64, 16, 32),
    ("conv", None, torch.float32, 32): Config(64, 32, 32),
    ("conv", None, torch.float32, 64): Config(64, 64, 32),
    ("conv", None, torch.float32, 128): Config(64, 64, 32),
    ("conv", None, torch.float16, 16): Config(128, 16, 64),
    ("conv", None, torch.float16, 32): Config(128, 32, 64),
    ("conv", None, torch.float16, 64): Config(128, 64, 64),
    ("conv", None, torch.float16, 128): Config(128, 128, 64),
    ("conv", None, torch.bfloat16, 16): Config(128, 16, 64),
    ("conv", None, torch.bfloat16, 32): Config(128, 32, 64),
    ("conv", None, torch.bfloat16, 64): Config(128, 64, 64),
    ("conv", None, torch.bfloat16, 128): Config(128, 128, 64),
    ("grad_weight", None, torch.float32, 16): Config(64, 16, 32),
    ("grad_weight", None, torch.float32, 32): Config(64, 32, 32),
    ("grad_weight", None, torch.float32, 64): Config(64, 64, 32),
    ("grad_weight", None, torch.float32, 128): Config(64, 64, 32),
    ("grad_weight", None, torch.float16, 16): Config(64, 16, 64),
    ("grad_weight", None, torch.float16, 32): Config(64, 32, 64),
    ("grad_weight", None, torch.float16, 64): Config(64, 64, 64),
    ("grad_weight", None, torch.float16, 128): Config(64, 128, 64),
    ("grad_weight", None, torch.bfloat16, 16): Config(64, 16, 64),
    ("grad_weight", None, torch.bfloat16, 32): Config(64, 32, 64),
    ("grad_weight", None, torch.bfloat16, 64): Config(64, 64, 64),
    ("grad_weight", None, torch.bfloat16, 128): Config(64, 128, 64),
}


def choose_config(op: Op, arch: int | None, dtype: torch.dtype, num_m: int | None, num_n: int, num_k: int) -> Config:
    """The row of the table, with blocks no larger than what they cover (None: many).

    ``arch`` is 10 * major + minor of the compute capability.
    """
    bucket = next((size for size in (16, 32, 64) if num_n <= size), 128)
    config = TABLE.get((op, arch, dtype, bucket)) or TABLE[op, None, dtype, bucket]
    return replace(
        config,
        block_m=config.block_m if num_m is None else min(config.block_m, _cover(num_m)),
        block_k=min(config.block_k, _cover(num_k)),
    )


def is_flat(num_channels: int) -> bool:
    """Whether a tap has so few channels that one block covers several taps."""
    return num_channels < 16


def is_fastest(capability: tuple[int, int], dtype: torch.dtype, in_channels: int, out_channels: int) -> bool:
    """Whether forward and both gradients were measured to be faster than PyTorch's best alternative."""
    arch = 10 * capability[0] + capability[1]
    rows = (
        choose_config("conv", arch, dtype, None, out_channels, in_channels),
        choose_config("conv", arch, dtype, None, in_channels, out_channels),
        choose_config("grad_weight", arch, dtype, out_channels, in_channels, 1 << 20),
    )
    return all(row.fastest for row in rows)


def _cover(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())  # tl.dot reduces at least 16, and pads fewer rows than 16
