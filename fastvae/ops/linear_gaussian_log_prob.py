"""``linear_gaussian_log_prob``: a last linear layer and the Gaussian likelihood in one, without its output in full."""

from functools import partial

import torch
from torch import Tensor

from fastvae import reference

from ._dispatch import choose
from .gaussian_log_prob import _backward as _gaussian_backward
from .gaussian_log_prob import _forward as _gaussian_forward
from .gaussian_log_prob import gaussian_log_prob
from .likelihood_rows import accumulator, check_inputs, why_no_kernel
from .linear_operators import FAMILIES, Family, linear_log_prob
from .linear_rows import affine, backward_in_chunks, check_params_dim, forward_in_chunks, with_params

__all__ = ["linear_gaussian_log_prob"]


def linear_gaussian_log_prob(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    log_scale: Tensor | None = None,
    event_dims: int = 1,
    params_dim: int | None = None,
) -> Tensor:
    r"""Log-density of independent Gaussians whose means are :math:`W h + b`, summed over the event.

    Equal to ``gaussian_log_prob(x, F.linear(h, weight, bias), log_scale)``; without ``log_scale`` the layer gives the
    log-scales as well. Its output exists a chunk at a time, in forward and in backward, which computes it again.
    Second derivatives are refused.

    Args:
        h: (..., H), floating point, for example (K, N, H): what enters the layer, samples first.
        weight: (P, H), in the dtype of ``h``: P = D, the size of the event, with ``log_scale``, else 2 D.
        bias: (P,) or None.
        x: (..., D1, ..., De) of any real dtype; its leading part broadcasts with that of ``h``.
        log_scale: logarithms of the standard deviations that all data share, broadcast with the event; None if the
            layer gives them.
        event_dims: e, how many last dimensions of ``x`` belong to one datapoint: 1 for flat data, 3 for images.
        params_dim: without ``log_scale``, where the pair (mean, log-scale) stands in the output of the layer, counted
            from the end: -3 for (C, 2, H, W). By default in front, first all means and then all log-scales.

    Returns:
        Log-densities in nats with the broadcast leading shape; float64 for float64 ``h``, else float32.

    Raises:
        TypeError: if ``h``, ``weight``, ``bias`` or ``log_scale`` is not floating point or dtypes differ, or ``x`` is
            complex.
        ValueError: if shapes do not fit or do not broadcast, or the devices differ.

    Example:
        >>> h, layer = torch.zeros(5, 2, 8), torch.nn.Linear(8, 2 * 3)
        >>> linear_gaussian_log_prob(h, layer.weight, layer.bias, torch.ones(2, 3)).shape
        torch.Size([5, 2])
    """
    dim = -event_dims - 1 if params_dim is None else params_dim
    check_params_dim("params_dim", dim, event_dims)
    shared = None if log_scale is None else _shared(log_scale, x, event_dims).to(accumulator(h))

    def of_params(x: Tensor, params: Tensor) -> Tensor:
        event = x.shape[x.ndim - event_dims :]
        if log_scale is not None:
            return gaussian_log_prob(x, params.unflatten(-1, event), log_scale, event_dims)
        both = params.unflatten(-1, with_params(event, 2, dim))
        return gaussian_log_prob(x, both.select(dim, 0), both.select(dim, 1), event_dims)

    definition = partial(reference.linear_gaussian_log_prob, log_scale=log_scale, event_dims=event_dims, params_dim=dim)
    return linear_log_prob(
        "gaussian", definition, of_params, h, weight, bias, x, event_dims, 2 if log_scale is None else 1, dim, shared
    )


def _shared(log_scale: Tensor, x: Tensor, event_dims: int) -> Tensor:
    """One log-scale (1,) or one for each value of the event (D,)."""
    check_inputs(x, log_scale=log_scale)
    if log_scale.numel() == 1:
        return log_scale.reshape(1)
    event = x.shape[x.ndim - event_dims :] if event_dims <= x.ndim else torch.Size()
    try:
        return log_scale.expand(event).reshape(-1)
    except RuntimeError:
        raise ValueError(
            f"log_scale must broadcast with the event {tuple(event)} of x, got {tuple(log_scale.shape)}"
        ) from None


def _family_forward(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, log_scale: Tensor | None, num_levels: int
) -> Tensor:
    if choose(x, h, weight, unsupported=why_no_kernel(h, weight)) == "triton":
        from fastvae_kernels import linear_gaussian_log_prob as kernels

        given = (x.contiguous(), h.contiguous(), weight.contiguous(), bias)
        return kernels.linear_gaussian_forward(*given, None if log_scale is None else log_scale.contiguous())

    def log_prob(x: Tensor, params: Tensor) -> Tensor:
        return _gaussian_forward(x.flatten(1), *_split(x, params, log_scale))

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
    grad_log_scale = h.new_empty(0) if log_scale is None else torch.zeros_like(log_scale)

    def grad_params(x: Tensor, h: Tensor, grad: Tensor) -> Tensor:
        if use_triton:
            from fastvae_kernels import linear_gaussian_log_prob as kernels

            given = (x, h.contiguous(), weight, bias, log_scale, grad.contiguous())
            by_params, by_shared = kernels.linear_gaussian_grad_params(*given)
            if by_shared is not None:
                grad_log_scale.add_(by_shared)
            return by_params
        params = affine(h, weight, bias)
        by_loc, by_scale = _gaussian_backward(x.flatten(1), *_split(x, params, log_scale), grad)
        if log_scale is not None:
            grad_log_scale.add_(by_scale[0])
            return by_loc
        return torch.stack([by_loc.view(-1, *x.shape[1:]), by_scale.view(-1, *x.shape[1:])], 2).flatten(1)

    use_triton = choose(x, h, weight, unsupported=why_no_kernel(h, weight)) == "triton"
    if use_triton:
        x, weight = x.contiguous(), weight.contiguous()
        log_scale = None if log_scale is None else log_scale.contiguous()
    return *backward_in_chunks(x, h, weight, grad, grad_params, needs), grad_log_scale


def _split(x: Tensor, params: Tensor, log_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means (rows, D) and log-scales (rows, D), or (1, 1) or (1, D) where they are shared; ``x`` (n, A, B)."""
    if log_scale is not None:
        return params, log_scale[None]
    loc, scale = params.view(-1, x.shape[1], 2, x.shape[2]).unbind(2)
    return loc.flatten(1), scale.flatten(1)


FAMILIES["gaussian"] = Family(_family_forward, _family_backward)
