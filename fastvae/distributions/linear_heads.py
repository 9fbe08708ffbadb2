"""Likelihoods whose parameters are the output of a last linear layer: ``log_prob`` never forms that output in full."""

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvae import ops

from .bernoulli import Bernoulli, BernoulliLikelihood
from .categorical import Categorical, CategoricalLikelihood
from .gaussian import Gaussian, GaussianLikelihood
from .likelihood import ImageDistribution, Likelihood

__all__ = ["LinearBernoulli", "LinearCategorical", "LinearGaussian", "likelihood_of_linear"]

# parameters that a gradient may keep: below, the layer and the likelihood apart are faster than computing them twice
_KEPT = 2**24


def likelihood_of_linear(
    family: Likelihood, h: Tensor, weight: Tensor, bias: Tensor | None, event_shape: Sequence[int]
) -> ImageDistribution:
    """What ``family`` makes of the output of a linear layer, computed only where it is asked for.

    ``log_prob`` of the Bernoulli, Gaussian and categorical families runs as one operator with the layer, in memory that
    does not grow with the output; ``mean``, ``sample`` and the parameters form the output. Other families are given the
    output at once.

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
    if type(family) is GaussianLikelihood:
        return _GaussianOfLinear(h, weight, bias, event_shape, family)
    if type(family) is CategoricalLikelihood:
        return _CategoricalOfLinear(h, weight, bias, event_shape, family)
    return _formed(family, h, weight, bias, event_shape)


def _formed(
    family: Likelihood, h: Tensor, weight: Tensor, bias: Tensor | None, event_shape: Sequence[int]
) -> ImageDistribution:
    channels, *sites = event_shape
    return family(F.linear(h, weight, bias).unflatten(-1, (family.num_maps(channels), *sites)))


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


class _GaussianOfLinear(Gaussian):
    def __init__(
        self,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        event_shape: Sequence[int],
        family: GaussianLikelihood,
    ) -> None:
        ImageDistribution.__init__(self, torch.Size((*h.shape[:-1], *event_shape)))
        self.linear, self.family = (h, weight, bias), family
        self.shared = None if family.scale_mode == "pixel" else family.log_scale

    @cached_property
    def _params(self) -> Gaussian:
        return cast(Gaussian, _formed(self.family, *self.linear, self.event_shape))

    @property
    def loc(self) -> Tensor:  # type: ignore[override]
        return self._params.loc

    @property
    def log_scale(self) -> Tensor:  # type: ignore[override]
        return self._params.log_scale

    def _log_prob(self, x: Tensor) -> Tensor:
        if "_params" in vars(self) or _forms_params(x, *self.linear, self.shared):
            return super()._log_prob(x)
        return ops.linear_gaussian_log_prob(*self.linear, x, self.shared, event_dims=3, params_dim=-3)


class _CategoricalOfLinear(Categorical):
    def __init__(
        self,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        event_shape: Sequence[int],
        family: CategoricalLikelihood,
    ) -> None:
        ImageDistribution.__init__(self, torch.Size((*h.shape[:-1], *event_shape)))
        self.linear, self.family = (h, weight, bias), family

    @property
    def num_levels(self) -> int:
        return self.family.num_levels

    @cached_property
    def logits(self) -> Tensor:  # type: ignore[override]
        return cast(Categorical, _formed(self.family, *self.linear, self.event_shape)).logits

    def _log_prob(self, x: Tensor) -> Tensor:
        if "logits" in vars(self) or _forms_params(x, *self.linear):
            return super()._log_prob(x)
        return ops.linear_categorical_log_prob(*self.linear, x, event_dims=3, levels_dim=-3)


class _LinearHead(nn.Linear):
    """A last linear layer whose output are the parameters of a family: forward gives the distribution."""

    def __init__(
        self,
        in_features: int,
        event_shape: Sequence[int],
        family: Likelihood,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        shape = torch.Size(event_shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"event_shape must be three positive integers (C, H, W), got {event_shape!r}")
        channels, height, width = shape
        super().__init__(in_features, family.num_maps(channels) * height * width, bias, device, dtype)
        self.event_shape, self.family = shape, family

    def forward(self, h: Tensor) -> ImageDistribution:  # type: ignore[override] # a distribution, not its parameters
        """``h`` (..., in_features) -> the distribution, batch (...) and event (C, H, W)."""
        return likelihood_of_linear(self.family, h, self.weight, self.bias, self.event_shape)


class LinearBernoulli(_LinearHead):
    """A last linear layer to the logits of binary images: gives their distribution, whose ``log_prob`` forms none.

    The parameters, initialisation and state dict are those of ``nn.Linear(in_features, C * H * W)``.

    Args:
        in_features: H, the size of what enters.
        event_shape: (C, H, W) of the images.
        bias: whether to learn one.
        device: as in ``nn.Linear``.
        dtype: as in ``nn.Linear``.

    Shapes:
        (..., in_features) to a :class:`Bernoulli` with batch (...) and event (C, H, W).

    Raises:
        ValueError: if ``event_shape`` is not (C, H, W).

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
        super().__init__(in_features, event_shape, BernoulliLikelihood(), bias, device, dtype)


class LinearGaussian(_LinearHead):
    """As :class:`LinearBernoulli` for continuous images.

    The parameters are those of ``nn.Linear(in_features, C * H * W)``, twice as wide with ``scale="pixel"``, whose
    output has shape (C, 2, H, W); a shared scale is ``family.log_scale`` in the state dict.

    Args:
        scale: of :class:`GaussianLikelihood`: ``"shared"``, ``"pixel"`` or a positive number.

    Example:
        >>> head = LinearGaussian(16, (1, 8, 8), scale="pixel")
        >>> head(torch.zeros(5, 2, 16)).log_prob(torch.ones(2, 1, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int,
        event_shape: Sequence[int],
        scale: str | float = "shared",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        family = GaussianLikelihood(scale).to(device=device, dtype=dtype)
        super().__init__(in_features, event_shape, family, bias, device, dtype)


class LinearCategorical(_LinearHead):
    """As :class:`LinearBernoulli` for images with integer levels; the output of the layer has shape (C, L, H, W).

    Args:
        num_levels: L.

    Example:
        >>> head = LinearCategorical(16, (1, 8, 8), num_levels=4)
        >>> head(torch.zeros(5, 2, 16)).log_prob(torch.ones(2, 1, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int,
        event_shape: Sequence[int],
        num_levels: int = 256,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, event_shape, CategoricalLikelihood(num_levels), bias, device, dtype)
