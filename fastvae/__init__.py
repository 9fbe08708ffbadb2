"""fastvae: kernel-accelerated expressive VAEs for PyTorch."""

from . import acceleration, data, distributions, evaluation, models, nn, objectives, ops, sampling, training
from .acceleration import accelerate, restore
from .evaluation import LogWeights, log_likelihood
from .ops import backend
from .sampling import compile_sampler

__all__ = [
    "LogWeights",
    "accelerate",
    "acceleration",
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
    "restore",
    "sampling",
    "training",
]
__version__ = "0.1.0"
