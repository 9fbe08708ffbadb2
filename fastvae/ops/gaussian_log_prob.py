"""``gaussian_log_prob``: the log-density of data given means and log-scales, in one read of them on CUDA."""

import math
from typing import Any

import torch
from torch import Tensor

from fastvae import reference

from ._dispatch import choose, must_use_definition, refuse_tangents
from .likelihood_rows import (
    accumulator,
    block_sizes,
    blocks,
    broadcast_batch,
    check_event_dims,
    check_inputs,
    is_small,
    repeating_rows,
    runs_directly,
    why_no_kernel,
    widened,
)

__all__ = ["gaussian_log_prob"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def gaussian_log_prob(x: Tensor, loc: Tensor, log_scale: Tensor, event_dims: int = 3) -> Tensor:
    r"""Log-density of independent Gaussians, :math:`\sum_d \log N(x_d; \mu_d, e^{2 \lambda_d})`, summed over the event.

    Equal to ``torch.distributions.Normal(loc, log_scale.exp()).log_prob(x)`` summed over the last ``event_dims``
    dimensions. The density is in the units of the data; gradients reach all three arguments.

    Args:
        x: (..., D1, ..., De) of any real dtype; its leading part broadcasts with that of ``loc``.
        loc: (..., D1, ..., De) means, floating point, for example (K, N, C, H, W) against ``x`` (N, C, H, W).
        log_scale: logarithms of the standard deviations, broadcast with ``loc``: of its shape where they are learned
            for every value, (D1, ..., De) for one per pixel, a scalar for one in all. Down to -80 (-700 in float64),
            below which the distance stays finite.
        event_dims: e, how many last dimensions belong to one datapoint: 3 for images, 1 for flat data.

    Returns:
        Log-densities in nats with the broadcast leading shape; float64 for float64 ``loc`` or ``log_scale``, else
        float32.

    Raises:
        TypeError: if ``loc`` or ``log_scale`` is not floating point, or ``x`` is complex.
        ValueError: if the event shapes differ, shapes do not broadcast, or the devices differ.

    Example:
        >>> gaussian_log_prob(torch.zeros(2, 3), torch.zeros(5, 2, 3), torch.tensor(0.0), event_dims=1).shape
        torch.Size([5, 2])
    """
    check_inputs(x, loc=loc, log_scale=log_scale)
    check_event_dims(event_dims, x, loc, "loc")
    lead, event = loc.shape[: loc.ndim - event_dims], loc.shape[loc.ndim - event_dims :]
    padded = log_scale.reshape((1,) * (event_dims - log_scale.ndim) + log_scale.shape)
    lead = _broadcast_scale(padded, lead, event)
    batch = broadcast_batch(x, event, lead, "loc and log_scale")
    use_torch = choose(x, loc, log_scale) == "torch"
    few = use_torch and is_small(math.prod(batch + event), x, loc, log_scale, factor_with_grad=0.5)
    if few or must_use_definition(x, loc, log_scale):
        return reference.gaussian_log_prob(x, widened(loc), widened(log_scale), event_dims)
    # the operator sees three shapes only: data (X, D), means (R, D) and log-scales (S, D) or (S, 1), X and S divide R
    means = loc.expand(batch + event).reshape(math.prod(batch), math.prod(event))
    data = repeating_rows(x, batch, event_dims).flatten(1)
    shared = padded.shape[padded.ndim - event_dims :].numel() == 1
    scales = padded if shared else padded.expand(padded.shape[: padded.ndim - event_dims] + event)
    scales = repeating_rows(scales, batch, event_dims).flatten(1)
    if use_torch and runs_directly(data, means, scales):
        return _torch_forward(data, means, scales).view(batch)
    return _forward(data, means, scales).view(batch)


def _broadcast_scale(log_scale: Tensor, lead: torch.Size, event: torch.Size) -> torch.Size:
    """The leading shape of means and log-scales."""
    split = log_scale.ndim - len(event)
    fits = all(size in (1, of_loc) for size, of_loc in zip(log_scale.shape[split:], event, strict=True))
    try:
        if fits:
            return lead if split == 0 else torch.broadcast_shapes(lead, log_scale.shape[:split])
    except RuntimeError:
        pass
    raise ValueError(
        f"log_scale must broadcast with loc, got {tuple(log_scale.shape)} and {tuple(lead + event)}; a scalar is one "
        "scale for all"
    )


@torch.library.custom_op("fastvae::gaussian_log_prob", mutates_args=())
def _forward(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    if choose(x, loc, log_scale, unsupported=why_no_kernel(loc, log_scale)) == "triton":
        from fastvae_kernels import gaussian_log_prob as kernels

        return kernels.gaussian_log_prob_forward(x.contiguous(), loc.contiguous(), log_scale.contiguous())
    return _torch_forward(x, loc, log_scale)


@_forward.register_fake
def _(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    return loc.new_empty(loc.shape[0], dtype=accumulator(loc, log_scale))


@torch.library.custom_op("fastvae::gaussian_log_prob_backward", mutates_args=())
def _backward(x: Tensor, loc: Tensor, log_scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    if choose(x, loc, log_scale, unsupported=why_no_kernel(loc, log_scale)) == "triton":
        from fastvae_kernels import gaussian_log_prob as kernels

        return kernels.gaussian_log_prob_backward(
            x.contiguous(), loc.contiguous(), log_scale.contiguous(), grad.contiguous()
        )
    return _torch_backward(x, loc, log_scale, grad)


@_backward.register_fake
def _(x: Tensor, loc: Tensor, log_scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _contiguous_like(loc), _contiguous_like(log_scale)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    refuse_tangents("gaussian_log_prob", grad)
    x, loc, log_scale = ctx.saved_tensors
    grad_loc, grad_log_scale = _backward(x, loc, log_scale, grad)
    grad_x = None
    if ctx.needs_input_grad[0]:  # only x - loc matters; data that repeat collect from all their rows
        repeats = loc.shape[0] // max(x.shape[0], 1)
        grad_x = -grad_loc.view(repeats, *x.shape).sum(0, dtype=accumulator(loc, log_scale)).to(x.dtype)
    return grad_x, grad_loc, grad_log_scale


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _contiguous_like(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _inverse(log_scale: Tensor, out: Tensor | None = None) -> Tensor:
    """1 / s, finite: x = loc must not give 0 * inf."""
    floor = -700.0 if log_scale.dtype == torch.float64 else -80.0
    return torch.clamp(log_scale, min=floor, out=out).neg_().exp_()


def _expanded(values: Tensor, repeats: int, num_data: int) -> Tensor:
    """Rows ``values`` (S, T), row r % S of them for row r, as (repeats, X, T); what repeats is not copied."""
    if 1 < values.shape[0] < num_data:
        values = values.repeat(num_data // values.shape[0], 1)
    elif num_data < values.shape[0]:
        values = values.repeat(repeats * num_data // values.shape[0], 1)
    return values.view(-1, min(num_data, values.shape[0]), values.shape[1]).expand(repeats, num_data, -1)


def _torch_forward(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """``x`` (X, D), ``loc`` (R, D), ``log_scale`` (S, D or 1) -> (R,)."""
    (num_data, size), dtype = x.shape, accumulator(loc, log_scale)
    repeats = loc.shape[0] // max(num_data, 1)
    total = loc.new_zeros((repeats, num_data), dtype=dtype)
    if loc.numel() == 0:
        return total.view(-1)
    x, loc, log_scale = x.detach().to(dtype), loc.detach().reshape(repeats, num_data, size), log_scale.detach()
    is_shared = log_scale.numel() < loc.numel()  # then what depends on it alone is computed once, before the blocks
    scales = _expanded(log_scale, repeats, num_data)
    inverse = _expanded(_inverse(log_scale.to(dtype)), repeats, num_data) if is_shared else None
    sizes = block_sizes(repeats, num_data, size, loc.device)
    scratch = loc.new_empty((2, *sizes, size), dtype=dtype)
    for i, j in blocks(repeats, num_data, sizes):
        block = loc[i, j]
        t, u = scratch[:, : block.shape[0], : block.shape[1]]
        torch.sub(x[j], block, out=t)
        if inverse is None:
            log_scales = scales[i, j].to(dtype)
            t.mul_(_inverse(log_scales, out=u))
            torch.addcmul(log_scales, t, t, value=0.5, out=t)
        else:
            t.mul_(inverse[i, j]).square_().mul_(0.5)
        torch.sum(t, -1, out=total[i, j])
    if is_shared:
        log_scales = log_scale.sum(-1, keepdim=True, dtype=dtype) * (size // log_scale.shape[1])
        total.add_(_expanded(log_scales, repeats, num_data).squeeze(-1))
    return total.neg_().sub_(size * _HALF_LOG_TWO_PI).view(-1)


def _torch_backward(x: Tensor, loc: Tensor, log_scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """As forward, with ``grad`` (R,) -> the gradients of ``loc`` and of ``log_scale`` in their shapes and dtypes."""
    (num_data, size), dtype = x.shape, accumulator(loc, log_scale)
    if loc.numel() == 0:
        return torch.zeros_like(loc), torch.zeros_like(log_scale)
    repeats = loc.shape[0] // num_data
    x, means, grad = x.to(dtype), loc.reshape(repeats, num_data, size), grad.to(dtype).view(repeats, num_data, 1)
    grad_loc, (num_scales, width) = _contiguous_like(means), log_scale.shape
    is_full = log_scale.shape == loc.shape
    # summed over the row where it has but one log-scale, over the repeats where they share all of theirs
    over_row, over_repeats = width < size, width == size and num_scales <= num_data and not is_full
    sums = (num_data if over_repeats else loc.shape[0], width)
    collected = _contiguous_like(log_scale) if is_full else loc.new_zeros(sums, dtype=dtype)
    collected = collected.view(-1, num_data, width)
    scales = _expanded(log_scale, repeats, num_data)
    inverse = None if is_full else _expanded(_inverse(log_scale.to(dtype)), repeats, num_data)
    sizes = block_sizes(repeats, num_data, size, loc.device)
    scratch = loc.new_empty((3, *sizes, size), dtype=dtype)
    for i, j in blocks(repeats, num_data, sizes):
        block = means[i, j]
        noise, u, weighted = scratch[:, : block.shape[0], : block.shape[1]]
        torch.sub(x[j], block, out=noise)
        scale = _inverse(scales[i, j].to(dtype), out=u) if inverse is None else inverse[i, j]
        noise.mul_(scale)
        torch.mul(noise, grad[i, j], out=weighted)
        torch.mul(weighted, scale, out=grad_loc[i, j])
        by_log_scale = noise if over_row or over_repeats else collected[i, j]
        torch.addcmul(-grad[i, j], noise, weighted, out=by_log_scale)
        if over_row:
            torch.sum(noise, -1, keepdim=True, out=collected[i, j])
        elif over_repeats:
            collected[0, j] += noise.sum(0)
    if is_full:
        return grad_loc.view_as(loc), collected.view_as(log_scale)
    return grad_loc.view_as(loc), collected.view(-1, num_scales, width).sum(0).to(log_scale.dtype)
