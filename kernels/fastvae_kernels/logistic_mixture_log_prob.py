"""Log-likelihood of levels under a mixture of discretised logistics, and its gradient: one read of the parameters."""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .likelihood_terms import add_to_logsumexp, exp, loadable, log1mexp, sigmoid, softplus

__all__ = ["Config", "config", "logistic_mixture_log_prob_backward", "logistic_mixture_log_prob_forward"]

# Of P parameters the first K are the logits of the components. Then for each channel K means, K log-scales and, of
# three channels, K coefficients: of the second on the first, of the third on the first, of the third on the second.
# TOP is the last level; levels are scaled to [-1, 1], where a bin reaches 1 / TOP to either side.


@dataclass(frozen=True)
class Config:
    """Launch configuration of both kernels: a thread has all parameters of one of ``block_sites`` pixels."""

    block_sites: int
    num_warps: int


def config(num_sites: int) -> Config:
    """The configuration for images of ``num_sites`` pixels; no timing at run time."""
    sites = min(128, triton.next_power_of_2(num_sites))
    return Config(block_sites=sites, num_warps=max(1, sites // 32))


@triton.jit
def _load(pixel_ptr, parameter, step, live):
    return tl.load(pixel_ptr + parameter * step, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _tanh(t):
    return 2.0 * sigmoid(2.0 * t) - 1.0


@triton.jit
def _scaled(x, TOP: tl.constexpr):
    return (2.0 * x - TOP) / TOP


@triton.jit
def _edges(scaled, mean, log_scale, TOP: tl.constexpr):
    """Distance from the mean, 1 / s, and the edges of the bin in units of s from the mean."""
    distance = scaled - mean
    # beyond e^60 and below e^-60 a scale changes no digit, but its inverse would overflow
    inverse = exp(-tl.minimum(tl.maximum(log_scale, -60.0), 60.0))
    half = (1.0 / TOP) * inverse
    return distance, inverse, distance * inverse + half, distance * inverse - half


@triton.jit
def _log_mass(x, above, below, inverse, log_scale, TOP: tl.constexpr, LOG_WIDTH: tl.constexpr):
    """Logarithm of the mass between the edges, of all beyond them at the first and last level: no difference of
    probabilities, no clamp."""
    inner = log1mexp((2.0 / TOP) * inverse, LOG_WIDTH - log_scale)
    total = tl.where((x <= 0.0) | (x >= TOP), 0.0, inner)
    total -= tl.where(x >= TOP, 0.0, softplus(-above))
    return total - tl.where(x <= 0.0, 0.0, softplus(below))


@triton.jit
def _channel(x, mean, log_scale, TOP: tl.constexpr, LOG_WIDTH: tl.constexpr):
    """Log-probability of level ``x``."""
    _, inverse, above, below = _edges(_scaled(x, TOP), mean, log_scale, TOP)
    return _log_mass(x, above, below, inverse, log_scale, TOP, LOG_WIDTH)


@triton.jit
def _channel_backward(x, mean, log_scale, TOP: tl.constexpr):
    """Derivatives of the log-probability of level ``x`` by the mean and the log-scale."""
    distance, inverse, above, below = _edges(_scaled(x, TOP), mean, log_scale, TOP)
    at_upper = tl.where(x >= TOP, 0.0, sigmoid(-above))
    at_lower = tl.where(x <= 0.0, 0.0, sigmoid(below))
    by_mean = (at_lower - at_upper) * inverse
    # of log(1 - e^-w) by -log w: w / (e^w - 1), as a series where that cancels
    w = (2.0 / TOP) * inverse
    series = 1.0 - 0.5 * w + w * w * (1.0 / 12.0 - w * w * (1.0 / 720.0))
    by_width = tl.where(w < 0.25, series, w / (exp(w) - 1.0))
    by_width = tl.where((x <= 0.0) | (x >= TOP), 0.0, by_width)
    return by_mean, distance * by_mean - (1.0 / TOP) * inverse * (at_upper + at_lower) - by_width


@triton.jit
def _means(pixel_ptr, k, x0, x1, step, live, TOP: tl.constexpr, NUM_COMPONENTS: tl.constexpr):
    """Of component ``k`` of three channels: the means, which follow the channels before, and tanh of coefficients."""
    a = _tanh(_load(pixel_ptr, 3 * NUM_COMPONENTS + k, step, live))
    b = _tanh(_load(pixel_ptr, 6 * NUM_COMPONENTS + k, step, live))
    c = _tanh(_load(pixel_ptr, 9 * NUM_COMPONENTS + k, step, live))
    red, green = _scaled(x0, TOP), _scaled(x1, TOP)
    mean0 = _load(pixel_ptr, NUM_COMPONENTS + k, step, live)
    mean1 = _load(pixel_ptr, 4 * NUM_COMPONENTS + k, step, live) + a * red
    mean2 = _load(pixel_ptr, 7 * NUM_COMPONENTS + k, step, live) + b * red + c * green
    return mean0, mean1, mean2, a, b, c


@triton.jit
def _component(
    pixel_ptr,
    k,
    x0,
    x1,
    x2,
    step,
    live,
    TOP: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    NUM_COMPONENTS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
):
    """Log-probability of all channels under component ``k``."""
    if NUM_CHANNELS == 1:
        mean0 = _load(pixel_ptr, NUM_COMPONENTS + k, step, live)
    else:
        mean0, mean1, mean2, _, _, _ = _means(pixel_ptr, k, x0, x1, step, live, TOP, NUM_COMPONENTS)
    total = _channel(x0, mean0, _load(pixel_ptr, 2 * NUM_COMPONENTS + k, step, live), TOP, LOG_WIDTH)
    if NUM_CHANNELS == 3:
        total += _channel(x1, mean1, _load(pixel_ptr, 5 * NUM_COMPONENTS + k, step, live), TOP, LOG_WIDTH)
        total += _channel(x2, mean2, _load(pixel_ptr, 8 * NUM_COMPONENTS + k, step, live), TOP, LOG_WIDTH)
    return total


@triton.jit
def _store_component_gradient(
    out_ptr,
    pixel_ptr,
    k,
    weight,
    x0,
    x1,
    x2,
    step,
    live,
    TOP: tl.constexpr,
    NUM_COMPONENTS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
):
    """``weight``: the gradient of the component's log-probability. Stores come last: what was computed for that
    log-probability is not computed again, as it were behind a store that could have changed the parameters."""
    scale0 = _load(pixel_ptr, 2 * NUM_COMPONENTS + k, step, live)
    if NUM_CHANNELS == 1:
        mean0 = _load(pixel_ptr, NUM_COMPONENTS + k, step, live)
        mean_0, scale_0 = _channel_backward(x0, mean0, scale0, TOP)
    else:
        scale1 = _load(pixel_ptr, 5 * NUM_COMPONENTS + k, step, live)
        scale2 = _load(pixel_ptr, 8 * NUM_COMPONENTS + k, step, live)
        mean0, mean1, mean2, a, b, c = _means(pixel_ptr, k, x0, x1, step, live, TOP, NUM_COMPONENTS)
        mean_0, scale_0 = _channel_backward(x0, mean0, scale0, TOP)
        mean_1, scale_1 = _channel_backward(x1, mean1, scale1, TOP)
        mean_2, scale_2 = _channel_backward(x2, mean2, scale2, TOP)
    tl.store(out_ptr + (NUM_COMPONENTS + k) * step, weight * mean_0, mask=live)
    tl.store(out_ptr + (2 * NUM_COMPONENTS + k) * step, weight * scale_0, mask=live)
    if NUM_CHANNELS == 3:
        red, green = _scaled(x0, TOP), _scaled(x1, TOP)
        tl.store(out_ptr + (3 * NUM_COMPONENTS + k) * step, weight * mean_1 * red * (1.0 - a * a), mask=live)
        tl.store(out_ptr + (4 * NUM_COMPONENTS + k) * step, weight * mean_1, mask=live)
        tl.store(out_ptr + (5 * NUM_COMPONENTS + k) * step, weight * scale_1, mask=live)
        tl.store(out_ptr + (6 * NUM_COMPONENTS + k) * step, weight * mean_2 * red * (1.0 - b * b), mask=live)
        tl.store(out_ptr + (7 * NUM_COMPONENTS + k) * step, weight * mean_2, mask=live)
        tl.store(out_ptr + (8 * NUM_COMPONENTS + k) * step, weight * scale_2, mask=live)
        tl.store(out_ptr + (9 * NUM_COMPONENTS + k) * step, weight * mean_2 * green * (1.0 - c * c), mask=live)


@triton.jit
def _kernel(
    # pointers
    x_ptr,
    params_ptr,
    grad_ptr,
    out_ptr,
    # sizes
    num_data,
    # strides
    stride_params_row,
    stride_params_param,
    stride_params_site,
    # meta
    TOP: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    NUM_COMPONENTS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    NUM_SITES: tl.constexpr,
    BLOCK_SITES: tl.constexpr,
    SUM_SITES: tl.constexpr,
    IS_BACKWARD: tl.constexpr,
):
    """Log-probabilities into ``out_ptr``, partial sums or each, or the gradient of the parameters in their strides."""
    num_blocks: tl.constexpr = (NUM_SITES + BLOCK_SITES - 1) // BLOCK_SITES
    place = tl.program_id(0) // num_blocks
    row = place.to(tl.int64)
    sites = (tl.program_id(0) % num_blocks) * BLOCK_SITES + tl.arange(0, BLOCK_SITES)
    live = sites < NUM_SITES
    step = (row - row) + stride_params_param  # 64 bits
    pixel = row * stride_params_row + sites * stride_params_site
    # the data repeat: one block of them for every importance sample; a remainder of 64 bits would be a call
    data = (place % num_data).to(tl.int64) * (NUM_CHANNELS * NUM_SITES) + sites
    x0 = tl.load(x_ptr + data, mask=live, other=0).to(tl.float32)
    x1, x2 = x0, x0
    if NUM_CHANNELS == 3:
        x1 = tl.load(x_ptr + data + NUM_SITES, mask=live, other=0).to(tl.float32)
        x2 = tl.load(x_ptr + data + 2 * NUM_SITES, mask=live, other=0).to(tl.float32)
    # log sum exp = maximum + log(total), of the logits and then of all that a component contributes
    prior_maximum = tl.full([BLOCK_SITES], float("-inf"), tl.float32)
    prior_total = tl.zeros([BLOCK_SITES], tl.float32)
    for k in range(NUM_COMPONENTS):
        logit = _load(params_ptr + pixel, k, step, live)
        prior_maximum, prior_total = add_to_logsumexp(prior_maximum, prior_total, logit)
    prior_log = tl.log(prior_total)
    maximum = tl.full([BLOCK_SITES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_SITES], tl.float32)
    for k in range(NUM_COMPONENTS):
        # in this order: the difference is exact where logits are large
        prior = (_load(params_ptr + pixel, k, step, live) - prior_maximum) - prior_log
        joint = prior + _component(
            params_ptr + pixel, k, x0, x1, x2, step, live, TOP, LOG_WIDTH, NUM_COMPONENTS, NUM_CHANNELS
        )
        maximum, total = add_to_logsumexp(maximum, total, joint)
    if IS_BACKWARD:
        if SUM_SITES:
            grad = tl.load(grad_ptr + row).to(tl.float32)
        else:
            grad = tl.load(grad_ptr + row * NUM_SITES + sites, mask=live, other=0.0).to(tl.float32)
        log_total = tl.log(total)
        for k in range(NUM_COMPONENTS):  # read again, from the cache
            prior = (_load(params_ptr + pixel, k, step, live) - prior_maximum) - prior_log
            joint = prior + _component(
                params_ptr + pixel, k, x0, x1, x2, step, live, TOP, LOG_WIDTH, NUM_COMPONENTS, NUM_CHANNELS
            )
            posterior = exp((joint - maximum) - log_total)
            _store_component_gradient(
                out_ptr + pixel,
                params_ptr + pixel,
                k,
                grad * posterior,
                x0,
                x1,
                x2,
                step,
                live,
                TOP,
                NUM_COMPONENTS,
                NUM_CHANNELS,
            )
            tl.store(out_ptr + pixel + k * step, grad * (posterior - exp(prior)), mask=live)
    else:
        terms = tl.where(live, maximum + tl.log(total), 0.0)
        if SUM_SITES:
            tl.store(out_ptr + tl.program_id(0), tl.sum(terms, axis=0))
        else:
            tl.store(out_ptr + row * NUM_SITES + sites, terms, mask=live)


def logistic_mixture_log_prob_forward(
    x: torch.Tensor, params: torch.Tensor, num_levels: int, sum_sites: bool = True
) -> torch.Tensor:
    """``x`` (X, C, S), contiguous, and ``params`` (R, P, S), R a multiple of X; row r meets ``x[r % X]``.

    Returns:
        (R,) float32, or without ``sum_sites`` (R, S).
    """
    num_rows, _, num_sites = params.shape
    shape = (num_rows,) if sum_sites else (num_rows, num_sites)
    if params.numel() == 0:
        return torch.zeros(shape, device=params.device, dtype=torch.float32)
    if not sum_sites:
        out = torch.empty(shape, device=params.device, dtype=torch.float32)
        _launch(x, params, None, out, num_levels, sum_sites)
        return out
    blocks = triton.cdiv(num_sites, config(num_sites).block_sites)
    partial = torch.empty(num_rows, blocks, device=params.device, dtype=torch.float32)
    _launch(x, params, None, partial, num_levels, sum_sites)
    return partial.sum(1)  # in a fixed order, no atomics


def logistic_mixture_log_prob_backward(
    x: torch.Tensor, params: torch.Tensor, grad: torch.Tensor, num_levels: int
) -> torch.Tensor:
    """As forward, with ``grad`` (R,) or for each site (R, S) -> the gradient of the parameters, as
    ``torch.empty_like`` lays it out."""
    grad_params = torch.empty_like(params)
    if params.numel() == 0:
        return grad_params
    if grad_params.stride() != params.stride():  # one set of strides serves both
        params = torch.empty_like(params).copy_(params)
    _launch(x, params, grad, grad_params, num_levels, sum_sites=grad.ndim == 1)
    return grad_params


def _launch(
    x: torch.Tensor,
    params: torch.Tensor,
    grad: torch.Tensor | None,
    out: torch.Tensor,
    num_levels: int,
    sum_sites: bool,
) -> None:
    num_rows, num_params, num_sites = params.shape
    num_channels = x.shape[1]
    c = config(num_sites)
    _kernel[(num_rows * triton.cdiv(num_sites, c.block_sites),)](
        x_ptr=loadable(x),
        params_ptr=params,
        grad_ptr=grad,
        out_ptr=out,
        num_data=x.shape[0],
        stride_params_row=params.stride(0),
        stride_params_param=params.stride(1),
        stride_params_site=params.stride(2),
        TOP=num_levels - 1.0,
        LOG_WIDTH=math.log(2.0 / (num_levels - 1)),
        NUM_COMPONENTS=num_params // (3 if num_channels == 1 else 10),
        NUM_CHANNELS=num_channels,
        NUM_SITES=num_sites,
        BLOCK_SITES=c.block_sites,
        SUM_SITES=sum_sites,
        IS_BACKWARD=grad is not None,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
