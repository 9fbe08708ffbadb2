"""The definitions: one plain PyTorch function per operator, any dtype, importable anywhere."""

from .bernoulli_log_prob import bernoulli_log_prob
from .categorical_log_prob import categorical_log_prob
from .gated_masked_conv2d import gate, gated_masked_conv2d
from .gaussian_log_prob import gaussian_log_prob
from .linear_log_prob import (
    linear_bernoulli_log_prob,
    linear_categorical_log_prob,
    linear_gaussian_log_prob,
    linear_logistic_mixture_log_prob,
)
from .locally_masked_conv2d import locally_masked_conv2d, unpack_tap_bits
from .log_weights import STATE_ROWS, empty_log_weights, merge_log_weights, update_log_weights
from .logistic_mixture_log_prob import logistic_mixture_log_prob, logistic_mixture_means, logistic_mixture_parts
from .masked_conv2d import colour_groups, count_live_taps, masked_conv2d, named_mask, raster_mask
from .masked_mlp import masked_mlp_params, parse_program, solve_masked_mlp
from .masked_residual import activate, masked_residual
from .nade import nade_logits, nade_sample
from .philox import philox

__all__ = [
    "STATE_ROWS",
    "activate",
    "bernoulli_log_prob",
    "categorical_log_prob",
    "colour_groups",
    "count_live_taps",
    "empty_log_weights",
    "gate",
    "gated_masked_conv2d",
    "gaussian_log_prob",
    "linear_bernoulli_log_prob",
    "linear_categorical_log_prob",
    "linear_gaussian_log_prob",
    "linear_logistic_mixture_log_prob",
    "locally_masked_conv2d",
    "logistic_mixture_log_prob",
    "logistic_mixture_means",
    "logistic_mixture_parts",
    "masked_conv2d",
    "masked_mlp_params",
    "masked_residual",
    "merge_log_weights",
    "nade_logits",
    "nade_sample",
    "named_mask",
    "parse_program",
    "philox",
    "raster_mask",
    "solve_masked_mlp",
    "unpack_tap_bits",
    "update_log_weights",
]
