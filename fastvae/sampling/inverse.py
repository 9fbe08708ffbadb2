"""``compile_inverse``: one-pass inversion and sampling of the masked MLP in any model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvae import ops
from fastvae.ops.masked_mlp_plan import Layout, MaskedMLPPlan

from .certify import tolerance
from .compiled import live_state
from .inputs import require_integer, require_tensor
from .lower_masked_mlp import lower_masked_mlp
from .trace import NotAutoregressiveError, UnsupportedModelError, trace_model

__all__ = ["Inverse", "compile_inverse"]


def compile_inverse(
    net: nn.Module,
    features: int,
    *,
    context_features: int = 0,
    concatenated: bool = False,
    draw: str | Callable[[Tensor, Tensor], Tensor] = "affine",
    layout: Layout = "by_dimension",
) -> "Inverse":
    r"""Prepare x with :math:`x_i = g(z_i, f_i(x_{<i}))` for the masked MLP f of a flow or an autoregressive model.

    The network is traced as it is: any module made of linear layers with masked weights (a ``mask`` buffer, in-place
    masking, weight norm), pointwise activations, residual sums, gates, and a context on unmasked paths. Which unit
    depends on which dimension follows from the zeros that its masks leave in the weights, so the order, the number of
    serial steps and the layers are found and not assumed; solutions cost one pass instead of one per dimension. See
    :func:`fastvae.ops.solve_masked_mlp`.

    Args:
        net: ``net(x)``, ``net(x, context)`` or, if ``concatenated``, ``net(torch.cat([x, context], -1))`` with x
            (N, D) gives D * P numbers for each row: (N, D * P), (N, D, P) or, ``by_parameter``, (N, P, D).
        features: D.
        context_features: C, the size of the context; 0 for none.
        concatenated: whether the network takes one tensor, the context behind the input.
        draw: "affine", :math:`e^{l} z + m` for P = 2 parameters (m, l); "affine_inverse", :math:`(z - m) e^{-l}`;
            "bernoulli"; "categorical"; or g(noise, params) with params (..., n, P), such as the inverse of the
            transform that a flow puts on each dimension.
        layout: "by_dimension" if the P parameters of a dimension are neighbours, "by_parameter" if the first ones of
            all dimensions come first, as ``params.chunk(2, -1)`` takes them.

    Returns:
        An :class:`Inverse`, called with noise.

    Raises:
        TypeError, ValueError: for arguments that make no sense.
        UnsupportedModelError: a ValueError, if the network has batch statistics, dropout in training mode, dense layers
            that make it depend on later dimensions, or an operator that is not understood; with the place.

    Example:
        A step of a flow of the package zuko (with a context: ``context_features=C, concatenated=True``):

        >>> import zuko
        >>> step = zuko.flows.MAF(5, transforms=1).transform.transforms[0]
        >>> inverse = compile_inverse(step.hyper, 5, draw=lambda y, params: step.univariate(*params.unbind(-1)).inv(y))
        >>> y = torch.randn(8, 5)
        >>> x, _ = inverse(y)
        >>> bool(torch.allclose(x, step().inv(y), atol=1e-6)), inverse.plan.num_steps
        (True, 5)
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    require_integer("features", features, 1, 2**31)
    require_integer("context_features", context_features, 0, 2**31)
    if concatenated and not context_features:
        raise ValueError("concatenated needs context_features, the size of the context behind the input")
    return Inverse(net, features, context_features, concatenated, draw, layout)


