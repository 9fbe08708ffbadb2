"""``linear_bernoulli_log_prob``: a last linear layer and the likelihood of binary data in one, without the logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae import reference

from ._dispatch import choose, must_use_definition
from .likelihood_rows import accumulator, runs_directly
from .linear_rows import affine, as_rows, backward_in_chunks, cast_for_autocast, check_linear, chunks, has_few_params

__all__ = ["linear_bernoulli_log_prob"]

_FEWEST_TO_FOLD = 192  # rows of one datapoint from which weights with its signs cost less than signs on its logits
_GROUP = 8  # probabilities that are multiplied before one logarithm: their product underflows beyond 11 nats each


def linear_bernoulli_log_prob(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, event_dims: int = 1) -> Tensor:
    r"""Log-probability of binary data whose logits are :math:`W h + b`, summed over the event.

    Equal to ``bernoulli_log_prob(x, F.linear(h, weight, bias))``, but the logits exist a chunk at a time: memory is
    that of ``h``. The backward pass computes them again. Second derivatives are refused. Whether ``x`` is binary is the
    caller's to know: values are not read back for a check here.

    Args:
        h: (..., H), floating point, for example (K, N, H): what enters the layer, samples first.
        weight: (D, H), in the dtype of ``h``, as :class:`torch.nn.Linear` keeps it; D is the size of the event.
        bias: (D,) or None.
        x: (..., D1, ..., De) zeros and ones of any dtype; its leading part broadcasts with that of ``h``.
        event_dims: e, how many last dimensions of ``x`` belong to one datapoint: 1 for flat data, 3 for images, whose
            values the layer gives in the order of ``x.flatten(-3)``.

    Returns:
        Log-probabilities in nats with the broadcast leading shape; float64 for float64 ``h``, else float32.

    Raises:
        TypeError: if ``h``, ``weight`` or ``bias`` is not floating point or their dtypes differ, or ``x`` is complex.
        ValueError: if shapes do not fit or do not broadcast, or the devices differ.

    Example:
        >>> h, layer = torch.zeros(5, 2, 8), torch.nn.Linear(8, 3)
        >>> linear_bernoulli_log_prob(h, layer.weight, layer.bias, torch.ones(2, 3)).shape
        torch.Size([5, 2])
    """
    h, weight, bias = cast_for_autocast(h, weight, bias)  # type: ignore[assignment]
    check_linear(h, weight, bias, x, event_dims)
    rows, data, batch = as_rows(h, x, event_dims)
    inputs = (h, weight) if bias is None else (h, weight, bias)
    use_torch = choose(data, rows, weight) == "torch"
    if x.requires_grad or must_use_definition(x, *inputs) or (use_torch and has_few_params(rows, weight)):
        return _definition(h, weight, bias, x, event_dims).expand(batch)
    data = data.flatten(1)
    if use_torch and runs_directly(*inputs):
        return _torch_forward(data, rows.detach(), weight.detach(), None if bias is None else bias.detach()).view(batch)
    return _forward(data, rows, weight, bias).view(batch)


def _definition(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, event_dims: int) -> Tensor:
    if h.dtype not in (torch.float16, torch.bfloat16):
        return reference.linear_bernoulli_log_prob(h, weight, bias, x, event_dims)
    # half precision is for the product; the likelihood of its result is summed in float32
    logits = F.linear(h, weight, bias).float().unflatten(-1, x.shape[x.ndim - event_dims :])
    return reference.bernoulli_log_prob(x, logits, event_dims)


@torch.library.custom_op("fastvae::linear_bernoulli_log_prob", mutates_args=())
def _forward(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _torch_forward(x, h, weight, bias)


@_forward.register_fake
def _(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return h.new_empty(h.shape[0], dtype=accumulator(h))


@torch.library.custom_op("fastvae::linear_bernoulli_log_prob_backward", mutates_args=())
def _backward(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return _torch_backward(x, h, weight, bias, grad, needs)


@_backward.register_fake
def _(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        h.new_empty(h.shape if needs[0] else 0),
        weight.new_empty(weight.shape if needs[1] else 0),
        weight.new_empty(weight.shape[0] if needs[2] else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = [bool(needed) for needed in ctx.needs_input_grad[1:]]
    grads = _backward(*ctx.saved_tensors, grad, needs)
    return None, *(value if needed else None for value, needed in zip(grads, needs, strict=True))


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _torch_forward(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` (X, D), ``h`` (R, H) -> (R,)."""
    (num_data, size), dtype = x.shape, accumulator(h)
    repeats = h.shape[0] // max(num_data, 1)
    total = h.new_empty((repeats, num_data), dtype=dtype)
    rows, signs = h.view(repeats, num_data, h.shape[1]), 2 * x.to(h.dtype) - 1
    if repeats < _FEWEST_TO_FOLD:
        for i, j in chunks(repeats, num_data, size, h.device):
            logits = affine(rows[i, j].flatten(0, 1), weight, bias).view(*total[i, j].shape, size)
            total[i, j] = _of_signed_logits(logits.to(dtype).mul_(signs[j])).view(total[i, j].shape)
        return total.view(-1)
    for n in range(num_data):
        signed = signs[n, :, None] * weight, None if bias is None else signs[n] * bias
        for i, _ in chunks(repeats, 1, size, h.device):
            total[i, n] = _of_rows(rows[i, n], *signed, dtype)
    return total.view(-1)


def _of_rows(h: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``sum log sigmoid(h @ weight.T + bias)``: ``h`` (R, H), ``weight`` (D, H) with the signs of the data -> (R,)."""
    if h.dtype != dtype:
        return _of_signed_logits(affine(h, weight, bias).to(dtype)[None])
    total, underflows = _sum_of_logs(affine(h, weight, bias, "sigmoid"))
    if underflows.any():
        total[underflows] = F.logsigmoid(affine(h[underflows], weight, bias)).sum(-1)
    return total


def _of_signed_logits(logits: Tensor) -> Tensor:
    """``sum log sigmoid(logits)``, ``logits`` (..., D), which it may overwrite -> (rows,)."""
    logits = logits.flatten(0, -2)
    if logits.device.type != "cpu":
        return F.logsigmoid(logits).sum(-1)
    total, underflows = _sum_of_logs(logits.sigmoid())
    if underflows.any():
        total[underflows] = F.logsigmoid(logits[underflows]).sum(-1)
    return total


def _sum_of_logs(p: Tensor) -> tuple[Tensor, Tensor]:
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


def _torch_backward(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    data = x.to(accumulator(h))

    def slope(x: Tensor, p: Tensor) -> Tensor:
        """x - sigmoid(logits)."""
        p = p.view(-1, *x.shape)
        return torch.sub(x, p, out=p if p.dtype == x.dtype else None).view(-1, x.shape[1])

    return backward_in_chunks(data, h, weight, bias, grad, slope, needs, activation="sigmoid")
