"""What the launches of the masked convolution kernels share: layout, architecture, precision, options."""

import torch

from .locally_masked_conv2d_config import Config as LocalConfig
from .masked_conv2d_config import Config

__all__ = ["arch_of", "meta_of", "nhwc", "precision_of"]


def nhwc(x: torch.Tensor) -> torch.Tensor:
    """``x`` in the layout that the kernels read, at an aligned address."""
    x = x.contiguous(memory_format=torch.channels_last)
    # an unaligned pointer costs the kernels all their registers and more
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.channels_last)


def arch_of(x: torch.Tensor) -> int | None:
    """10 * major + minor of its card's compute capability, None under the interpreter."""
    if not x.is_cuda:
        return None
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def precision_of(dtype: torch.dtype) -> str:
    """How float32 factors are multiplied, as PyTorch is told to: "highest" keeps their 24 bits in three products."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def meta_of(config: Config | LocalConfig) -> dict[str, int | bool]:
    """The launch options of a configuration."""
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }
