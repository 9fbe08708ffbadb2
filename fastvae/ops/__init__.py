"""The functional API: validate, dispatch to the fastest implementation, differentiate."""

from ._dispatch import backend
from .bernoulli_log_prob import bernoulli_log_prob
from .log_weights import empty_log_weights, merge_log_weights, update_log_weights
from .masked_conv2d import masked_conv2d
from .random import normal, uniform

__all__ = [
    "backend",
    "bernoulli_log_prob",
    "empty_log_weights",
    "masked_conv2d",
    "merge_log_weights",
    "normal",
    "uniform",
    "update_log_weights",
]
