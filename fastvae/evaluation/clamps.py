"""A warning where a likelihood is computed from probabilities that were rounded or clamped, not from logits."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .plan import OutputSizes

__all__ = ["ClampedProbabilities"]

_ATEN = torch.ops.aten
_FIX = "fastvae.evaluation.adapters.logits(decoder) gives the logits before the sigmoid"


class ClampedProbabilities(OutputSizes):
    """Inside this context the usual ways to lose a likelihood's tail are warned of.

    ``binary_cross_entropy`` takes 100 nats where a probability rounded to 0 or 1, whatever the logit was;
    ``torch.distributions`` clamps ``probs=`` at the float's epsilon, 15.9 nats in float32; probabilities given as
    logits put a floor of 0.31 nats under every value. Clamps written by hand do not show.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sigmoids: dict[int, Tensor] = {}  # by their memory; kept, so that it is not given to another

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func is _ATEN.sigmoid.default:
            self._sigmoids[_memory(out)] = out
        elif func is _ATEN.binary_cross_entropy.default:
            _warn(f"binary_cross_entropy of probabilities clamps its logarithms at -100 nats: {_FIX}")
        elif func is _ATEN.binary_cross_entropy_with_logits.default and _memory(args[0]) in self._sigmoids:
            _warn(f"binary_cross_entropy_with_logits is given probabilities where it expects logits: {_FIX}")
        elif func is _ATEN.clamp.default and _is_clamp_of_probs(args):
            _warn(f"torch.distributions clamps probs= at the float's epsilon: pass logits=; {_FIX}")
        return out


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_clamp_of_probs(args: Sequence[Any]) -> bool:
    eps = torch.finfo(args[0].dtype).eps if args[0].is_floating_point() else None
    return eps is not None and tuple(args[1:]) == (eps, 1 - eps)


def _warn(message: str) -> None:
    warnings.warn(f"log p(x, z) may be wrong in the tails: {message}", UserWarning, stacklevel=2)
