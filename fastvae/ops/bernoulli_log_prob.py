"""``bernoulli_log_prob``: the log-likelihood of binary data given logits, in one read of the logits on CUDA."""

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

__all__ = ["bernoulli_log_prob", "of_signed_logits", "sum_of_logs"]

_GROUP = 8  # probabilities that are multiplied before one logarithm: their product underflows beyond 11 nats each


def bernoulli_log_prob(x: Tensor, logits: Tensor, event_dims: int = 3) -> Tensor:
    r"""Log-probability of binary data, :math:`\sum_d x_d l_d - \log(1 + e^{l_d})`, summed over the event.

    Equal to ``-F.binary_cross_entropy_with_logits(logits, x, reduction="none")`` summed over the last ``event_dims``
    dimensions, evaluated as ``-softplus((1 - 2 x) l)``: no clamp, and exact for large logits. For binary x only: grey
    values give a figure without a meaning (no cross-entropy either), and nothing is read back from the device for a
    check. :class:`fastvae.distributions.Bernoulli` checks, in an evaluation once for each datapoint.

    Args:
        x: (..., D1, ..., De) zeros and ones of any dtype; its leading part broadcasts with that of ``logits``.
        logits: (..., D1, ..., De), floating point, for example (K, N, C, H, W) against ``x`` (N, C, H, W).
        event_dims: e, how many last dimensions belong to one datapoint: 3 for images, 1 for flat data.

    Returns:
        Log-probabilities in nats with the broadcast leading shape; float64 for float64 logits, else float32.

    Raises:
        TypeError: if ``logits`` is not floating point, or ``x`` is complex.
        ValueError: if the event shapes differ, the leading shapes do not broadcast, or the devices differ.

    Example:
        >>> bernoulli_log_prob(torch.ones(2, 3), torch.zeros(5, 2, 3), event_dims=1).shape
        torch.Size([5, 2])
    """
    check_inputs(x, logits=logits)
    check_event_dims(event_dims, x, logits, "logits")
    lead, event = logits.shape[: logits.ndim - event_dims], logits.shape[logits.ndim - event_dims :]
    batch = broadcast_batch(x, event, lead, "logits")
    use_torch = choose(x, logits) == "torch"
    few = use_torch and is_small(math.prod(batch + event), logits, factor=0.0)
    if x.requires_grad or few or must_use_definition(x, logits):
        return reference.bernoulli_log_prob(x, widened(logits), event_dims)
    # the operator sees two shapes only: data (X, D) and logits (R, D), R a multiple of X
    rows = logits.expand(batch + event).reshape(math.prod(batch), math.prod(event))
    data = repeating_rows(x, batch, event_dims).flatten(1)
    if use_torch and runs_directly(rows):
        return _torch_forward(data, rows).view(batch)
    return _forward(data, rows).view(batch)


@torch.library.custom_op("fastvae::bernoulli_log_prob", mutates_args=())
def _forward(x: Tensor, logits: Tensor) -> Tensor:
    if choose(x, logits, unsupported=why_no_kernel(logits)) == "triton":
        from fastvae_kernels import bernoulli_log_prob as kernels

        return kernels.bernoulli_log_prob_forward(x.contiguous(), logits.contiguous())
    return _torch_forward(x, logits)


@_forward.register_fake
def _(x: Tensor, logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=accumulator(logits))


@torch.library.custom_op("fastvae::bernoulli_log_prob_backward", mutates_args=())
def _backward(x: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    if choose(x, logits, unsupported=why_no_kernel(logits)) == "triton":
        from fastvae_kernels import bernoulli_log_prob as kernels

        return kernels.bernoulli_log_prob_backward(x.contiguous(), logits.contiguous(), grad.contiguous())
    return _torch_backward(x, logits, grad)


@_backward.register_fake
def _(x: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
    refuse_tangents("bernoulli_log_prob", grad)
    return None, _backward(*ctx.saved_tensors, grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _signs(x: Tensor, dtype: torch.dtype) -> Tensor:
    return 1 - 2 * x.to(dtype)


def _torch_forward(x: Tensor, logits: Tensor) -> Tensor:
    """``x`` (X, D), ``logits`` (R, D) -> (R,)."""
    (num_data, size), repeats = x.shape, logits.shape[0] // max(x.shape[0], 1)
    dtype = accumulator(logits)
    total = logits.new_empty((repeats, num_data), dtype=dtype)
    signs, logits = -_signs(x, dtype), logits.detach().reshape(repeats, num_data, size)
    sizes = block_sizes(repeats, num_data, size, logits.device)
    scratch = logits.new_empty((*sizes, size), dtype=dtype)
    for i, j in blocks(repeats, num_data, sizes):
        block = logits[i, j]
        t = scratch[: block.shape[0], : block.shape[1]]
        torch.mul(block, signs[j], out=t)
        total[i, j] = of_signed_logits(t).view(block.shape[:2])
    return total.view(-1)


def of_signed_logits(logits: Tensor) -> Tensor:
    """``sum log sigmoid(logits)``, ``logits`` (..., D), which it may overwrite -> (rows,)."""
    logits = logits.flatten(0, -2)
    if logits.device.type != "cpu":
        return F.logsigmoid(logits).sum(-1)
    total, underflows = sum_of_logs(logits.sigmoid())
    if underflows.any():
        total[underflows] = F.logsigmoid(logits[underflows]).sum(-1)
    return total


def sum_of_logs(p: Tensor) -> tuple[Tensor, Tensor]:
    """``p`` (R, D) in [0, 1] -> the sum of its logarithms (R,), and for which rows a product underflows (R,).

    One logarithm for the product of a group costs a fraction of one for each, and no more rounding than their sum.
    """
    width = p.shape[1] // _GROUP
    products = p[:, _GROUP * width :].prod(1, keepdim=True)  # of what is left over
    if width:
        groups = p[:, : _GROUP * width].unflatten(1, (_GROUP, width)).prod(1)
        groups[:, :1] *= products
        products = groups
    underflows = products.amin(1) < torch.finfo(p.dtype).tiny
    return products.log_().sum(1), underflows


def _torch_backward(x: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    """As forward, with ``grad`` (R,) -> the gradient of the logits, ``-s sigmoid(s l) grad``."""
    (num_data, size), repeats = x.shape, logits.shape[0] // max(x.shape[0], 1)
    dtype = accumulator(logits)
    signs, logits, grad = _signs(x, dtype), logits.reshape(repeats, num_data, size), -grad.to(dtype)
    grad, grad_logits = grad.view(repeats, num_data, 1), torch.empty_like(logits, memory_format=torch.contiguous_format)
    sizes = block_sizes(repeats, num_data, size, logits.device)
    scratch = logits.new_empty((*sizes, size), dtype=dtype)
    for i, j in blocks(repeats, num_data, sizes):
        block = logits[i, j]
        t = scratch[: block.shape[0], : block.shape[1]]
        torch.mul(block, signs[j], out=t)
        torch.mul(t.sigmoid_().mul_(signs[j]), grad[i, j], out=grad_logits[i, j])
    return grad_logits.view(repeats * num_data, size)
