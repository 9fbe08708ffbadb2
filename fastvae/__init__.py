"""fastvae: kernel-accelerated expressive VAEs for PyTorch."""

from . import data, distributions, evaluation, models, nn, objectives, ops, sampling, training
from .evaluation import LogWeights, log_likelihood
from .ops import backend
from .sampling import compile_sampler

__all__ = [
    "LogWeights",
    "backend",
    "compile_sampler",
    "data",
    "distributions",
    "evaluation",
    "log_likelihood",
    "models",
    "nn",
    "objectives",
    "ops",
    "sampling",
    "training",
]
__version__ = "0.1.0"
