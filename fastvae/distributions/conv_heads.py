"""Last 1x1 convolutions with a likelihood: they give the distribution, whose ``log_prob`` never forms their output."""

import torch
from torch import Tensor, nn

from .bernoulli import BernoulliLikelihood
from .categorical import CategoricalLikelihood
from .gaussian import GaussianLikelihood
from .last_layers import LastConv1x1, likelihood_of_layer
from .likelihood import ImageDistribution, Likelihood, check_tensor
from .logistic_mixture import LogisticMixtureLikelihood

__all__ = ["ConvBernoulli", "ConvCategorical", "ConvGaussian", "ConvLogisticMixture", "likelihood_of_conv1x1"]


def likelihood_of_conv1x1(
    family: Likelihood, h: Tensor, weight: Tensor, bias: Tensor | None, num_channels: int
) -> ImageDistribution:
    """What ``family`` makes of the output of a 1x1 convolution, computed only where it is asked for.

    As :func:`likelihood_of_linear`, pixel by pixel. An output with no more channels than the input is formed by
    ``log_prob`` as well: it takes no more memory.

    Args:
        family: of ``fastvae.distributions``.
        h: (..., H, height, width), what enters the layer.
        weight: (P, H, 1, 1) or (P, H), P = ``family.num_maps(num_channels)``.
        bias: (P,) or None.
        num_channels: C of the images.

    Returns:
        A distribution with batch (...) and event (C, height, width).

    Raises:
        TypeError: if ``h`` is no tensor, or has another dtype than ``weight``.
        ValueError: if the shapes do not fit each other or the family, or ``h`` is on another device than ``weight``.

    Example:
        >>> conv, family = nn.Conv2d(8, 3 * 256, 1), CategoricalLikelihood(256)
        >>> distribution = likelihood_of_conv1x1(family, torch.zeros(5, 2, 8, 4, 4), conv.weight, conv.bias, 3)
        >>> distribution.log_prob(torch.ones(2, 3, 4, 4)).shape
        torch.Size([5, 2])
    """
    if weight.ndim not in (2, 4) or weight.shape[2:].numel() != 1:
        raise ValueError(f"weight must have shape (P, H, 1, 1) or (P, H), got {tuple(weight.shape)}")
    check_tensor("h", h)
    if h.ndim < 3 or h.shape[-3] != weight.shape[1]:
        raise ValueError(
            f"h must have shape (..., {weight.shape[1]}, height, width) for weight {tuple(weight.shape)}, got "
            f"{tuple(h.shape)}"
        )
    expected = family.num_maps(num_channels)
    if weight.shape[0] != expected:
        raise ValueError(
            f"weight must have {expected} outputs for {num_channels} channels of {family}, got {tuple(weight.shape)}"
        )
    return likelihood_of_layer(family, LastConv1x1(h, weight.flatten(1), bias, num_channels))


class _ConvHead(nn.Conv2d):
    """A last 1x1 convolution whose output are the parameters of a family: forward gives the distribution."""

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        family: Likelihood,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        super().__init__(in_channels, family.num_maps(num_channels), 1, bias=bias, device=device, dtype=dtype)
        self.num_channels, self.family = num_channels, family

    def forward(self, h: Tensor) -> ImageDistribution:  # type: ignore[override] # a distribution, not its parameters
        """``h`` (..., in_channels, height, width) -> the distribution, batch (...) and event (C, height, width)."""
        return likelihood_of_conv1x1(self.family, h, self.weight, self.bias, self.num_channels)


class ConvBernoulli(_ConvHead):
    """A last 1x1 convolution to the logits of binary images: gives their distribution.

    The parameters, initialisation and state dict are those of ``nn.Conv2d(in_channels, C, 1)``.

    Args:
        in_channels: H, the channels of what enters.
        num_channels: C of the images.
        bias: whether to learn one.
        device: as in ``nn.Conv2d``.
        dtype: as in ``nn.Conv2d``.

    Shapes:
        (..., in_channels, height, width) to a :class:`Bernoulli` with batch (...) and event (C, height, width).

    Raises:
        ValueError: if ``num_channels`` is not positive, or what enters does not have ``in_channels`` channels.

    Example:
        >>> head = ConvBernoulli(16, 1)
        >>> head(torch.zeros(5, 2, 16, 8, 8)).log_prob(torch.ones(2, 1, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, num_channels, BernoulliLikelihood(), bias, device, dtype)


class ConvGaussian(_ConvHead):
    """As :class:`ConvBernoulli` for continuous images.

    The parameters are those of ``nn.Conv2d(in_channels, C, 1)``, twice as wide with ``scale="pixel"``, whose output has
    shape (C, 2, H, W); a shared scale is ``family.log_scale`` in the state dict.

    Args:
        scale: of :class:`GaussianLikelihood`: ``"shared"``, ``"pixel"`` or a positive number.

    Example:
        >>> head = ConvGaussian(16, 3, scale="pixel")
        >>> head(torch.zeros(5, 2, 16, 8, 8)).log_prob(torch.ones(2, 3, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        scale: str | float = "shared",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        family = GaussianLikelihood(scale, dtype).to(device=device)
        super().__init__(in_channels, num_channels, family, bias, device, dtype)


class ConvCategorical(_ConvHead):
    """As :class:`ConvBernoulli` for images with integer levels; the output of the layer has shape (C, L, H, W).

    Args:
        num_levels: L.

    Example:
        >>> head = ConvCategorical(16, 1, num_levels=4)
        >>> head(torch.zeros(5, 2, 16, 8, 8)).log_prob(torch.ones(2, 1, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        num_levels: int = 256,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, num_channels, CategoricalLikelihood(num_levels), bias, device, dtype)


class ConvLogisticMixture(_ConvHead):
    """As :class:`ConvBernoulli` for images with many integer levels, one channel or three: mixtures of discretised
    logistics whose channels follow each other (see :class:`LogisticMixture`); the output has 3 K or 10 K channels.

    Args:
        num_components: K.
        num_levels: L.

    Example:
        >>> head = ConvLogisticMixture(16, 3, num_components=2)
        >>> head(torch.zeros(5, 2, 16, 8, 8)).log_prob(torch.ones(2, 3, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        num_components: int = 10,
        num_levels: int = 256,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        family = LogisticMixtureLikelihood(num_components, num_levels)
        super().__init__(in_channels, num_channels, family, bias, device, dtype)
