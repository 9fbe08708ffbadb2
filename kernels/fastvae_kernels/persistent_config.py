"""Launch configurations of the persistent sampling kernels: how many rows a program owns."""

from dataclasses import dataclass

import torch

__all__ = ["MOST_CHANNELS", "TABLE", "Config", "choose_config", "images_per_program", "why_too_large"]

MOST_CHANNELS = 128  # a layer's activations and sums live in the registers of one program


@dataclass(frozen=True)
class Config:
    """A program owns at most ``most_rows`` rows of (slots of the wavefront) x (images), and at least 16."""

    most_rows: int
    num_warps: int = 4
    num_stages: int = 3


# (kernel, element type, channels up to): none is measured yet, all compile without spills for sm_80, sm_90 and sm_100
TABLE: dict[tuple[str, torch.dtype, int], Config] = {
    ("plain", torch.float32, 64): Config(16),
    ("plain", torch.float32, 128): Config(16, num_warps=8),
    ("gated", torch.float32, 64): Config(16, num_warps=8),
    ("gated", torch.float32, 128): Config(16, num_warps=8),
}
for _half in (torch.float16, torch.bfloat16):
    TABLE |= {
        ("plain", _half, 64): Config(32),
        ("plain", _half, 128): Config(32, num_warps=8),
        ("gated", _half, 64): Config(16),
        ("gated", _half, 128): Config(16, num_warps=8),
    }


def choose_config(kernel: str, dtype: torch.dtype, channels: int) -> Config:
    """The row of the table; ``channels`` a power of two up to ``MOST_CHANNELS``."""
    return TABLE[kernel, dtype, 64 if channels <= 64 else 128]


def images_per_program(config: Config, slots: int, num_images: int, processors: int) -> int:
    """As few as fill 16 rows, more where all processors have two programs anyway; a power of two."""
    images = max(1, 16 // slots)
    while slots * images < config.most_rows and num_images > 2 * processors * images:
        images *= 2
    return images


def why_too_large(config: Config, slots: int) -> str | None:
    """Why a wavefront of so many slots does not fit into a program."""
    if slots <= max(16, config.most_rows):
        return None
    return f"up to {slots} pixels of an image are drawn in one step, the kernel holds {config.most_rows}"
