"""The CPU path of ``logistic_mixture_log_prob``: block after block, with temporaries that stay in the cache."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .likelihood_rows import accumulator, block_sizes, blocks

__all__ = ["backward_in_blocks", "forward_in_blocks"]

_LARGEST_LOG_SCALE = 60.0  # beyond e^60 and below e^-60 a scale changes no digit, but its inverse would overflow


class _Data(NamedTuple):
    """What follows from the data alone, (X, C, 1, S) each."""

    scaled: Tensor  # to [-1, 1]
    high: Tensor  # inf at the last level, whose upper edge is at infinity, else 0
    low: Tensor  # -inf at the first level, else 0
    inner: Tensor  # 0 at both, else 1

    def part(self, j: slice) -> "_Data":
        return _Data(*(values[j] for values in self))


def _prepared(x: Tensor, num_levels: int, dtype: torch.dtype) -> _Data:
    x = x.to(dtype).unsqueeze(2)
    is_first, is_last = x <= 0, x >= num_levels - 1
    zeros = torch.zeros_like(x)
    return _Data(
        (2 * x - (num_levels - 1)) / (num_levels - 1),
        zeros.masked_fill(is_last, torch.inf),
        zeros.masked_fill(is_first, -torch.inf),
        (~(is_first | is_last)).to(dtype),
    )


def _groups(params: Tensor, num_data: int, channels: int) -> Tensor:
    """(R, P, S) -> (repeats, X, groups, K, S), a view: logits, then means, log-scales, coefficients by channel."""
    groups = 3 if channels == 1 else 10
    return params.unflatten(0, (params.shape[0] // num_data, num_data)).unflatten(2, (groups, -1))


def _by_channel(groups: Tensor, channels: int) -> Tensor:
    """(..., groups, K, S) -> (..., C, 2 or 3, K, S), a view."""
    return groups[..., 1:, :, :].unflatten(-3, (channels, -1))


def _distances(data: _Data, values: Tensor, out: Tensor, coefficients: Tensor) -> None:
    """``out`` = the scaled data minus the means that follow the channels before; ``coefficients`` gets their tanh."""
    torch.sub(data.scaled, values.select(-3, 0), out=out)
    if values.shape[-4] == 1:
        return
    torch.mul(values.select(-3, 2), 2.0, out=coefficients)
    coefficients.sigmoid_().mul_(2.0).sub_(1.0)  # tanh, three times as fast
    red, green, _ = data.scaled.unbind(-3)
    out.select(-3, 1).addcmul_(coefficients.select(-3, 0), red, value=-1)
    out.select(-3, 2).addcmul_(coefficients.select(-3, 1), red, value=-1)
    out.select(-3, 2).addcmul_(coefficients.select(-3, 2), green, value=-1)


def _edges(
    data: _Data, log_scales: Tensor, half: float, distance: Tensor, inverse: Tensor, above: Tensor, below: Tensor
) -> None:
    """``inverse`` = 1 / s, ``above`` and ``below`` = where the edges of the bin are, in units of s from the mean."""
    torch.clamp(log_scales, -_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE, out=inverse)
    inverse.neg_().exp_()
    torch.add(distance, half, out=above)
    torch.addcmul(data.high, above, inverse, out=above)
    torch.sub(distance, half, out=below)
    torch.addcmul(data.low, below, inverse, out=below)


def _negative_log_masses(
    data: _Data, log_scales: Tensor, half: float, inverse: Tensor, above: Tensor, below: Tensor, other: Tensor
) -> None:
    """``above`` = softplus(-above) + softplus(below) - log(1 - e^-w) for the width w of inner bins; ``other`` is lost.

    It is minus the logarithm of the mass between the edges.
    """
    # beyond the threshold softplus(t) is t, to the last digit of the dtype
    threshold = 40.0 if above.dtype == torch.float64 else 20.0
    F.softplus(above.neg_(), 1.0, threshold, out=above)  # type: ignore[call-arg] # the stub lacks out
    F.softplus(below, 1.0, threshold, out=other)  # type: ignore[call-arg]
    above.add_(other)
    torch.mul(inverse, -2.0 * half, out=other)
    other.expm1_().neg_().log_()
    above.addcmul_(other, data.inner, value=-1)
    torch.sub(log_scales, _LARGEST_LOG_SCALE, out=other)  # such scales count in the width: log w = log 2 d - log s
    above.addcmul_(other.clamp_min_(0.0), data.inner)


def forward_in_blocks(x: Tensor, params: Tensor, num_levels: int, sum_sites: bool = True) -> Tensor:
    """``x`` (X, C, S), ``params`` (R, P, S) -> (R,), or without ``sum_sites`` (R, S)."""
    num_data, channels = x.shape[:2]
    dtype, repeats, half = accumulator(params), params.shape[0] // max(num_data, 1), 1.0 / (num_levels - 1)
    shape_of_row = () if sum_sites else params.shape[2:]
    total = params.new_zeros((repeats, num_data, *shape_of_row), dtype=dtype)
    if params.numel() == 0:
        return total.flatten(0, 1)
    data, groups = _prepared(x, num_levels, dtype), _groups(params.detach(), num_data, channels)
    shape = (channels, *groups.shape[-2:])
    sizes = block_sizes(repeats, num_data, 2 * math.prod(shape), params.device)
    scratch = params.new_empty((4, *sizes, *shape), dtype=dtype)
    for i, j in blocks(repeats, num_data, sizes):
        block, part = groups[i, j].to(dtype).contiguous(), data.part(j)
        distance, inverse, above, below = scratch[:, : block.shape[0], : block.shape[1]]
        values = _by_channel(block, channels)
        _distances(part, values, distance, above)
        _edges(part, values.select(-3, 1), half, distance, inverse, above, below)
        _negative_log_masses(part, values.select(-3, 1), half, inverse, above, below, distance)
        joint = block.select(-3, 0).log_softmax(-2).sub_(above.sum(-3))
        if sum_sites:
            torch.sum(joint.logsumexp(-2), -1, out=total[i, j])
        else:
            torch.logsumexp(joint, -2, out=total[i, j])
    return total.flatten(0, 1)


def backward_in_blocks(x: Tensor, params: Tensor, grad: Tensor, num_levels: int) -> Tensor:
    """As forward, with ``grad`` (R,) or (R, S) -> the gradient of the parameters in their shape, dtype and strides."""
    num_data, channels = x.shape[:2]
    dtype, repeats, half = accumulator(params), params.shape[0] // max(num_data, 1), 1.0 / (num_levels - 1)
    grad_params = torch.empty_like(params)
    if params.numel() == 0:
        return grad_params
    data, groups = _prepared(x, num_levels, dtype), _groups(params, num_data, channels)
    grad_groups, grad = _groups(grad_params, num_data, channels), grad.to(dtype).view(repeats, num_data, 1, -1)
    shape = (channels, *groups.shape[-2:])
    sizes = block_sizes(repeats, num_data, 2 * math.prod(shape), params.device)
    scratch = params.new_empty((7, *sizes, *shape), dtype=dtype)
    for i, j in blocks(repeats, num_data, sizes):
        block, part = groups[i, j].to(dtype).contiguous(), data.part(j)
        target = grad_groups[i, j]
        grad_block = target if target.is_contiguous() and target.dtype == dtype else torch.empty_like(block)
        distance, inverse, above, below, other, last, tanh = scratch[:, : block.shape[0], : block.shape[1]]
        values, grad_values = _by_channel(block, channels), _by_channel(grad_block, channels)
        _distances(part, values, distance, tanh)
        _edges(part, values.select(-3, 1), half, distance, inverse, above, below)
        _negative_log_masses(part, values.select(-3, 1), half, inverse, other.copy_(above), below, last)
        prior = block.select(-3, 0).log_softmax(-2)
        posterior = (prior - other.sum(-3)).softmax(-2)
        torch.mul(posterior - prior.exp_(), grad[i, j], out=grad_block.select(-3, 0))
        weight = posterior.mul_(grad[i, j]).unsqueeze(-3)  # of each component, (..., 1, K, S)
        # of the mean: minus (sigma(-above) - sigma(below)) / s
        above.neg_().sigmoid_()
        below.sigmoid_()
        torch.add(above, below, out=other)
        above.sub_(below).mul_(inverse).neg_()
        # of the log-scale: distances from the edges times the same sigmas, and how the width w counts
        distance.mul_(above).addcmul_(other, inverse, value=-half)
        torch.mul(inverse, 2.0 * half, out=other)
        torch.expm1(other, out=below)
        distance.addcmul_(other.div_(below), part.inner, value=-1)
        torch.mul(distance, weight, out=grad_values.select(-3, 1))
        above.mul_(weight)
        grad_values.select(-3, 0).copy_(above)
        if channels == 3:
            red, green, _ = part.scaled.unbind(-3)
            tanh.square_().neg_().add_(1.0)
            for coefficient, channel, before in ((0, 1, red), (1, 2, red), (2, 2, green)):
                slope = tanh.select(-3, coefficient).mul_(before)
                torch.mul(slope, above.select(-3, channel), out=grad_values.select(-3, 2).select(-3, coefficient))
        if grad_block is not target:
            target.copy_(grad_block)
    return grad_params
