"""``linear_categorical_log_prob``: a last linear layer and the likelihood of levels in one, without the logits."""

from functools import partial

from torch import Tensor

from fastvae import reference

from ._dispatch import choose
from .categorical_log_prob import _backward as _categorical_backward
from .categorical_log_prob import _forward as _categorical_forward
from .categorical_log_prob import categorical_log_prob
from .likelihood_rows import why_no_kernel
from .linear_operators import FAMILIES, Family, linear_log_prob
from .linear_rows import affine, backward_in_chunks, check_params_dim, forward_in_chunks, with_params

__all__ = ["linear_categorical_log_prob"]


def linear_categorical_log_prob(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, event_dims: int = 1, levels_dim: int = -1
) -> Tensor:
    r"""Log-probability of integer levels whose logits are :math:`W h + b`, summed over the event.

    Equal to ``categorical_log_prob(x, F.linear(h, weight, bias))`` with the output of the layer in the shape that it
    takes. The logits exist a chunk at a time, in forward and in backward, which computes them again. Second derivatives
    are refused. A value that is no level has probability zero.

    Args:
        h: (..., H), floating point, for example (K, N, H): what enters the layer, samples first.
        weight: (P, H), in the dtype of ``h``; P = D L for an event of size D and L levels.
        bias: (P,) or None.
        x: (..., D1, ..., De), levels 0..L-1 in any real dtype; its leading part broadcasts with that of ``h``.
        event_dims: e, how many last dimensions of ``x`` belong to one datapoint: 1 for flat data, 3 for images.
        levels_dim: where the levels stand in the output of the layer, counted from the end: -1 for (D, L), -3 with
            three event dimensions for (C, L, H, W).

    Returns:
        Log-probabilities in nats with the broadcast leading shape; float64 for float64 ``h``, else float32.

    Raises:
        TypeError: if ``h``, ``weight`` or ``bias`` is not floating point or their dtypes differ, or ``x`` is complex.
        ValueError: if shapes do not fit or do not broadcast, or the devices differ.

    Example:
        >>> import torch
        >>> h, layer = torch.zeros(5, 2, 8), torch.nn.Linear(8, 3 * 256)
        >>> linear_categorical_log_prob(h, layer.weight, layer.bias, torch.randint(0, 256, (2, 3))).shape
        torch.Size([5, 2])
    """
    check_params_dim("levels_dim", levels_dim, event_dims)

    def of_params(x: Tensor, params: Tensor) -> Tensor:
        event = x.shape[x.ndim - event_dims :]
        num_levels = weight.shape[0] // max(event.numel(), 1)
        return categorical_log_prob(
            x, params.unflatten(-1, with_params(event, num_levels, levels_dim)), event_dims, levels_dim
        )

    definition = partial(reference.linear_categorical_log_prob, event_dims=event_dims, levels_dim=levels_dim)
    return linear_log_prob("categorical", definition, of_params, h, weight, bias, x, event_dims, 0, levels_dim)


def _family_forward(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, log_scale: Tensor | None, num_levels: int
) -> Tensor:
    if choose(x, h, weight, unsupported=why_no_kernel(h)) == "triton":
        from fastvae_kernels import linear_categorical_log_prob as kernels

        return kernels.linear_categorical_forward(x.contiguous(), h.contiguous(), weight.contiguous(), bias)

    def log_prob(x: Tensor, logits: Tensor) -> Tensor:
        return _categorical_forward(x, _with_levels(x, logits))

    return forward_in_chunks(x, h, weight, bias, log_prob)


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
    if choose(x, h, weight, unsupported=why_no_kernel(h)) == "triton":
        return *_triton_backward(x, h, weight, bias, grad, needs), h.new_empty(0)

    def grad_logits(x: Tensor, h: Tensor, grad: Tensor) -> Tensor:
        return _categorical_backward(x, _with_levels(x, affine(h, weight, bias)), grad).flatten(1)

    return *backward_in_chunks(x, h, weight, grad, grad_logits, needs), h.new_empty(0)


def _triton_backward(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """With the levels of a value as neighbours: only then does a tile of gradients fill whole lines of memory."""
    from fastvae_kernels import linear_categorical_log_prob as kernels

    shape = (x.shape[1], -1, x.shape[2])  # (A, L, B)

    def grad_logits(x: Tensor, h: Tensor, grad: Tensor) -> Tensor:
        return kernels.linear_categorical_grad_logits(x, h.contiguous(), neighbours, bias, grad.contiguous())

    neighbours = weight.unflatten(0, shape).transpose(1, 2).flatten(0, 2).contiguous()
    bias = None if bias is None else bias.view(shape).transpose(1, 2).flatten()
    grads = backward_in_chunks(x.flatten(1).contiguous(), h, neighbours, grad, grad_logits, needs)
    levels_last = (x.shape[1], x.shape[2], -1)
    grad_weight, grad_bias = (
        value.unflatten(0, levels_last).transpose(1, 2).flatten(0, 2) if needed else value
        for value, needed in zip(grads[1:], needs[1:], strict=True)
    )
    return grads[0], grad_weight, grad_bias


def _with_levels(x: Tensor, logits: Tensor) -> Tensor:
    """(rows, A L B) -> (rows, A, L, B), ``x`` (n, A, B)."""
    return logits.view(logits.shape[0], x.shape[1], -1, x.shape[2])


FAMILIES["categorical"] = Family(_family_forward, _family_backward)
