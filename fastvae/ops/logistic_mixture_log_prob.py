"""``logistic_mixture_log_prob``: levels under discretised logistics, in one read of the parameters on CUDA."""

import math
from typing import Any

import torch
from torch import Tensor

from fastvae import reference
from fastvae.reference import logistic_mixture_parts

from ._dispatch import choose, must_use_definition, refuse_tangents
from .likelihood_rows import (
    accumulator,
    broadcast_batch,
    check_inputs,
    is_small,
    repeating_rows,
    runs_directly,
    why_no_kernel,
    widened,
)
from .logistic_mixture_blocks import backward_in_blocks, forward_in_blocks

__all__ = ["logistic_mixture_log_prob", "logistic_mixture_parts"]


def logistic_mixture_log_prob(x: Tensor, params: Tensor, num_levels: int = 256) -> Tensor:
    r"""Log-probability of integer levels under a mixture of K discretised logistics per pixel, summed over the image.

    Salimans et al. (2017), PixelCNN++, sections 2.1 and 2.2. With the levels scaled to [-1, 1] and d half of their
    distance, a component gives level x the mass :math:`\sigma((x - \mu + d) / s) - \sigma((x - \mu - d) / s)` of a
    logistic, the first level all mass below it too and the last one all above. With three channels a component's mean
    of green is :math:`\mu_g + \alpha r`, that of blue :math:`\mu_b + \beta r + \gamma g`, and all channels share the
    component. As in the authors' code the coefficients are the tanh of the parameters. Unlike it, nothing is clamped:
    logarithms are taken of no difference, so that tiny bins and extreme parameters keep their digits and the
    probabilities of all images sum to one; log-scales are taken as they are (the authors' lower bound of -7 is the
    network's to apply).

    Args:
        x: (..., C, H, W), levels 0..L-1 in any real dtype, C = 1 or 3; its leading part broadcasts with that of
            ``params``. Values are not read back for a check here.
        params: (..., P, H, W), floating point, in the order of the authors' code: K logits of the components, then for
            each channel K means, K log-scales and, if C = 3, K coefficients: of green on red, of blue on red, of blue
            on green. P is 3 K for C = 1 and 10 K for C = 3. Means and scales are those of levels scaled to [-1, 1].
        num_levels: L, at least 2.

    Returns:
        Log-probabilities in nats with the broadcast leading shape; float64 for float64 parameters, else float32.

    Raises:
        TypeError: if ``params`` is not floating point, or ``x`` is complex.
        ValueError: if the shapes do not fit each other or C, the devices differ, or ``num_levels`` is less than 2.

    Example:
        >>> x = torch.randint(0, 256, (2, 3, 8, 8))
        >>> logistic_mixture_log_prob(x, torch.zeros(5, 2, 10 * 4, 8, 8)).shape
        torch.Size([5, 2])
    """
    check_inputs(x, params=params)
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}")
    _check_shapes(x, params)
    channels, (num_params, height, width) = x.shape[-3], params.shape[-3:]
    batch = broadcast_batch(x, torch.Size((channels, height, width)), params.shape[:-3], "params, by channels,")
    use_torch = choose(x, params) == "torch"
    count = math.prod(batch + params.shape[-3:])
    few = use_torch and is_small(count, params, factor=0.25, factor_with_grad=0.25)
    if x.requires_grad or few or must_use_definition(x, params):
        return reference.logistic_mixture_log_prob(x, widened(params), num_levels)
    # the operator sees two shapes only: data (X, C, S) and parameters (R, P, S), R a multiple of X
    rows = params.expand(batch + params.shape[-3:]).reshape(math.prod(batch), num_params, height * width)
    data = repeating_rows(x, batch, 3).flatten(2)
    if use_torch and runs_directly(rows):
        return forward_in_blocks(data, rows, num_levels).view(batch)
    return _forward(data, rows, num_levels).view(batch)


def _check_shapes(x: Tensor, params: Tensor) -> None:
    if x.ndim < 3 or params.ndim < 3:
        raise ValueError(
            f"x must have shape (..., C, H, W) and params (..., P, H, W), got {tuple(x.shape)} and "
            f"{tuple(params.shape)}"
        )
    channels, num_params = x.shape[-3], params.shape[-3]
    if channels not in (1, 3):
        raise ValueError(f"x must have 1 or 3 channels, got {channels}")
    groups = 3 if channels == 1 else 10
    if num_params == 0 or num_params % groups:
        raise ValueError(
            f"params must have a multiple of {groups} channels for images of {channels}, {groups} for each component, "
            f"got {num_params}"
        )


@torch.library.custom_op("fastvae::logistic_mixture_log_prob", mutates_args=())
def _forward(x: Tensor, params: Tensor, num_levels: int) -> Tensor:
    if choose(x, params, unsupported=why_no_kernel(params)) == "triton":
        from fastvae_kernels import logistic_mixture_log_prob as kernels

        return kernels.logistic_mixture_log_prob_forward(x.contiguous(), params, num_levels)
    return forward_in_blocks(x, params, num_levels)


@_forward.register_fake
def _(x: Tensor, params: Tensor, num_levels: int) -> Tensor:
    return params.new_empty(params.shape[0], dtype=accumulator(params))


@torch.library.custom_op("fastvae::logistic_mixture_log_prob_backward", mutates_args=())
def _backward(x: Tensor, params: Tensor, grad: Tensor, num_levels: int) -> Tensor:
    if choose(x, params, unsupported=why_no_kernel(params)) == "triton":
        from fastvae_kernels import logistic_mixture_log_prob as kernels

        return kernels.logistic_mixture_log_prob_backward(x.contiguous(), params, grad.contiguous(), num_levels)
    return backward_in_blocks(x, params, grad, num_levels)


@_backward.register_fake
def _(x: Tensor, params: Tensor, grad: Tensor, num_levels: int) -> Tensor:
    return torch.empty_like(params)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, params, ctx.num_levels = inputs
    ctx.save_for_backward(x, params)


def _autograd(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
    refuse_tangents("logistic_mixture_log_prob", grad)
    return None, _backward(*ctx.saved_tensors, grad, ctx.num_levels), None


_forward.register_autograd(_autograd, setup_context=_setup_context)
