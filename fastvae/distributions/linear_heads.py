"""Likelihoods whose parameters are the output of a last linear layer: ``log_prob`` never forms that output in full."""

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvae import ops

from .bernoulli import Bernoulli, BernoulliLikelihood
from .likelihood import ImageDistribution, Likelihood

__all__ = ["LinearBernoulli", "likelihood_of_linear"]

# parameters that a gradient may keep: below, the layer and the likelihood apart are faster than computing them twice
_KEPT = 2**24


def likelihood_of_linear(
    family: Likelihood, h: Tensor, weight: Tensor, bias: Tensor | None, event_shape: Sequence[int]
) -> ImageDistribution:
    """What ``family`` makes of the output of a linear layer, computed only where it is asked for.

    ``log_prob`` of a Bernoulli family runs as one operator with the layer, in memory that does not grow with the
    output; ``mean``, ``sample`` and the parameters form the output. Other families are given the output at once.

    Args:
        family: of ``fastvae.distributions``.
        h: (..., H), what enters the layer.
        weight: (P, H), P the parameters of an image.
        bias: (P,) or None.
        event_shape: (C, H, W) of the images.

    Returns:
        A distribution with batch (...) and event (C, H, W).

    Example:
        >>> h, weight = torch.zeros(5, 4), torch.zeros(9, 4)
        >>> likelihood_of_linear(BernoulliLikelihood(), h, weight, None, (1, 3, 3)).log_prob(torch.ones(1, 3, 3)).shape
        torch.Size([5])
    """
    if type(family) is BernoulliLikelihood:
        return _BernoulliOfLinear(h, weight, bias, event_shape)
    channels, *sites = event_shape
    return family(F.linear(h, weight, bias).unflatten(-1, (channels * family.num_params, *sites)))


def _forms_params(x: Tensor, h: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether the parameters are formed for a gradient, because they are few."""
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h, weight, *others))
    return needs_grad and h.shape[:-1].numel() * weight.shape[0] <= _KEPT


class _BernoulliOfLinear(Bernoulli):
    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None, event_shape: Sequence[int]) -> None:
        ImageDistribution.__init__(self, torch.Size((*h.shape[:-1], *event_shape)))
        self.linear = h, weight, bias

    @cached_property
    def logits(self) -> Tensor:  # type: ignore[override] # computed once, when it is asked for
        return F.linear(*self.linear).unflatten(-1, self.event_shape)

    def _log_prob(self, x: Tensor) -> Tensor:
        if "logits" in vars(self) or _forms_params(x, *self.linear):
            return super()._log_prob(x)
        return ops.linear_bernoulli_log_prob(*self.linear, x, event_dims=3)


class LinearBernoulli(nn.Linear):
    """A last linear layer to the logits of binary images: gives their distribution, and its ``log_prob`` no logits.

    The parameters, initialisation and state dict are those of ``nn.Linear(in_features, C * H * W)``.

    Args:
        in_features: H, the size of what enters.
        event_shape: (C, H, W) of the images.
        bias: whether to learn one.
        device: as in ``nn.Linear``.
        dtype: as in ``nn.Linear``.

    Shapes:
        (..., in_features) to a :class:`Bernoulli` with batch (...) and event (C, H, W).

    Example:
        >>> head = LinearBernoulli(16, (1, 8, 8))
        >>> head(torch.zeros(5, 2, 16)).log_prob(torch.ones(2, 1, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int,
        event_shape: Sequence[int],
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = torch.Size(event_shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"event_shape must be three positive integers (C, H, W), got {event_shape!r}")
        super().__init__(in_features, shape.numel(), bias, device, dtype)
        self.event_shape = shape
        self.family = BernoulliLikelihood()

    def forward(self, h: Tensor) -> ImageDistribution:  # type: ignore[override]
        """``h`` (..., in_features) -> the distribution."""
        return likelihood_of_linear(self.family, h, self.weight, self.bias, self.event_shape)
