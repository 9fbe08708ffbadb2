"""Comparisons on a card: float32 convolutions in float32, not in TF32, whose errors would hide a difference."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["exact_products"]


@contextmanager
def exact_products() -> Iterator[None]:
    """Inside, cuDNN and cuBLAS do not round float32 to TF32."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cudnn, matmul
