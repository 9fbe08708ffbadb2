"""``categorical_log_prob``: the log-likelihood of levels given their logits, in one read of the logits on CUDA."""

import math
from typing import Any

import torch
import torch.nn.functional as F
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

__all__ = ["categorical_log_prob"]


def categorical_log_prob(x: Tensor, logits: Tensor, event_dims: int = 3, levels_dim: int = -3) -> Tensor:
    r"""Log-probability of integer levels, :math:`\sum_d l_{d, x_d} - \log \sum_l e^{l_{d, l}}`, summed over the event.

    Equal to ``logits.log_softmax(levels_dim)``, gathered at ``x`` and summed over the last ``event_dims`` dimensions.
    A value that is no level (negative, L or more, a fraction) has probability zero, so -inf; whether there are any is
    the caller's to know: values are not read back for a check here. Logits that many data share are always evaluated by
    the definition, which normalises them once.

    Args:
        x: (..., D1, ..., De), levels 0..L-1 in any real dtype; its leading part broadcasts with that of ``logits``.
        logits: (..., D1, ..., De) and the L levels, L >= 1, at ``levels_dim``, floating point: by default
            (..., C, L, H, W) against ``x`` (..., C, H, W).
        event_dims: e, how many last dimensions of ``x`` belong to one datapoint: 3 for images, 1 for flat data.
        levels_dim: where the levels are, counted from the end: -1 for logits (..., D1, ..., De, L).

    Returns:
        Log-probabilities in nats with the broadcast leading shape; float64 for float64 logits, else float32.

    Raises:
        TypeError: if ``logits`` are not floating point, or ``x`` is complex.
        ValueError: if the event shapes differ, the leading shapes do not broadcast, the devices differ, or
            ``levels_dim`` is none of the last e + 1 dimensions.

    Example:
        >>> x, logits = torch.randint(0, 256, (2, 3, 8, 8)), torch.zeros(5, 2, 3, 256, 8, 8)
        >>> categorical_log_prob(x, logits).shape
        torch.Size([5, 2])
    """
    check_inputs(x, logits=logits)
    check_event_dims(event_dims, x, logits, "logits", extra=1)
    if not -event_dims - 1 <= levels_dim <= -1:
        raise ValueError(
            f"levels_dim must be between {-event_dims - 1} and -1, got {levels_dim}; flat data with logits (..., D, L) "
            "take event_dims=1, levels_dim=-1"
        )
    split = logits.ndim - event_dims - 1
    lead, params = logits.shape[:split], logits.shape[split:]
    before, levels, after = params[: levels_dim + event_dims + 1], params[levels_dim], params[levels_dim:][1:]
    if levels == 0:
        raise ValueError(f"logits must have at least one level at dimension {levels_dim}, got {tuple(logits.shape)}")
    batch = broadcast_batch(x, before + after, lead, "logits without its levels")
    use_torch = choose(x, logits) == "torch"
    is_shared = math.prod(lead) < math.prod(batch)  # by many data: normalised once, not copied for each
    few = use_torch and is_small(logits.numel(), logits, factor=0.5, factor_with_grad=4.0)
    if is_shared or few or must_use_definition(x, logits):
        return reference.categorical_log_prob(x, widened(logits), event_dims, levels_dim)
    # the operator sees two shapes only: data (X, A, B) and logits (R, A, L, B), R a multiple of X
    channels, sites = math.prod(before), math.prod(after)
    data = repeating_rows(x.detach(), batch, event_dims)
    data = data.reshape(data.shape[0], channels, sites)
    rows = logits.reshape(math.prod(batch), channels, levels, sites)
    if not rows.is_contiguous() and rows.permute(0, 3, 1, 2).is_contiguous():  # channels_last: here levels come last
        data = data.transpose(1, 2).reshape(-1, sites * channels, 1)
        rows = rows.permute(0, 3, 1, 2).reshape(-1, sites * channels, levels, 1)
    if use_torch and runs_directly(rows):
        return _torch_forward(data, rows).view(batch)
    return _forward(data, rows).view(batch)


@torch.library.custom_op("fastvae::categorical_log_prob", mutates_args=())
def _forward(x: Tensor, logits: Tensor) -> Tensor:
    if choose(x, logits, unsupported=why_no_kernel(logits)) == "triton":
        from fastvae_kernels import categorical_log_prob as kernels

        return kernels.categorical_log_prob_forward(x.contiguous(), logits.contiguous())
    return _torch_forward(x, logits)


