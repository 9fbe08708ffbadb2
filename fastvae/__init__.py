"""fastvae: kernel-accelerated expressive VAEs for PyTorch."""

from . import ops
from .ops import backend

__all__ = ["backend", "ops"]
__version__ = "0.1.0"
