"""Last linear layers with a likelihood: they give the distribution, whose ``log_prob`` never forms their output."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .bernoulli import BernoulliLikelihood
from .categorical import CategoricalLikelihood
from .gaussian import GaussianLikelihood
from .last_layers import LastLinear, likelihood_of_layer
from .likelihood import ImageDistribution, Likelihood
from .logistic_mixture import LogisticMixtureLikelihood

__all__ = ["LinearBernoulli", "LinearCategorical", "LinearGaussian", "LinearLogisticMixture", "likelihood_of_linear"]


def likelihood_of_linear(
    family: Likelihood, h: Tensor, weight: Tensor, bias: Tensor | None, event_shape: Sequence[int]
) -> ImageDistribution:
    """What ``family`` makes of the output of a linear layer, computed only where it is asked for.

    ``log_prob`` runs as one operator with the layer, in memory that does not grow with the output; ``mean``, ``sample``
    and the parameters form the output. Families that are not ours are given the output at once.

    Args:
        family: of ``fastvae.distributions``.
        h: (..., H), what enters the layer.
        weight: (P, H), P the parameters of an image.
        bias: (P,) or None.
        event_shape: (C, H, W) of the images.

    Returns:
        A distribution with batch (...) and event (C, H, W).

    Raises:
        TypeError: if ``h`` is no tensor or has another dtype than ``weight``, or ``event_shape`` is not of integers.
        ValueError: if ``h`` does not fit ``weight`` or is on another device, or ``event_shape`` is not (C, H, W).

    Example:
        >>> h, weight = torch.zeros(5, 4), torch.zeros(9, 4)
        >>> likelihood_of_linear(BernoulliLikelihood(), h, weight, None, (1, 3, 3)).log_prob(torch.ones(1, 3, 3)).shape
        torch.Size([5])
    """
    shape = event_shape if isinstance(event_shape, torch.Size) else _checked_event_shape(event_shape)
    return likelihood_of_layer(family, LastLinear(h, weight, bias, shape))


def _checked_event_shape(event_shape: Sequence[int]) -> torch.Size:
    says = f"event_shape must be three positive integers (C, H, W), got {event_shape!r}"
    try:
        shape = torch.Size(event_shape)
    except TypeError as error:
        raise TypeError(says) from error
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(says)
    return shape


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
        shape = _checked_event_shape(event_shape)
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
        TypeError: if ``event_shape`` is not of integers.
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
        family = GaussianLikelihood(scale, dtype).to(device=device)
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


class LinearLogisticMixture(_LinearHead):
    """As :class:`LinearBernoulli` for images with many integer levels, one channel or three: mixtures of discretised
    logistics whose channels follow each other (see :class:`LogisticMixture`); the output of the layer has shape
    (3 K, H, W) or (10 K, H, W).

    Args:
        num_components: K.
        num_levels: L.

    Example:
        >>> head = LinearLogisticMixture(16, (3, 8, 8), num_components=2)
        >>> head(torch.zeros(5, 2, 16)).log_prob(torch.ones(2, 3, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int,
        event_shape: Sequence[int],
        num_components: int = 10,
        num_levels: int = 256,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        family = LogisticMixtureLikelihood(num_components, num_levels)
        super().__init__(in_features, event_shape, family, bias, device, dtype)
