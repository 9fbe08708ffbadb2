"""``linear_bernoulli_log_prob``: a last linear layer and the likelihood of binary data in one, without the logits."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae import reference

from ._dispatch import choose
from .bernoulli_log_prob import bernoulli_log_prob, of_signed_logits, sum_of_logs
from .likelihood_rows import accumulator, why_no_kernel
from .linear_operators import FAMILIES, Family, linear_log_prob
from .linear_rows import affine, backward_in_chunks, chunks

__all__ = ["linear_bernoulli_log_prob"]

_FEWEST_TO_FOLD = 1024  # rows of one datapoint from which weights with its signs cost less than signs on its logits


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

    def of_params(x: Tensor, params: Tensor) -> Tensor:
        return bernoulli_log_prob(x, params.unflatten(-1, x.shape[x.ndim - event_dims :]), event_dims)

    definition = partial(reference.linear_bernoulli_log_prob, event_dims=event_dims)
    return linear_log_prob("bernoulli", definition, of_params, h, weight, bias, x, event_dims, per_value=1)


def _family_forward(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, log_scale: Tensor | None, num_levels: int
) -> Tensor:
    """``x`` (X, A, B), ``h`` (R, H) -> (R,)."""
    if choose(x, h, weight, unsupported=why_no_kernel(h)) == "triton":
        from fastvae_kernels import linear_bernoulli_log_prob as kernels

        return kernels.linear_bernoulli_forward(x.flatten(1).contiguous(), h.contiguous(), weight.contiguous(), bias)
    return _torch_forward(x.flatten(1), h, weight, bias)


def _torch_forward(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` (X, D), ``h`` (R, H) -> (R,)."""
    num_data, size, dtype = x.shape[0], weight.shape[0], accumulator(h)
    repeats = h.shape[0] // max(num_data, 1)
    total = h.new_empty((repeats, num_data), dtype=dtype)
    rows, signs = h.view(repeats, num_data, h.shape[1]), 2 * x.to(h.dtype) - 1
    if repeats < _FEWEST_TO_FOLD:
        for i, j in chunks(repeats, num_data, size, h.device):
            total[i, j] = _of_block(rows[i, j], weight, bias, signs[j], dtype).view(total[i, j].shape)
        return total.view(-1)
    for n in range(num_data):
        signed = signs[n, :, None] * weight, None if bias is None else signs[n] * bias
        for i, _ in chunks(repeats, 1, size, h.device):
            total[i, n] = _of_rows(rows[i, n], *signed, dtype)
    return total.view(-1)


def _of_block(h: Tensor, weight: Tensor, bias: Tensor | None, signs: Tensor, dtype: torch.dtype) -> Tensor:
    """``sum log sigmoid(signs * (h @ weight.T + bias))``: ``h`` (r, n, H), ``signs`` (n, D) -> (r * n,)."""
    h, signs = h.flatten(0, 1), signs.expand(h.shape[0], *signs.shape)

    def logits(h: Tensor) -> Tensor:
        return affine(h, weight, bias).to(dtype)

    signed = logits(h).view(signs.shape).mul_(signs).flatten(0, 1)
    if signed.device.type != "cpu":
        return F.logsigmoid(signed).sum(-1)
    total, underflows = sum_of_logs(signed.sigmoid_())
    if underflows.any():
        total[underflows] = F.logsigmoid(logits(h[underflows]) * signs.flatten(0, 1)[underflows]).sum(-1)
    return total


def _of_rows(h: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``sum log sigmoid(h @ weight.T + bias)``: ``h`` (R, H), ``weight`` (D, H) with the signs of the data -> (R,)."""
    if h.dtype != dtype:
        return of_signed_logits(affine(h, weight, bias).to(dtype)[None])
    total, underflows = sum_of_logs(affine(h, weight, bias, "sigmoid"))
    if underflows.any():
        total[underflows] = F.logsigmoid(affine(h[underflows], weight, bias)).sum(-1)
    return total


def _family_backward(
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_scale: Tensor | None,
    num_levels: int,
    grad: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def grad_logits(x: Tensor, h: Tensor, grad: Tensor) -> Tensor:
        """(x - sigmoid(logits)) times ``grad``."""
        if use_triton:
            from fastvae_kernels import linear_bernoulli_log_prob as kernels

            return kernels.linear_bernoulli_grad_logits(x.contiguous(), h.contiguous(), weight, bias, grad.contiguous())
        p = affine(h, weight, bias, "sigmoid").view(-1, *x.shape)
        slope = torch.sub(x, p, out=p if p.dtype == x.dtype else None)
        return slope.view(-1, x.shape[1]).mul_(grad[:, None])

    use_triton = choose(x, h, weight, unsupported=why_no_kernel(h)) == "triton"
    weight = weight.contiguous()
    data = x.flatten(1) if use_triton else x.flatten(1).to(accumulator(h))
    return *backward_in_chunks(data, h, weight, grad, grad_logits, needs), h.new_empty(0)


FAMILIES["bernoulli"] = Family(_family_forward, _family_backward)
