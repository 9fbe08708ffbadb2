"""``bernoulli_log_prob``: the log-likelihood of binary data given logits, in one read of the logits on CUDA."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae import reference

from ._dispatch import choose, must_use_definition

__all__ = ["bernoulli_log_prob"]

_BLOCK = 2**19  # elements that the CPU path works on at once: a temporary of 2 MB stays in the cache and is reused


def bernoulli_log_prob(x: Tensor, logits: Tensor, event_dims: int = 3) -> Tensor:
    r"""Log-probability of binary data, :math:`\sum_d x_d l_d - \log(1 + e^{l_d})`, summed over the event.

    Equal to ``-F.binary_cross_entropy_with_logits(logits, x, reduction="none")`` summed over the last ``event_dims``
    dimensions, evaluated as ``-softplus((1 - 2 x) l)``: no clamp, and exact for large logits. Whether ``x`` is binary
    is the caller's to know: values are not read back for a check here.

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
    batch = _checked_batch(x, logits, event_dims)
    if logits.dtype in (torch.float16, torch.bfloat16) and must_use_definition(x, logits):
        logits = logits.float()
    if x.requires_grad or must_use_definition(x, logits):
        return reference.bernoulli_log_prob(x, logits, event_dims)
    # the operator sees two shapes only: data (X, D) and logits (R, D), R a multiple of X
    size = math.prod(logits.shape[logits.ndim - event_dims :])
    rows = logits.expand(batch + logits.shape[logits.ndim - event_dims :]).reshape(-1, size)
    data = _repeating(x, batch, event_dims).reshape(-1, size)
    if choose(data, rows) == "torch" and not (rows.requires_grad and torch.is_grad_enabled()):
        return _torch_forward(data, rows).view(batch)  # an operator call costs as much as a small block
    return _forward(data, rows).view(batch)


def _checked_batch(x: Tensor, logits: Tensor, event_dims: int) -> torch.Size:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if x.is_complex():
        raise TypeError(f"x must be real zeros and ones, got {x.dtype}")
    if not 1 <= event_dims <= min(x.ndim, logits.ndim):
        raise ValueError(
            f"event_dims must be between 1 and the number of dimensions of x and logits, got {event_dims} for shapes "
            f"{tuple(x.shape)} and {tuple(logits.shape)}; flat data take event_dims=1"
        )
    if x.device != logits.device:
        raise ValueError(f"x and logits must be on one device, got {x.device} and {logits.device}")
    lead, event = logits.shape[: logits.ndim - event_dims], logits.shape[logits.ndim - event_dims :]
    if x.shape[x.ndim - event_dims :] != event:
        raise ValueError(f"x must end in the event shape {tuple(event)} of logits, got shape {tuple(x.shape)}")
    repeats = x.shape[: x.ndim - event_dims]
    if repeats == lead[len(lead) - len(repeats) :]:
        return lead  # broadcast_shapes takes as long as a small block
    try:
        return torch.broadcast_shapes(repeats, lead)
    except RuntimeError:
        raise ValueError(
            f"the leading shape of x must broadcast with that of logits, got {tuple(x.shape)} and {tuple(logits.shape)}"
        ) from None


def _repeating(x: Tensor, batch: torch.Size, event_dims: int) -> Tensor:
    """``x`` without the leading dimensions that only repeat it; expanded where it repeats in the middle."""
    lead, event = x.shape[: x.ndim - event_dims], x.shape[x.ndim - event_dims :]
    while lead and lead[0] == 1:
        lead = lead[1:]
    x = x.reshape(lead + event)
    return x if lead == batch[len(batch) - len(lead) :] else x.expand(batch + event)


@torch.library.custom_op("fastvae::bernoulli_log_prob", mutates_args=())
def _forward(x: Tensor, logits: Tensor) -> Tensor:
    if choose(x, logits, unsupported=_unsupported(logits)) == "triton":
        from fastvae_kernels import bernoulli_log_prob as kernels

        return kernels.bernoulli_log_prob_forward(x.contiguous(), logits.contiguous())
    return _torch_forward(x, logits)


@_forward.register_fake
def _(x: Tensor, logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=_accumulator(logits))


@torch.library.custom_op("fastvae::bernoulli_log_prob_backward", mutates_args=())
def _backward(x: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    if choose(x, logits, unsupported=_unsupported(logits)) == "triton":
        from fastvae_kernels import bernoulli_log_prob as kernels

        return kernels.bernoulli_log_prob_backward(x.contiguous(), logits.contiguous(), grad.contiguous())
    signs = _signs(x, _accumulator(logits))
    return _grad_logits(signs, logits, grad).to(logits.dtype)


@_backward.register_fake
def _(x: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
    return None, _backward(*ctx.saved_tensors, grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _unsupported(logits: Tensor) -> str | None:
    return "the kernel takes float32, float16 and bfloat16, got float64" if logits.dtype == torch.float64 else None


def _accumulator(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _signs(x: Tensor, dtype: torch.dtype) -> Tensor:
    return 1 - 2 * x.to(dtype)


def _torch_forward(x: Tensor, logits: Tensor) -> Tensor:
    """``x`` (X, D), ``logits`` (R, D) -> (R,)."""
    num_data, size = x.shape
    dtype = _accumulator(logits)
    total = logits.new_empty((logits.shape[0] // max(num_data, 1), num_data), dtype=dtype)
    signs, logits = _signs(x, dtype), logits.detach().reshape(*total.shape, size)
    # on CUDA one block: there launches cost more than temporaries
    columns = min(num_data, max(1, _BLOCK // max(size, 1))) if logits.device.type == "cpu" else num_data
    rows = max(1, _BLOCK // max(columns * size, 1)) if logits.device.type == "cpu" else total.shape[0]
    scratch = logits.new_empty((min(rows, total.shape[0]), columns, size), dtype=dtype)
    for i in range(0, total.shape[0], max(rows, 1)):
        for j in range(0, num_data, max(columns, 1)):
            block = logits[i : i + rows, j : j + columns]
            t = scratch[: block.shape[0], : block.shape[1]]
            torch.mul(block, signs[j : j + columns], out=t)
            # beyond the threshold softplus(t) is t, to the last digit of the dtype
            F.softplus(t, 1.0, 40.0 if dtype == torch.float64 else 20.0, out=t)  # type: ignore[call-arg] # the stub lacks out
            torch.sum(t, -1, out=total[i : i + rows, j : j + columns])
    return total.neg_().view(-1)


def _grad_logits(signs: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    """``-s sigmoid(s l)`` times ``grad``: (R, D)."""
    signed = signs.repeat(logits.shape[0] // max(signs.shape[0], 1), 1) if signs.shape != logits.shape else signs
    return (signed * logits).sigmoid_().mul_(signed).mul_(grad[:, None]).neg_()
