"""fastvae: kernel-accelerated expressive VAEs for PyTorch."""

from . import ops
from .evaluation import log_likelihood
from .ops import backend
from .sampling import compile_sampler

__all__ = ["backend", "compile_sampler", "log_likelihood", "ops"]
__version__ = "0.1.0"
