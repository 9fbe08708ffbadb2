"""Likelihoods of what a last layer gives: ``log_prob`` runs as one operator with the layer, whose output is formed only
where it is asked for."""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae import ops

from .bernoulli import Bernoulli, BernoulliLikelihood
from .categorical import Categorical, CategoricalLikelihood
from .gaussian import Gaussian, GaussianLikelihood
from .likelihood import ImageDistribution, Likelihood, check_tensor
from .logistic_mixture import LogisticMixture, LogisticMixtureLikelihood

__all__ = ["LastConv1x1", "LastLayer", "LastLinear", "likelihood_of_layer"]

_SMALL = 2**22  # parameters of a 1x1 convolution, 16 MB in float32, that are formed at once


class LastLayer:
    """A layer ``weight`` (P, H), ``bias`` (P,) or None, what enters it, and how its rows make up images."""

    event_dims: int  # of the data that belong to one row
    batch_shape: torch.Size
    event_shape: torch.Size  # (C, height, width)

    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        _check_input(h, weight)
        self.h, self.weight, self.bias = h, weight, bias

    def output(self) -> Tensor:
        """The parameters, (..., maps, height, width)."""
        raise NotImplementedError(f"{type(self).__name__} does not define its output")

    def arguments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Rows, weight, bias and data as the operators of a last layer take them."""
        return self.h, self.weight, self.bias, x

    def total(self, log_prob: Tensor) -> Tensor:
        """The sum over the rows of an image."""
        return log_prob

    def is_small(self) -> bool:
        """Whether ``log_prob`` forms the output."""
        return False  # the operators decide


class LastLinear(LastLayer):
    """A linear layer to all parameters of an image: ``h`` (..., H)."""

    event_dims = 3

    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None, event_shape: torch.Size) -> None:
        super().__init__(h, weight, bias)
        if h.ndim < 1 or h.shape[-1] != weight.shape[1]:
            raise ValueError(f"h must have shape (..., {weight.shape[1]}), got {tuple(h.shape)}")
        self.batch_shape, self.event_shape = h.shape[:-1], event_shape

    def output(self) -> Tensor:
        return F.linear(self.h, self.weight, self.bias).unflatten(-1, (-1, *self.event_shape[1:]))


class LastConv1x1(LastLayer):
    """A 1x1 convolution, which is a linear layer of every pixel: ``h`` (..., H, height, width)."""

    event_dims = 1

    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> None:
        super().__init__(h, weight, bias)
        self.batch_shape, self.event_shape = h.shape[:-3], torch.Size((channels, *h.shape[-2:]))

    def output(self) -> Tensor:
        maps = F.conv2d(self.h.reshape(-1, *self.h.shape[-3:]), self.weight[..., None, None], self.bias)
        return maps.view(*self.batch_shape, *maps.shape[1:])

    def arguments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        h, data = (values.flatten(-2).transpose(-1, -2) for values in (self.h, x))  # (..., pixels, channels)
        return h, self.weight, self.bias, data

    def total(self, log_prob: Tensor) -> Tensor:
        return log_prob.sum(-1)

    def is_small(self) -> bool:
        """Where it takes no more memory than the pixels as rows, which are a copy of the input, or little."""
        outputs, inner = self.weight.shape
        return outputs <= inner or self.h.numel() // max(inner, 1) * outputs <= _SMALL


def _check_input(h: Tensor, weight: Tensor) -> None:
    check_tensor("h", h)
    if h.device != weight.device:
        raise ValueError(f"h must be on the device of the layer, {weight.device}, got {h.device}")
    if h.dtype == weight.dtype:
        return
    # autocast makes one dtype of all but float64
    device = h.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if not casts or not h.is_floating_point() or torch.float64 in (h.dtype, weight.dtype):
        raise TypeError(f"h must have the dtype of the layer, {weight.dtype}, got {h.dtype}")


def likelihood_of_layer(family: Likelihood, layer: LastLayer) -> ImageDistribution:
    """What ``family`` makes of the output of ``layer``; families that are not ours are given the output at once."""
    of_layer = _OF_LAYER.get(type(family))
    return family(layer.output()) if of_layer is None else of_layer(family, layer)


class _OfLayer(ImageDistribution):
    def __init__(self, family: Likelihood, layer: LastLayer) -> None:
        ImageDistribution.__init__(self, layer.batch_shape + layer.event_shape)
        self.family, self.layer = family, layer

    @cached_property
    def formed(self) -> ImageDistribution:
        """The family's distribution of the output; computed once, when it is asked for."""
        return self.family(self.layer.output())

    def _check_shape(self, x: Tensor) -> None:
        super()._check_shape(x)
        if x.device != self.layer.weight.device:
            raise ValueError(f"x must be on the device of the layer, {self.layer.weight.device}, got {x.device}")

    def _log_prob(self, x: Tensor) -> Tensor:
        if "formed" in vars(self) or self.layer.is_small():
            return super()._log_prob(x)  # the family's own, of the parameters
        return self.layer.total(self._of_rows(*self.layer.arguments(x)))

    def _of_rows(self, h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """The operator of layer and family."""
        raise NotImplementedError(f"{type(self).__name__} does not define its operator")


class _BernoulliOfLayer(_OfLayer, Bernoulli):
    formed: Bernoulli

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        return self.formed.logits

    def _of_rows(self, h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return ops.linear_bernoulli_log_prob(h, weight, bias, x, self.layer.event_dims)


class _GaussianOfLayer(_OfLayer, Gaussian):
    formed: Gaussian
    family: GaussianLikelihood

    @property
    def loc(self) -> Tensor:  # type: ignore[override]
        return self.formed.loc

    @property
    def log_scale(self) -> Tensor:  # type: ignore[override]
        return self.formed.log_scale

    def _of_rows(self, h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        shared = None if self.family.scale_mode == "pixel" else self.family.log_scale
        dims = self.layer.event_dims
        return ops.linear_gaussian_log_prob(h, weight, bias, x, shared, dims, params_dim=-dims)


class _CategoricalOfLayer(_OfLayer, Categorical):
    formed: Categorical
    family: CategoricalLikelihood

    @property
    def num_levels(self) -> int:
        return self.family.num_levels

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        return self.formed.logits

    def _of_rows(self, h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        dims = self.layer.event_dims
        return ops.linear_categorical_log_prob(h, weight, bias, x, dims, levels_dim=-dims)


class _LogisticMixtureOfLayer(_OfLayer, LogisticMixture):
    formed: LogisticMixture
    family: LogisticMixtureLikelihood

    def __init__(self, family: LogisticMixtureLikelihood, layer: LastLayer) -> None:
        super().__init__(family, layer)
        self.num_components, self.num_levels = family.num_components, family.num_levels

    @property
    def params(self) -> Tensor:  # type: ignore[override]
        return self.formed.params

    def _of_rows(self, h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return ops.linear_logistic_mixture_log_prob(h, weight, bias, x, self.num_levels, self.layer.event_dims)


_OF_LAYER: dict[type[Likelihood], type[_OfLayer]] = {
    BernoulliLikelihood: _BernoulliOfLayer,
    GaussianLikelihood: _GaussianOfLayer,
    CategoricalLikelihood: _CategoricalOfLayer,
    LogisticMixtureLikelihood: _LogisticMixtureOfLayer,
}
