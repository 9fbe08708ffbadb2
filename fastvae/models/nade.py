"""NADE as a model of binary images, in any order of the pixels or an ensemble of orders."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastvae import nn as fnn
from fastvae.distributions import BernoulliLikelihood, Likelihood, as_likelihood

from .order_ensemble import OrderEnsemble
from .parts import check_event_shape, check_images, check_positive, image_size

__all__ = ["NADE"]


class NADE(OrderEnsemble):
    """Larochelle and Murray: "The neural autoregressive distribution estimator" (2011), for images.

    :class:`fastvae.nn.NADE` over all values of an image, pixel after pixel. With several orders one set of weights
    serves them all, and the model is their ensemble (:class:`OrderEnsemble`).

    Args:
        event_shape: (C, H, W).
        likelihood: Bernoulli: NADE is a model of binary data.
        hidden_features: hidden units; 500 in the paper.
        order: ``"raster"``, ``"s_curve"``, ``"hilbert"``, ``"random"``, an order (H * W, 2) of rows and columns,
            or a sequence of such orders.
        num_orders: how many flips and transposes of a named order, or random ones.

    Raises:
        ValueError: for a shape, a size or a name that makes no sense.

    Example:
        >>> model = NADE((1, 4, 4), hidden_features=8, order="random", num_orders=3)
        >>> x = model.sample(5, seed=0)
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([5, 1, 4, 4]), torch.Size([5]))
    """

    dimensions: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        likelihood: Likelihood | str | dict[str, Any] = "bernoulli",
        hidden_features: int = 500,
        order: Any = "raster",
        num_orders: int = 1,
    ) -> None:
        shape = check_event_shape(event_shape)
        check_positive(hidden_features=hidden_features)
        family = as_likelihood(likelihood)
        if not isinstance(family, BernoulliLikelihood):
            raise ValueError(f"likelihood must be bernoulli for NADE, a model of binary data, got {family.name}")
        super().__init__(order, num_orders, shape[1:])
        self.event_shape, self.family, self.hidden_features = shape, family, hidden_features
        self.net = fnn.NADE(image_size(shape), hidden_features)
        channels, height, width = shape
        pixels = self.orders[..., 0] * width + self.orders[..., 1]  # (n, H * W)
        # all channels of a pixel before the next one
        dimensions = pixels[..., None] + height * width * torch.arange(channels)
        self.register_buffer("dimensions", dimensions.flatten(1), persistent=False)  # (n, D)

    def log_prob_in_order(self, x: Tensor, index: int) -> Tensor:
        x = check_images(x, self.event_shape, self.net.weight)
        self.family.check(x)
        return self.net.log_prob(x.flatten(1), self._dimensions(index))

    def sample_in_order(self, num_samples: int, index: int, seed: int, first_id: int = 0) -> Tensor:
        rows = self.net.sample(num_samples, seed=seed, first_id=first_id, order=self._dimensions(index))
        return rows.view(num_samples, *self.event_shape)

    def start_at_marginals(self, x: Tensor) -> None:
        """Set the output bias to the logits of the smoothed pixel-wise means of ``x`` (N, C, H, W)."""
        with torch.no_grad():
            self.net.output_bias.copy_(self.family.marginal_params(x).flatten())

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {
            "event_shape": list(self.event_shape),
            "likelihood": self.family.config(),
            "hidden_features": self.hidden_features,
            "order": self.order,
            "num_orders": self.num_orders,
        }

    def _dimensions(self, index: int) -> Tensor | None:
        """None for 0, 1, 2, ..., which needs no gathering."""
        is_raster = self.event_shape[0] == 1 and self.order == "raster" and index == 0
        return None if is_raster else self.dimensions[index]
