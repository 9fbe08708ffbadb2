"""The functional API: validate, dispatch to the fastest implementation, differentiate."""

from ._dispatch import backend
from .bernoulli_log_prob import bernoulli_log_prob
from .categorical_log_prob import categorical_log_prob
from .gated_masked_conv2d import gated_masked_conv2d
from .gaussian_log_prob import gaussian_log_prob
from .linear_bernoulli_log_prob import linear_bernoulli_log_prob
from .linear_categorical_log_prob import linear_categorical_log_prob
from .linear_gaussian_log_prob import linear_gaussian_log_prob
from .locally_masked_conv2d import locally_masked_conv2d
from .log_weights import empty_log_weights, merge_log_weights, update_log_weights
from .logistic_mixture_log_prob import logistic_mixture_log_prob, logistic_mixture_parts
from .masked_conv2d import masked_conv2d
from .masked_mlp import sample_masked_mlp, solve_masked_mlp
from .masked_mlp_plan import MaskedMLPPlan, NotAutoregressiveError, plan_masked_mlp
from .masked_residual import masked_residual
from .nade import nade_log_prob, nade_logits, nade_sample
from .orders import generation_order, orientations
from .random import normal, uniform
from .tap_bits import tap_bits

__all__ = [
    "MaskedMLPPlan",
    "NotAutoregressiveError",
    "backend",
    "bernoulli_log_prob",
    "categorical_log_prob",
    "empty_log_weights",
    "gated_masked_conv2d",
    "gaussian_log_prob",
    "generation_order",
    "linear_bernoulli_log_prob",
    "linear_categorical_log_prob",
    "linear_gaussian_log_prob",
    "locally_masked_conv2d",
    "logistic_mixture_log_prob",
    "logistic_mixture_parts",
    "masked_conv2d",
    "masked_residual",
    "merge_log_weights",
    "nade_log_prob",
    "nade_logits",
    "nade_sample",
    "normal",
    "orientations",
    "plan_masked_mlp",
    "sample_masked_mlp",
    "solve_masked_mlp",
    "tap_bits",
    "uniform",
    "update_log_weights",
]
