"""The definitions: one plain PyTorch function per operator, any dtype, importable anywhere."""

from .bernoulli_log_prob import bernoulli_log_prob
from .locally_masked_conv2d import locally_masked_conv2d, unpack_tap_bits
from .log_weights import STATE_ROWS, empty_log_weights, merge_log_weights, update_log_weights
from .masked_conv2d import count_live_taps, masked_conv2d, raster_mask
from .philox import philox

__all__ = [
    "STATE_ROWS",
    "bernoulli_log_prob",
    "count_live_taps",
    "empty_log_weights",
    "locally_masked_conv2d",
    "masked_conv2d",
    "merge_log_weights",
    "philox",
    "raster_mask",
    "unpack_tap_bits",
    "update_log_weights",
]