class Inverse:
    """Solutions of x = draw(noise, net(x)) in one pass; see :func:`compile_inverse`.

    Parameters are read at every call, with their gradients; changed buffers and modes are noticed and planned again.
    Python attributes of the network and tensors that are neither parameter nor buffer are part of the plan.

    Attributes:
        net: the network.
        draw: how values follow from noise and parameters.
        plan: the schedule; ``plan.num_steps`` serial steps.
    """

    plan: MaskedMLPPlan

    def __init__(
        self,
        net: nn.Module,
        features: int,
        context_features: int,
        concatenated: bool,
        draw: str | Callable[[Tensor, Tensor], Tensor],
        layout: Layout,
    ) -> None:
        self.net, self.draw = net, draw
        self._features, self._context_features, self._layout = features, context_features, layout
        self._model = _Concatenated(net) if concatenated else net
        self._signature: Any = None
        self._prepare()
        self._check()

    def __repr__(self) -> str:
        return f"Inverse({type(self.net).__name__}, {self._features} dimensions in {self.plan.num_steps} steps)"

    def __call__(self, noise: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve.

        Args:
            noise: (..., D).
            context: (..., C), broadcast to the leading dimensions of noise.

        Returns:
            x (..., D) and its parameters (..., D, P), differentiable with respect to noise, context and the parameters
            of the network; masked weights have no gradient.
        """
        require_tensor("noise", noise)
        if (context is None) != (self._context_features == 0):
            needs = f"of {self._context_features} features" if self._context_features else "none"
            got = "none" if context is None else f"one of shape {tuple(context.shape)}"
            raise ValueError(f"the network takes a context, {needs}, got {got}")
        if context is not None and context.shape[-1:] != (self._context_features,):
            raise ValueError(f"context must have shape (..., {self._context_features}), got {tuple(context.shape)}")
        self._prepare()
        rows = None if context is None else context.reshape(-1, self._context_features)
        known = self._trace.evaluate(self._lowered.nodes, live_state(self._model), rows, with_gradients=True)
        terms = [term.compute(known, noise) for term in self._lowered.terms]
        if context is not None:
            terms = [t.reshape(*context.shape[:-1], -1) if t.ndim == 2 else t for t in terms]
        return ops.solve_masked_mlp(noise, self.plan, self._lowered.weight_values(known, noise), terms, self.draw)

    def _prepare(self) -> None:
        """Trace and plan, if what they depend on has changed."""
        state = live_state(self._model)
        if self._signature is not None and self._signature == self._sign(state) and self._has_same_masks(state):
            return
        self._masks = masks = {name for name, tensor in state.items() if _is_mask(tensor)}
        like = next((t for t in state.values() if t.is_floating_point()), torch.zeros(0))
        x, context = (like.new_zeros(2, size) for size in (self._features, self._context_features))
        self._trace = trace_model(self._model, x, context if self._context_features else None)
        self._lowered = lowered = lower_masked_mlp(self._trace)
        num_params, rest = divmod(lowered.num_outputs, self._features)
        if rest or not num_params:
            raise ValueError(
                f"the network gives {lowered.num_outputs} numbers for each row, which is no multiple of features = "
                f"{self._features}"
            )
        # what is zero whatever the weights are: a weight may be zero at the start of training without being masked
        filled = {name: tensor if name in masks else _filled(tensor) for name, tensor in state.items()}
        known = self._trace.evaluate(lowered.nodes, filled, context)
        kept = [weight != 0 for weight in lowered.weight_values(known, x)]
        try:
            plan = ops.plan_masked_mlp(lowered.program, kept, self._features, num_params, layout=self._layout)
        except ops.NotAutoregressiveError as error:
            raise NotAutoregressiveError(f"{type(self.net).__name__}: {error}") from None
        self.plan, self._signature = plan.to(x.device), self._sign(state)
        self._kept = {name: state[name].detach().clone() for name in masks}

    def _sign(self, state: dict[str, Tensor]) -> Any:
        """What a plan depends on; weights are not looked at."""
        return (
            [(name, t.shape, t.dtype, t.device) for name, t in state.items()],
            [module.training for module in self._model.modules()],
        )

    def _has_same_masks(self, state: dict[str, Tensor]) -> bool:
        """By value: ``mask.data.copy_()`` leaves no other trace."""
        if any(t.is_cuda for t in state.values()) and torch.cuda.is_current_stream_capturing():
            return True  # a graph replays the plan that it was captured with
        return all(torch.equal(kept, state[name]) for name, kept in self._kept.items())

    @torch.no_grad()
    def _check(self) -> None:
        """The parameters found unit by unit are those of a pass of the network at the solution."""
        generator = torch.Generator().manual_seed(0)
        like = self._trace.image.meta["val"]
        noise, context = (
            torch.rand((3, size), generator=generator).to(like.device, like.dtype)
            for size in (self._features, self._context_features)
        )
        inputs = (context,) if self._context_features else ()
        x, params = self(noise, *inputs)
        want = self._model(x.to(like.dtype), *inputs).reshape(3, -1)
        found = (params if self._layout == "by_dimension" else params.transpose(1, 2)).reshape(3, -1)
        scale = 1.0 + want.abs().amax()
        if not bool(((found - want).abs() <= 100 * tolerance(x) * scale).all() or not want.isfinite().all()):
            raise UnsupportedModelError(
                "one-pass sampling gives other parameters than the network at the same values: does its forward depend "
                "on something else than its parameters, buffers, input and context?"
            )


class _Concatenated(nn.Module):
    """A network of one tensor as one of two."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.net(torch.cat([x, context], -1))


def _is_mask(tensor: Tensor) -> bool:
    """Whether the zeros of a tensor are there to stay: buffers, and parameters that are frozen zeros and ones."""
    if not isinstance(tensor, nn.Parameter):
        return True
    return not tensor.requires_grad and bool(((tensor == 0) | (tensor == 1)).all())


def _filled(weight: Tensor) -> Tensor:
    """Nothing happens to be zero."""
    return torch.rand_like(weight).add_(0.5)