@_forward.register_fake
def _(x: Tensor, logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=accumulator(logits))


@torch.library.custom_op("fastvae::categorical_log_prob_backward", mutates_args=())
def _backward(x: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    if choose(x, logits, unsupported=why_no_kernel(logits)) == "triton":
        from fastvae_kernels import categorical_log_prob as kernels

        return kernels.categorical_log_prob_backward(x.contiguous(), logits.contiguous(), grad.contiguous())
    return _torch_backward(x, logits, grad)


@_backward.register_fake
def _(x: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
    refuse_tangents("categorical_log_prob", grad)
    return None, _backward(*ctx.saved_tensors, grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _levels(x: Tensor, num_levels: int) -> tuple[Tensor, Tensor | None]:
    """Indices of the levels, and which values are none (index 0 stands for them); None if it is known that all are."""
    x = x if x.is_floating_point() else x.long()  # 256 is 0 to a comparison of bytes
    is_level = (x >= 0) & (x < num_levels)
    if x.is_floating_point():
        is_level &= x == x.floor()
    if x.device.type == "cpu" and is_level.all():  # elsewhere it would wait for the device
        return x.long(), None
    return torch.where(is_level, x, 0).long(), ~is_level


def _units(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Data (X * A, B) and logits (repeats, X * A, L, B): what is normalised alone. Without B where it is 1: over the
    last dimension PyTorch normalises faster."""
    num_rows, channels, num_levels, sites = logits.shape
    num_data = x.shape[0] * channels
    trailing = () if sites == 1 else (sites,)
    shape = (num_rows * channels // max(num_data, 1), num_data, num_levels, *trailing)
    return x.reshape(num_data, *trailing), logits.detach().reshape(shape)


def _torch_forward(x: Tensor, logits: Tensor) -> Tensor:
    """``x`` (X, A, B), ``logits`` (R, A, L, B) -> (R,)."""
    data, units = _units(x, logits)
    (repeats, num_data, num_levels), dtype = units.shape[:3], accumulator(logits)
    level, not_level = _levels(data, num_levels)
    terms = logits.new_empty((repeats, *level.shape), dtype=dtype)
    sizes = block_sizes(repeats, num_data, units[0, :1].numel(), logits.device)
    scratch = logits.new_empty((*sizes, *units.shape[2:]), dtype=dtype)
    for i, j in blocks(repeats, num_data, sizes):
        block = units[i, j]
        t = scratch[: block.shape[0], : block.shape[1]].flatten(0, 1)
        torch.log_softmax(block.flatten(0, 1).to(dtype), 1, out=t)
        index = level[j].expand(terms[i, j].shape)
        terms[i, j] = F.nll_loss(t, index.flatten(0, 1), reduction="none").view(index.shape)
    if not_level is not None:
        terms.masked_fill_(not_level, torch.inf)
    return terms.view(logits.shape[0], -1).sum(-1).neg_()


def _torch_backward(x: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    """As forward, with ``grad`` (R,) -> the gradient of the logits, ``grad (onehot - softmax)``."""
    data, units = _units(x, logits)
    (repeats, num_data, num_levels), dtype = units.shape[:3], accumulator(logits)
    level, not_level = _levels(data, num_levels)
    weights = grad.to(dtype).repeat_interleave(logits.shape[1]).view(repeats, num_data, *(1,) * (level.ndim - 1))
    grad_logits = torch.empty_like(units, memory_format=torch.contiguous_format)
    sizes = block_sizes(repeats, num_data, units[0, :1].numel(), logits.device)
    for i, j in blocks(repeats, num_data, sizes):
        out = grad_logits[i, j].view(-1, *units.shape[2:])
        p = out if out.dtype == dtype else torch.empty_like(out, dtype=dtype)
        torch.softmax(units[i, j].flatten(0, 1).to(dtype), 1, out=p)
        index = level[j].expand(weights[i, j].shape[:2] + level.shape[1:])
        weight = weights[i, j].expand(index.shape)
        if not_level is not None:
            weight = weight.masked_fill(not_level[j], 0.0)
        weight, index = weight.flatten(0, 1).unsqueeze(1), index.flatten(0, 1).unsqueeze(1)
        p.mul_(-weight).scatter_add_(1, index, weight)
        if p is not out:
            out.copy_(p)
    return grad_logits.view(logits.shape)
