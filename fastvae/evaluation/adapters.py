"""Models of every style in :func:`fastvae.log_likelihood`: most fit in two lines, the rest through small adapters.

``log_likelihood(x, proposal=, log_joint=, modules=[model])`` asks for q(z | x) and for log p(x, z). With ``prior`` a
``DiagonalGaussian(torch.zeros(d), torch.zeros(d))``:

===================================== ==================================================================================
the model has                         and fits as
===================================== ==================================================================================
an encoder -> (mean, log-variance)    ``proposal=lambda x: gaussian(*model.encode(x))`` with
                                      ``gaussian = lambda m, v: DiagonalGaussian(m, 0.5 * v)``
a decoder -> logits                   ``log_joint=lambda x, z: Bernoulli(model.decode(z), event_dims=1).log_prob(x)
                                      + prior.log_prob(z)``, with ``fastvae.distributions.Bernoulli``
a decoder that takes one batch (B, d) ``folded(model.decode)`` instead of ``model.decode``
a decoder -> probabilities            ``logits(model.decode)``; if it ends in ``nn.Sigmoid``, ``model.decoder[:-1]``
two stochastic layers                 ``proposal=lambda x: Chain(q(x), lambda z1: q(z2 | z1))``; z is then (z1, z2)
torch.distributions                   ``proposal=model.encode``, ``log_joint=lambda x, z: model.decode(z).log_prob(x)
                                      + prior.log_prob(z)``, in ``Independent`` where they are not
a flow (x, noise) -> (z, log q)       ``proposal=lambda x: SimpleNamespace(noise_size=d, from_noise=lambda noise:
                                      folded(model.flow)(noise, model.encode(x)))``
a flow that draws (z, log q) itself   ``proposal=lambda x: SimpleNamespace(rsample_and_log_prob=lambda shape:
                                      model.sample(x, shape[0]))``
labels, or any other condition        ``condition=labels``: ``proposal(x, labels)``, ``log_joint(x, z, labels)``
===================================== ==================================================================================

Bound to ``proposal``, ``prior`` and ``likelihood`` by :class:`fastvae.models.LatentVariableModel`, the same parts serve
:mod:`fastvae.objectives`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions.utils import _standard_normal
from torch.utils._python_dispatch import TorchDispatchMode

from .draw import Latent, from_noise, is_addressed, noise_size

__all__ = ["Chain", "folded", "logits"]


class Chain:
    r"""The proposal of several stochastic layers, :math:`q(z_1|x) q(z_2|z_1) q(z_3|z_1, z_2) \dots`; z is a tuple.

    Every number of noise has its address, so an estimate does not depend on chunks, batches or processes. All
    estimators of :mod:`fastvae.objectives` train it.

    Args:
        first: q(z1 | x): batch (N,), event (d1,), a diagonal normal or anything with ``from_noise`` and ``noise_size``.
        conditionals: each takes the layers before it, ``(K, N, d1), (K, N, d2), ...``, and returns the distribution of
            the next: batch (K, N).

    Raises:
        TypeError: if a part is of another kind; write the layers as one ``rsample_and_log_prob`` then.

    Example:
        >>> from fastvae.distributions import DiagonalGaussian
        >>> q = Chain(
        ...     DiagonalGaussian(torch.zeros(4, 3), torch.zeros(3)),
        ...     lambda z1: DiagonalGaussian(z1[..., :2], torch.zeros(2)),
        ... )
        >>> (z1, z2), log_q = q.rsample_and_log_prob((5,))
        >>> z1.shape, z2.shape, log_q.shape
        (torch.Size([5, 4, 3]), torch.Size([5, 4, 2]), torch.Size([5, 4]))
    """

    def __init__(self, first: Any, *conditionals: Callable[..., Any]) -> None:
        for conditional in conditionals:
            if not callable(conditional):
                raise TypeError(
                    f"conditionals must be callable, z1 -> q(z2 | z1), got {type(conditional).__name__}: the layer "
                    "depends on the sample"
                )
        self._first, self._conditionals = _addressed(first, "first"), conditionals
        self._sizes, means = [noise_size(first)], [first.mean[None]]
        for conditional in conditionals:  # one pass over the means tells how much noise each layer takes
            q = _addressed(conditional(*means), "a conditional")
            self._sizes.append(noise_size(q, batch_dims=2))
            means.append(q.mean)
        self._like = means[0]  # (1, N, d1)

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers one draw of all layers takes."""
        return sum(self._sizes)

    def from_noise(self, noise: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """``noise`` (K, N, noise_size) -> the layers, (K, N, d1), ..., and log q of all of them (K, N) in nats."""
        first, *rest = noise.split(self._sizes, dim=-1)
        layer, log_q = from_noise(self._first, first)
        layers: list[Any] = [layer]
        for conditional, part in zip(self._conditionals, rest, strict=True):
            layer, log_density = from_noise(conditional(*layers), part, batch_dims=2)
            layers.append(layer)
            log_q = log_q + log_density
        return tuple(layers), log_q

    def log_prob(self, z: Sequence[Tensor]) -> Tensor:
        """The layers (K, N, d1), ... -> log q of all of them (K, N) in nats."""
        total: Tensor | float = 0.0
        for i, layer in enumerate(z):
            q = self._conditionals[i - 1](*z[:i]) if i else self._first
            log_density = q.log_prob(layer)
            total = total + log_density.reshape(*layer.shape[:2], -1).sum(-1)  # a Normal has one for each dimension
        return cast(Tensor, total)

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[tuple[Tensor, ...], Tensor]:
        """Reparameterised draws with torch's generator, for training."""
        shape = (*sample_shape, self._like.shape[1], self.noise_size)
        return self.from_noise(_standard_normal(shape, self._like.dtype, self._like.device))


def folded(net: Callable[..., Any]) -> Callable[..., Any]:
    """``net`` for samples: many decoders take one batch (B, d), evaluation gives them z (K, N, d).

    Args:
        net: ``net(z, *others)`` of tensors with one leading dimension; returns a tensor, or a tuple of tensors, with
            the same one.

    Returns:
        The same for z (K, N, ...), or a tuple of such layers, and others (N, ...), one row for each datapoint. What it
        returns has the leading shape (K, N).

    Raises:
        TypeError: when called, if ``net`` returns something else than tensors.
        ValueError: when called, if a shape does not fit.

    Example:
        >>> decode = lambda z, label: torch.cat([z, label], 1) @ torch.ones(5, 7)  # cat wants one batch
        >>> folded(decode)(torch.zeros(10, 4, 3), torch.zeros(4, 2)).shape
        torch.Size([10, 4, 7])
    """

    def call(z: Latent, *others: Tensor) -> Any:
        layers = (z,) if isinstance(z, Tensor) else z
        lead = layers[0].shape[:2]
        if any(layer.ndim < 2 or layer.shape[:2] != lead for layer in layers):
            shapes = ", ".join(str(tuple(layer.shape)) for layer in layers)
            raise ValueError(f"z must have shape (K, N, ...), samples and datapoints first, got {shapes}")
        rows = tuple(layer.flatten(0, 1) for layer in layers)
        repeated = (_repeated(other, lead) for other in others)
        return _unfolded(net(rows[0] if isinstance(z, Tensor) else rows, *repeated), lead)

    return call


def logits(net: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``net`` without the sigmoid at its end: logits where it returns probabilities.

    In float32 a probability rounds to 1 from a logit of 17 on, and what is computed from it is off by the rest, up to
    the whole of it: ``binary_cross_entropy`` takes 100 nats instead, ``Bernoulli(probs)`` 15.9. So the input of the
    sigmoid is taken, as it was while ``net`` ran, with its gradients; nothing is inverted and nothing is clamped.
    Reshaping, slicing and permuting after the sigmoid are followed.

    Args:
        net: returns probabilities, straight from a sigmoid.

    Raises:
        ValueError: when called, if what ``net`` returns is not the output of a sigmoid: rescaled, clamped, or computed
            otherwise.

    Example:
        >>> decode = lambda z: torch.sigmoid(40 * z)
        >>> decode(torch.ones(1)).logit(), logits(decode)(torch.ones(1))
        (tensor([inf]), tensor([40.]))
    """

    def call(*inputs: Any) -> Tensor:
        with _Sigmoids() as seen:
            probabilities = net(*inputs)
        return seen.logits_of(probabilities)

    return call


class _Sigmoids(TorchDispatchMode):
    """Remembers what went into every sigmoid, and follows its output through operators that only move data."""

    def __init__(self) -> None:
        super().__init__()
        # output -> (kept alive, so that its memory is not given to another, input, the moves since)
        self._outputs: dict[tuple, tuple[Tensor, Tensor, list[Callable[[Tensor], Tensor]]]] = {}

    def logits_of(self, probabilities: Any) -> Tensor:
        if not isinstance(probabilities, Tensor):
            raise ValueError(f"net must return a tensor of probabilities, got {type(probabilities).__name__}")
        if _place(probabilities) not in self._outputs:
            raise ValueError(
                "net must return the output of a sigmoid, its logits are not to be found: what comes after the sigmoid "
                "(clamping, scaling) must go, or net must be the part before it"
            )
        _, values, moves = self._outputs[_place(probabilities)]
        for move in moves:  # out here they are differentiable
            values = move(values)
        return values if probabilities.requires_grad else values.detach()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is _fused_linear() and args[3] == "sigmoid":  # what fused_layers makes of Linear and Sigmoid
            before = func(*args[:3], "none", *args[4:])
            out = before.sigmoid()
            self._remember(out, before, [])
            return out
        if func is torch.ops.aten.sigmoid_.default and not args[0].requires_grad:  # a copy has no gradient
            before = args[0].clone()
            out = func(*args)
            self._forget(out)
            self._remember(out, before, [])
            return out
        out = func(*args, **kwargs)
        if func is torch.ops.aten.sigmoid.default:
            self._remember(out, args[0], [])
        elif func in _MOVES and _place(args[0]) in self._outputs:
            _, before, moves = self._outputs[_place(args[0])]
            self._remember(out, before, [*moves, lambda values: func(values, *args[1:], **kwargs)])
        elif func._schema.is_mutable:  # type: ignore[attr-defined]
            for changed in (*args, *kwargs.values()):
                if isinstance(changed, Tensor):
                    self._forget(changed)
        return out

    def _remember(self, out: Tensor, before: Tensor, moves: list[Callable[[Tensor], Tensor]]) -> None:
        self._outputs[_place(out)] = (out, before, moves)

    def _forget(self, changed: Tensor) -> None:
        """Whatever is in memory that an operator may have written to."""
        memory = _place(changed)[0]
        self._outputs = {
            place: entry for place, entry in self._outputs.items() if memory not in (place[0], _place(entry[1])[0])
        }


_ATEN = torch.ops.aten
_MOVES = {
    *(_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN._reshape_alias.default, _ATEN.as_strided.default),
    *(_ATEN.permute.default, _ATEN.transpose.int, _ATEN.t.default, _ATEN.expand.default, _ATEN.unsqueeze.default),
    *(_ATEN.squeeze.default, _ATEN.squeeze.dim, _ATEN.squeeze.dims, _ATEN.slice.Tensor, _ATEN.select.int),
    _ATEN.clone.default,  # detach and alias leave a tensor in its place
}


def _place(tensor: Tensor) -> tuple:
    """What tells a tensor from others while it lives, whatever Python object holds it."""
    memory = tensor.untyped_storage().data_ptr()
    return memory, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _fused_linear() -> Any:
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return packet and packet.default


def _addressed(q: Any, name: str) -> Any:
    if not is_addressed(q):
        raise TypeError(
            f"{name} must be a diagonal normal or have from_noise and noise_size, got {type(q).__name__}; several "
            "layers of another kind fit as one object with rsample_and_log_prob(shape) -> ((z1, z2, ...), log_q)"
        )
    return q


def _repeated(other: Tensor, lead: torch.Size) -> Tensor:
    """(N, ...) -> (K * N, ...)."""
    if not isinstance(other, Tensor) or other.shape[:1] != lead[1:]:
        got = tuple(other.shape) if isinstance(other, Tensor) else type(other).__name__
        raise ValueError(f"what net takes beside z must be tensors of shape ({lead[1]}, ...) (datapoints), got {got}")
    return other.expand(*lead, *other.shape[1:]).flatten(0, 1)


def _unfolded(out: Any, lead: torch.Size) -> Any:
    """(K * N, ...) -> (K, N, ...)."""
    if isinstance(out, tuple | list):
        return tuple(_unfolded(part, lead) for part in out)
    if not isinstance(out, Tensor):
        raise TypeError(
            f"net must return tensors, got {type(out).__name__}; of a distribution, fold what computes its log_prob: "
            "folded(lambda z, x: net(z).log_prob(x))(z, x)"
        )
    if out.shape[:1] != (lead.numel(),):
        raise ValueError(f"net must return one row for each of its {lead.numel()} inputs, got shape {tuple(out.shape)}")
    return out.unflatten(0, lead)
