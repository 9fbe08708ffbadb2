"""``solve_masked_mlp`` and ``sample_masked_mlp``: values of an autoregressive network for the price of one pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastvae import reference
from fastvae.reference.masked_mlp import DRAWS, parse_program

from ._dispatch import must_use_definition, refuse_tangents
from .masked_mlp_draws import Callback, Function, Named, check_draw
from .masked_mlp_kernel import solve_by_kernel, uses_kernel
from .masked_mlp_plan import MaskedMLPPlan
from .masked_mlp_run import System, split_nodes
from .random import normal, uniform

__all__ = ["sample_masked_mlp", "solve_masked_mlp"]


def solve_masked_mlp(
    noise: Tensor,
    plan: MaskedMLPPlan,
    weights: Sequence[Tensor],
    terms: Sequence[Tensor] = (),
    draw: str | Function = "affine",
) -> tuple[Tensor, Tensor]:
    r"""The values x with :math:`x_i = g(z_i, f_i(x_{<i}))` for an autoregressive network f, in one pass.

    Equal to ``x = zeros_like(noise)`` and, ``plan.num_steps`` times, ``x = g(noise, f(x))``. Here every weight is used
    once in total: hidden units are sorted by the step at which they become final, and like a triangular system the
    network is solved block by block. Differentiable with respect to noise, weights and terms, by the transposed
    system: as exact and as fast. Memory is that of one pass.

    MADE: Germain et al., "MADE: masked autoencoder for distribution estimation" (2015). The inverse of a masked
    autoregressive flow: Papamakarios et al., "Masked autoregressive flow for density estimation" (2017), equation 3.

    Args:
        noise: (..., D), floating point.
        plan: of the network, from :func:`plan_masked_mlp`.
        weights: (rows, columns), as many as the plan has masks; what is masked does not count and has no gradient.
        terms: what is added (or multiplied) by the program without regard to x: biases (units,) and, one for each
            row of noise, conditions (..., units).
        draw: "affine", :math:`e^{l} z + m` of parameters (m, l); "affine_inverse", :math:`(z - m) e^{-l}`;
            "bernoulli", one where uniform noise is below the sigmoid of the logit; "categorical", the number of levels
            whose cumulated probability is at most the uniform noise; or a callable g(noise, params) of noise (..., n)
            and params (..., n, P) that makes each value from its own noise and parameters.

    Returns:
        x (..., D) and its parameters (..., D, P); float64 for float64 noise, else float32. Values of "bernoulli" and
        "categorical" have no gradient, their parameters do.

    Raises:
        TypeError: if an argument is no floating point tensor.
        ValueError: if shapes, dtypes or devices do not fit, or the draw does not exist or takes another number of
            parameters.

    Example:
        >>> import fastvae
        >>> mask = torch.ones(3, 3, dtype=torch.bool).tril(-1)
        >>> plan = fastvae.ops.plan_masked_mlp("linear 0 0 0", [mask], 3, 1)
        >>> weight, bias = torch.ones(3, 3), torch.zeros(3)
        >>> x, _ = solve_masked_mlp(torch.ones(3), plan, [weight], [bias], lambda z, params: z + params[..., 0])
        >>> x
        tensor([1., 2., 4.])
    """
    _check(noise, plan, weights, terms, draw)
    dtype = torch.float64 if noise.dtype == torch.float64 else torch.float32
    batch, size = noise.shape[:-1], plan.num_features
    plan = plan.to(noise.device)
    sorted_noise = noise.reshape(batch.numel(), size).t().index_select(0, plan.order).to(dtype)
    tensors = _sorted(plan, weights, terms, batch, dtype)
    if must_use_definition(noise, *weights, *terms):
        by_name = Callback(draw).values if callable(draw) else DRAWS[draw][1]
        with torch.autocast(noise.device.type, enabled=False):
            x, params = reference.solve_masked_mlp(sorted_noise, *tensors, plan.program, plan.num_steps, by_name)
    else:
        arguments = (sorted_noise, *map(list, tensors), plan.program, list(plan.offsets))
        values = _solve_with(draw, arguments) if callable(draw) else _forward(*arguments, draw)
        first, *_, last = split_nodes(values, plan.offsets, plan.num_nodes)
        x, params = first, last[plan.indices[0]]
    # (D, B) and (P, D, B) in sorted order -> (B, D) and (B, D, P)
    x, params = x.index_select(0, plan.rank).t(), params.index_select(1, plan.rank).permute(2, 1, 0)
    return x.reshape(*batch, size), params.reshape(*batch, size, plan.num_params)


@torch.no_grad()
def sample_masked_mlp(
    num_samples: int,
    plan: MaskedMLPPlan,
    weights: Sequence[Tensor],
    terms: Sequence[Tensor] = (),
    draw: str = "affine",
    *,
    seed: int = 0,
    first_id: int = 0,
) -> Tensor:
    """Values (B, D) from noise addressed by (seed, first_id + b, dimension); no gradient.

    Equal to :func:`solve_masked_mlp` with the numbers of :func:`fastvae.ops.normal` for "affine" and "affine_inverse",
    of :func:`fastvae.ops.uniform` for "bernoulli" and "categorical", ids first_id + b, row 0. The kernel makes them
    where they are used, the normal ones equal up to rounding.

    Args:
        num_samples: B.
        plan, weights: as for :func:`solve_masked_mlp`.
        terms: likewise; conditions have shape (B, units).
        draw: as for :func:`solve_masked_mlp`, by name.
        seed: an integer in [0, 2^64).
        first_id: the number of the first row; all numbers are in [0, 2^32).

    Returns:
        (B, D); float64 for float64 weights, else float32.

    Raises:
        TypeError: if ``draw`` is no name.
        ValueError: if a number is out of range, and as :func:`solve_masked_mlp`.

    Example:
        >>> import fastvae
        >>> mask = torch.ones(3, 3, dtype=torch.bool).tril(-1)
        >>> plan = fastvae.ops.plan_masked_mlp("linear 0 0 -1", [mask], 3, 1)
        >>> sample_masked_mlp(2, plan, [torch.ones(3, 3)], draw="bernoulli", seed=1).shape
        torch.Size([2, 3])
    """
    if not isinstance(draw, str):
        raise TypeError(f"draw must be a name, got {draw!r}: give solve_masked_mlp the noise that a callable takes")
    for name, number, end in (
        ("seed", seed, 2**64),
        ("num_samples", num_samples, 2**32),
        ("first_id", first_id, 2**32),
    ):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < end:
            raise ValueError(f"{name} must be an integer in [0, {end}), got {number!r}")
    if first_id + num_samples > 2**32:
        raise ValueError(f"rows must have numbers below 2^32, got first_id = {first_id} and {num_samples} rows")
    like = next((t for t in weights if isinstance(t, Tensor)), torch.empty(0))
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    shape = torch.Size([num_samples])
    # what the checks are to see of noise that is not made yet
    _check(like.new_empty(1, dtype=dtype).expand(*shape, plan.num_features), plan, weights, terms, draw)
    numbers = normal if draw.startswith("affine") else uniform
    tensors = _sorted(plan.to(like.device), weights, terms, shape, dtype)
    by_kernel = not must_use_definition(*weights, *terms) and uses_kernel(
        tensors[0][0], plan.offsets, plan.program, draw
    )
    if not by_kernel:
        ids = torch.arange(first_id, first_id + num_samples, device=like.device)
        noise = numbers(seed, ids, ids.new_zeros(1), plan.num_features, dtype=dtype)[:, 0]
        return solve_masked_mlp(noise, plan, weights, terms, draw)[0]
    plan = plan.to(like.device)
    values = solve_by_kernel(
        None, *tensors, plan.program, plan.offsets, draw, num_samples, order=plan.order, seed=seed, first_id=first_id
    )
    return values[: plan.num_features].index_select(0, plan.rank).t()


Sorted = tuple[list[Tensor], list[Tensor], tuple[Tensor, ...]]


def _sorted(
    plan: MaskedMLPPlan, weights: Sequence[Tensor], terms: Sequence[Tensor], batch: torch.Size, dtype: torch.dtype
) -> Sorted:
    """Weights, terms and indices as the solvers take them, units in the order of the plan."""
    flat = [t if t.ndim == 1 else t.expand(*batch, -1).reshape(batch.numel(), t.shape[-1]) for t in terms]
    wide_weights, wide_terms = ([t.to(dtype) for t in tensors] for tensors in (weights, flat))
    return plan.sorted_weights(wide_weights), plan.sorted_terms(wide_terms), plan.indices


def _check(noise: Tensor, plan: MaskedMLPPlan, weights: Sequence[Tensor], terms: Sequence[Tensor], draw: Any) -> None:
    if not isinstance(plan, MaskedMLPPlan):
        raise TypeError(f"plan must come from plan_masked_mlp, got {type(plan).__name__}")
    names = ["noise", *(f"weights[{i}]" for i in range(len(weights))), *(f"terms[{i}]" for i in range(len(terms)))]
    for name, tensor in zip(names, (noise, *weights, *terms), strict=True):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a floating point tensor, got {got}")
        if tensor.device != noise.device:
            raise ValueError(f"{name} must be on the device of noise, {noise.device}, got {tensor.device}")
    if noise.ndim == 0 or noise.shape[-1] != plan.num_features:
        raise ValueError(f"noise must have shape (..., {plan.num_features}), got {tuple(noise.shape)}")
    if len(weights) != len(plan.weight_rows) or len(terms) != len(plan.term_rows):
        raise ValueError(
            f"the plan takes {len(plan.weight_rows)} weights and {len(plan.term_rows)} terms, got {len(weights)} and "
            f"{len(terms)}"
        )
    for name, tensor, shape in zip(names[1:], weights, plan.weight_shapes, strict=False):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape of its mask, {shape}, got {tuple(tensor.shape)}")
    batch = noise.shape[:-1]
    for name, tensor, size in zip(names[1 + len(weights) :], terms, plan.term_sizes, strict=True):
        lead = tensor.shape[:-1]
        fits = tensor.ndim > 0 and tensor.shape[-1] == size and len(lead) <= len(batch)
        if not fits or any(a not in (1, b) for a, b in zip(reversed(lead), reversed(batch), strict=False)):
            raise ValueError(f"{name} must have shape ({size},) or {(*batch, size)}, got {tuple(tensor.shape)}")
    check_draw(draw, plan.num_params)


@torch.library.custom_op("fastvae::solve_masked_mlp", mutates_args=())
def _forward(
    noise: Tensor,
    weights: list[Tensor],
    terms: list[Tensor],
    indices: list[Tensor],
    program: str,
    offsets: list[int],
    draw: str,
) -> Tensor:
    if uses_kernel(noise, offsets, program, draw):
        return solve_by_kernel(noise, weights, terms, indices, program, offsets, draw, noise.shape[1])
    return System(weights, terms, indices, program, offsets, Named(draw)).forward(noise)


@_forward.register_fake
def _(
    noise: Tensor,
    weights: list[Tensor],
    terms: list[Tensor],
    indices: list[Tensor],
    program: str,
    offsets: list[int],
    draw: str,
) -> Tensor:
    length = len(offsets) // (1 + len(parse_program(program)))
    return noise.new_empty(sum(offsets[length - 1 :: length]), noise.shape[1])


@torch.library.custom_op("fastvae::solve_masked_mlp_backward", mutates_args=())
def _backward(
    grad: Tensor,
    values: Tensor,
    noise: Tensor,
    weights: list[Tensor],
    terms: list[Tensor],
    indices: list[Tensor],
    program: str,
    offsets: list[int],
    draw: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return System(weights, terms, indices, program, offsets, Named(draw)).backward(grad, values, noise)


@_backward.register_fake
def _(
    grad: Tensor,
    values: Tensor,
    noise: Tensor,
    weights: list[Tensor],
    terms: list[Tensor],
    indices: list[Tensor],
    program: str,
    offsets: list[int],
    draw: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return torch.empty_like(noise), [torch.empty_like(w) for w in weights], [torch.empty_like(t) for t in terms]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    noise, weights, terms, indices, ctx.program, ctx.offsets, ctx.draw = inputs
    ctx.counts = [len(weights), len(terms), len(indices)]
    ctx.save_for_backward(output, noise, *weights, *terms, *indices)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    refuse_tangents("solve_masked_mlp", grad)
    values, noise, *rest = ctx.saved_tensors
    weights, terms, indices = _split(rest, ctx.counts)
    draw = ctx.draw
    if isinstance(draw, str):
        grads = _backward(grad, values, noise, weights, terms, indices, ctx.program, ctx.offsets, draw)
    else:
        grads = System(weights, terms, indices, ctx.program, ctx.offsets, draw).backward(grad, values, noise)
    return *grads, [None] * len(indices), None, None, None


def _split(tensors: list[Tensor], counts: list[int]) -> list[list[Tensor]]:
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [tensors[end - count : end] for end, count in zip(ends, counts, strict=True)]


_forward.register_autograd(_autograd, setup_context=_setup_context)


class _SolveWithCallback(torch.autograd.Function):
    """The same with the user's draw, which no registered operator can take."""

    @staticmethod
    def forward(ctx: Any, draw: Callback, noise: Tensor, counts: list[int], *rest: Any) -> Tensor:
        *tensors, program, offsets = rest
        weights, terms, indices = _split(tensors, counts)
        values = System(weights, terms, indices, program, offsets, draw).forward(noise)
        _setup_context(ctx, (noise, weights, terms, indices, program, offsets, draw), values)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grad_noise, grad_weights, grad_terms, grad_indices, *rest = _autograd(ctx, grad)
        return None, grad_noise, None, *grad_weights, *grad_terms, *grad_indices, *rest[:2]


@torch.compiler.disable
def _solve_with(draw: Function, arguments: tuple[Any, ...]) -> Tensor:
    noise, weights, terms, indices, *rest = arguments
    counts = [len(weights), len(terms), len(indices)]
    return _SolveWithCallback.apply(Callback(draw), noise, counts, *weights, *terms, *indices, *rest)
