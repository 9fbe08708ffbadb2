"""Launch configurations of the masked convolution kernels, and where they are known to be the fastest."""

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch

__all__ = ["FLAT", "TABLE", "Config", "Ending", "Op", "bucket_of", "choose_config", "fitted", "is_fastest", "is_flat"]

Op = Literal["conv", "block", "grad_weight"]
Ending = Literal["plain", "gated", "residual"]


@dataclass(frozen=True)
class Config:
    """One launch: tile sizes in elements, and how the compiler pipelines them.

    For ``conv`` (forward and input gradient) and ``block`` (forward with a gate, an activation or a residual) a
    program makes block_m pixels x block_n output channels and reduces block_k input channels of one tap at a time.
    For ``grad_weight`` it makes block_m output channels x block_n input channels, of one tap or of several where
    block_n is more than there are input channels, and reduces block_k pixels at a time.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4  # 8 warps gave silently wrong convolutions elsewhere (pytorch#173068): only verified rows
    num_stages: int = 3
    # the endings with which it was measured to beat the best of PyTorch, forward and backward, on this architecture:
    # "plain" against the cropped cuDNN convolution, "gated" and "residual" against the compiled block
    fastest: frozenset[Ending] = frozenset()


AnyConfig = TypeVar("AnyConfig", bound=Any)  # of this table or of that for locally masked convolution
ENOUGH = 256  # programs: with fewer, multiprocessors of a large card would idle
FLAT = 0  # the bucket of layers with so few input channels that one block spans several taps

# (op, architecture or None for all others, element type, bucket of the channels that block_n covers)
TABLE: dict[tuple[Op, int | None, torch.dtype, int], Config] = {
    ("conv", None, torch.float32, FLAT): Config(64, 64, 16),
    ("conv", None, torch.float32, 16): Config(128, 16, 32, num_stages=2),
    ("conv", None, torch.float32, 32): Config(128, 32, 32, num_stages=2),
    ("conv", None, torch.float32, 64): Config(64, 64, 32),
    ("conv", None, torch.float32, 128): Config(64, 64, 32),
    ("grad_weight", None, torch.float32, FLAT): Config(64, 32, 32, num_stages=2),  # 64 x 64 spills on sm_80
    ("grad_weight", None, torch.float32, 16): Config(64, 64, 32, num_stages=2),
    ("grad_weight", None, torch.float32, 32): Config(32, 128, 32, num_stages=2),
    ("grad_weight", None, torch.float32, 64): Config(64, 64, 32),
    ("grad_weight", None, torch.float32, 128): Config(64, 64, 32),
}
for _half in (torch.float16, torch.bfloat16):
    TABLE |= {
        ("conv", None, _half, FLAT): Config(64, 64, 32),
        ("conv", None, _half, 16): Config(128, 16, 64, num_stages=2),
        ("conv", None, _half, 32): Config(256, 32, 32, num_stages=2),
        ("conv", None, _half, 64): Config(128, 64, 32),
        ("conv", None, _half, 128): Config(128, 64, 32),  # 128 x 128 spills on sm_80
        ("grad_weight", None, _half, FLAT): Config(64, 64, 32),
        ("grad_weight", None, _half, 16): Config(64, 64, 64, num_stages=2),
        ("grad_weight", None, _half, 32): Config(32, 128, 64, num_stages=2),
        ("grad_weight", None, _half, 64): Config(64, 128, 64, num_stages=2),
        ("grad_weight", None, _half, 128): Config(64, 128, 64),
    }
# a gate or a residual needs registers of its own: 128 x 128 spills on sm_90 and sm_100
TABLE |= {("block", None, *key[2:]): row for key, row in TABLE.items() if key[:2] == ("conv", None)}
for _half in (torch.float16, torch.bfloat16):
    TABLE |= {
        ("block", 80, _half, 64): Config(64, 64, 32),  # 128 x 64 spills with Triton 3.6
        ("conv", 90, _half, 128): Config(128, 128, 32),
        ("conv", 100, _half, 64): Config(256, 64, 32, num_stages=2),
        ("conv", 100, _half, 128): Config(128, 128, 32, num_stages=2),
        ("grad_weight", 90, _half, 128): Config(128, 128, 64, num_stages=2),  # spills on sm_100
        ("grad_weight", 100, _half, 64): Config(64, 64, 64),  # 64 x 128 spills
    }
for _arch in (90, 100):
    TABLE |= {
        ("conv", _arch, torch.float32, 64): Config(128, 64, 16),
        ("conv", _arch, torch.float32, 128): Config(128, 64, 16),
        ("grad_weight", _arch, torch.float32, FLAT): Config(64, 64, 32, num_stages=2),
        ("grad_weight", _arch, torch.float32, 64): Config(64, 128, 32, num_stages=2),  # spills on sm_80
    }
TABLE["grad_weight", 100, torch.float32, 128] = Config(64, 64, 32, num_stages=2)  # three stages spill with Triton 3.6


def is_flat(in_channels: int) -> bool:
    """Whether a tap has so few channels that one block spans several taps."""
    return in_channels < 16


def bucket_of(num_n: int, *, flat: bool) -> int:
    """The column of the table."""
    return FLAT if flat else next((size for size in (16, 32, 64) if num_n <= size), 128)


def choose_config(
    op: Op, arch: int | None, dtype: torch.dtype, num_m: int, num_n: int, num_k: int, *, flat: bool, taps: int = 1
) -> Config:
    """The row of the table, with blocks no larger than what they cover: block_n ``taps`` times ``num_n`` at most.

    ``arch`` is 10 * major + minor of the compute capability, None for the default rows.
    """
    bucket = bucket_of(num_n, flat=flat)
    config = TABLE.get((op, arch, dtype, bucket)) or TABLE[op, None, dtype, bucket]
    return fitted(config, num_m, num_n * taps, num_k, divided=op == "grad_weight")


def fitted(config: AnyConfig, num_m: int, num_n: int, num_k: int, *, divided: bool) -> AnyConfig:
    """``config`` with blocks no larger than what they cover, and where nobody divides the sum enough of them."""
    block_m, block_n = min(config.block_m, _cover(num_m)), min(config.block_n, _cover(num_n))
    while not divided and block_m > 64 and -(-num_m // block_m) * -(-num_n // block_n) < ENOUGH:
        block_m //= 2
    return replace(config, block_m=block_m, block_n=block_n, block_k=min(config.block_k, _cover(num_k)))


def is_fastest(
    capability: tuple[int, int], dtype: torch.dtype, in_channels: int, out_channels: int, ending: Ending = "plain"
) -> bool:
    """Whether forward and both gradients were measured to be faster than PyTorch's best alternative."""
    arch, flat = 10 * capability[0] + capability[1], is_flat(in_channels)
    keys: list[tuple[Op, int | None, torch.dtype, int]] = [
        ("conv" if ending == "plain" else "block", arch, dtype, bucket_of(out_channels, flat=flat)),
        ("conv", arch, dtype, bucket_of(in_channels, flat=is_flat(out_channels))),
        ("grad_weight", arch, dtype, bucket_of(in_channels, flat=flat)),
    ]
    return all(key in TABLE and ending in TABLE[key].fastest for key in keys)


def _cover(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())  # tl.dot reduces at least 16, and pads smaller sides to 16
