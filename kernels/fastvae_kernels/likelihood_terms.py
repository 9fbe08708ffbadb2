"""What the kernels of likelihoods share: logarithms that keep their digits, sums of exponentials, loadable data."""

import torch
import triton
import triton.language as tl

__all__ = ["add_to_logsumexp", "loadable", "log1mexp", "log1p", "softplus"]


@triton.jit
def log1p(y):
    # by its classic correction: log(1 + y) alone is 0 for y below 6e-8 and loses digits long before
    u = 1.0 + y
    return tl.where(u == 1.0, y, tl.log(u) * (y / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def softplus(t):
    return tl.maximum(t, 0.0) + log1p(tl.exp(-tl.abs(t)))


@triton.jit
def log1mexp(w, log_w):
    """log(1 - exp(-w)) for w >= 0 and its logarithm, which may be below what w itself can hold."""
    h = 0.5 * w
    q = h * h
    # log(sinh(h) / h) as a series: nothing cancels, and its error for w < 1 is 3e-10
    small = log_w - h + q * (1.0 / 6.0 - q * (1.0 / 180.0 - q * (1.0 / 2835.0 - q * (1.0 / 37800.0))))
    return tl.where(w < 1.0, small, log1p(-tl.exp(-w)))


@triton.jit
def add_to_logsumexp(maximum, total, value):
    """The running pair (m, s) of log sum exp = m + log s, started at (-inf, 0), with one more value."""
    new = tl.maximum(maximum, value)
    shift = tl.where(new == float("-inf"), 0.0, new)  # only zeros so far: -inf - -inf would be nan
    return new, total * tl.exp(maximum - shift) + tl.exp(value - shift)


def loadable(x: torch.Tensor) -> torch.Tensor:
    """Data as a kernel can load them: booleans as bytes."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x
