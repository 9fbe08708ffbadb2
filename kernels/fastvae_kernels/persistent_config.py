"""Launch configurations of the persistent sampling kernels: how many rows a program owns."""

from dataclasses import dataclass

import torch

from .masked_conv2d_launch import precision_of

__all__ = ["MOST_REGISTERS", "TABLE", "Config", "choose_config", "why_not"]


# of a thread: all there are, else the assembler spills a few to fit a third program, which has nothing to do anyway
MOST_REGISTERS = 255


@dataclass(frozen=True)
class Config:
    """A program owns ``rows`` rows, (slots of the wavefront) x (images), a power of two."""

    rows: int
    num_warps: int = 4
    num_stages: int = 3


# (kernel, element type or precision of float32, channels up to) -> the smallest tile first: none is measured yet, all
# compile without spills for sm_80, sm_90 and sm_100. A layer's activations and sums live in the registers of one
# program, hence the ends.
TABLE: dict[tuple[str, str, int], tuple[Config, ...]] = {
    ("plain", "half", 64): (Config(16, num_stages=2), Config(32)),
    ("plain", "half", 128): (Config(16, num_warps=8), Config(32, num_warps=8)),
    ("plain", "tf32", 64): (Config(16),),
    ("plain", "tf32x3", 64): (Config(16),),
    ("gated", "half", 64): (Config(16),),
    ("gated", "tf32", 64): (Config(16, num_warps=8),),
    ("gated", "tf32x3", 64): (Config(16, num_warps=8),),
}


def choose_config(
    kernel: str, dtype: torch.dtype, channels: int, slots: int, num_images: int, processors: int
) -> Config:
    """The smallest tile that holds the slots of an image, a larger one where all processors have two of it anyway."""
    fitting = [config for config in _configs(kernel, dtype, channels) if config.rows >= slots]
    chosen = fitting[0]
    for config in fitting[1:]:
        if num_images > 2 * processors * (config.rows // slots):
            chosen = config
    return chosen


def why_not(kernel: str, dtype: torch.dtype, channels: int, slots: int) -> str | None:
    """Why no configuration serves a net whose wavefront has so many slots; None if one does."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels compute in float32 and halves of it, the net in {dtype}"
    configs = _configs(kernel, dtype, channels)
    if not configs:
        most = max(size for name, kind, size in TABLE if (name, kind) == (kernel, _kind(dtype)))
        return f"the kernel holds up to {most} channels in {dtype}, the net has {channels}"
    if slots > configs[-1].rows:
        return f"up to {slots} pixels of an image are drawn in one step, the kernel holds {configs[-1].rows}"
    return None


def _kind(dtype: torch.dtype) -> str:
    return precision_of(dtype) if dtype == torch.float32 else "half"


def _configs(kernel: str, dtype: torch.dtype, channels: int) -> tuple[Config, ...]:
    kind = _kind(dtype)
    return next((row for (*key, most), row in TABLE.items() if key == [kernel, kind] and channels <= most), ())
