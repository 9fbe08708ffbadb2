"""``linear_logistic_mixture_log_prob``: a last linear layer and its mixture of logistics, a chunk at a time."""

import math
from functools import partial

from torch import Tensor

from fastvae import reference

from ._dispatch import choose
from .likelihood_rows import why_no_kernel
from .linear_operators import FAMILIES, Family, linear_log_prob
from .linear_rows import affine, backward_in_chunks, forward_in_chunks
from .logistic_mixture_blocks import backward_in_blocks, forward_in_blocks
from .logistic_mixture_log_prob import logistic_mixture_log_prob

__all__ = ["linear_logistic_mixture_log_prob"]


def linear_logistic_mixture_log_prob(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, num_levels: int = 256, event_dims: int = 3
) -> Tensor:
    r"""Log-probability of integer levels under K discretised logistics whose parameters are :math:`W h + b`.

    Equal to ``logistic_mixture_log_prob(x, F.linear(h, weight, bias))`` with the output of the layer as (P, height,
    width), summed over the image. The parameters exist a chunk at a time, in forward and in backward, which computes
    them again. Second derivatives are refused.

    Args:
        h: (..., H), floating point, for example (K, N, H): what enters the layer, samples first.
        weight: (P S, H), in the dtype of ``h``, for images of S pixels: P = 3 K for one channel and 10 K for three, in
            the order of :func:`logistic_mixture_log_prob`.
        bias: (P S,) or None.
        x: (..., C, D2, ..., De), levels 0..L-1 in any real dtype, C = 1 or 3; its leading part broadcasts with that of
            ``h``.
        num_levels: L, at least 2.
        event_dims: e, how many last dimensions of ``x`` belong to one row of ``h``: 3 for images, 1 for pixels
            (..., C), which are the rows of a 1x1 convolution.

    Returns:
        Log-probabilities in nats with the broadcast leading shape; float64 for float64 ``h``, else float32.

    Raises:
        TypeError: if ``h``, ``weight`` or ``bias`` is not floating point or their dtypes differ, or ``x`` is complex.
        ValueError: if shapes do not fit each other or C, do not broadcast, the devices differ, or ``num_levels`` is
            less than 2.

    Example:
        >>> import torch
        >>> h, layer = torch.zeros(5, 2, 8), torch.nn.Linear(8, 10 * 4 * 6 * 6)
        >>> x = torch.randint(0, 256, (2, 3, 6, 6))
        >>> linear_logistic_mixture_log_prob(h, layer.weight, layer.bias, x).shape
        torch.Size([5, 2])
    """
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}")
    if not 1 <= event_dims <= x.ndim:
        raise ValueError(f"event_dims must be between 1 and the dimensions of x, {x.ndim}, got {event_dims}")
    channels, *sites = x.shape[x.ndim - event_dims :]
    if channels not in (1, 3):
        raise ValueError(f"x must have 1 or 3 channels in front of its event, got {channels} of {tuple(x.shape)}")
    num_sites = math.prod(sites)

    def of_params(x: Tensor, params: Tensor) -> Tensor:
        images = x.reshape(*x.shape[: x.ndim - event_dims], channels, num_sites, 1)
        return logistic_mixture_log_prob(images, params.unflatten(-1, (-1, num_sites, 1)), num_levels)

    definition = partial(reference.linear_logistic_mixture_log_prob, num_levels=num_levels, event_dims=event_dims)
    unit = max(1, (3 if channels == 1 else 10) * num_sites)
    return linear_log_prob(
        "logistic_mixture", definition, of_params, h, weight, bias, x, event_dims, 0, -event_dims,
        num_levels=num_levels, unit=unit,
    )  # fmt: skip


def _family_forward(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, log_scale: Tensor | None, num_levels: int
) -> Tensor:
    use_triton = choose(x, h, weight, unsupported=why_no_kernel(h)) == "triton"

    def log_prob(x: Tensor, params: Tensor) -> Tensor:
        return _forward(*_maps(x, params, use_triton), num_levels, x.shape[2] != 1, use_triton).flatten()

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
    use_triton = choose(x, h, weight, unsupported=why_no_kernel(h)) == "triton"

    def grad_params(x: Tensor, h: Tensor, grad: Tensor) -> Tensor:
        data, params = _maps(x, affine(h, weight, bias), use_triton)
        of_rows = grad if x.shape[2] != 1 else grad.view(params.shape[0], params.shape[2])
        by_params = _backward(data, params, of_rows.contiguous(), num_levels, use_triton)
        return by_params.transpose(1, 2).reshape(h.shape[0], -1) if x.shape[2] == 1 else by_params.flatten(1)

    return *backward_in_chunks(x, h, weight, grad, grad_params, needs), h.new_empty(0)


def _maps(x: Tensor, params: Tensor, use_triton: bool) -> tuple[Tensor, Tensor]:
    """Data ``x`` (n, C, S) and rows of parameters (m n, P S) as images (X, C, S'), (R, P, S'): rows that are pixels
    (S = 1) are put together to images, whose pixels are neighbours in what the likelihood computes with."""
    num_data, channels, sites = x.shape
    if sites != 1:
        return x, params.unflatten(1, (-1, sites))
    # the kernels are compiled for a number of pixels, and serve up to 128 of them at once
    together = min(num_data & -num_data, 128) if use_triton else num_data
    return x.reshape(-1, together, channels).transpose(1, 2), params.unflatten(0, (-1, together)).transpose(1, 2)


def _forward(x: Tensor, params: Tensor, num_levels: int, sum_sites: bool, use_triton: bool) -> Tensor:
    if use_triton:
        from fastvae_kernels import logistic_mixture_log_prob as kernels

        return kernels.logistic_mixture_log_prob_forward(x.contiguous(), params, num_levels, sum_sites)
    return forward_in_blocks(x, params, num_levels, sum_sites)


def _backward(x: Tensor, params: Tensor, grad: Tensor, num_levels: int, use_triton: bool) -> Tensor:
    if use_triton:
        from fastvae_kernels import logistic_mixture_log_prob as kernels

        return kernels.logistic_mixture_log_prob_backward(x.contiguous(), params, grad, num_levels)
    return backward_in_blocks(x, params, grad, num_levels)


FAMILIES["logistic_mixture"] = Family(_family_forward, _family_backward)
