"""The likelihood of an autoregressive network: every value given the ones before it, and a condition."""

from typing import Any

import torch
from torch import Tensor, nn

from .likelihood import ImageDistribution, Likelihood, checked_data, is_checked

__all__ = ["Autoregressive"]


class Autoregressive(ImageDistribution):
    """p(x | condition) of a causal network, teacher-forced: one parallel pass gives the exact log-probability.

    Sampling is serial and belongs to :func:`fastvae.compile_sampler`, which is exact and fast.

    Args:
        net: causal module, ``net(x, condition)`` -> (B, C * num_params, H, W).
        likelihood: the family of each value.
        condition: (..., F, H, W) or (..., F, 1, 1), one for each member of the batch; None for an unconditional net.
        event_shape: (C, H, W).
    """

    def __init__(
        self, net: nn.Module, likelihood: Likelihood, condition: Tensor | None, event_shape: tuple[int, int, int]
    ) -> None:
        batch_shape = torch.Size() if condition is None else condition.shape[:-3]
        super().__init__(batch_shape + torch.Size(event_shape))
        self.net, self.likelihood, self.condition = net, likelihood, condition

    def log_prob(self, x: Tensor) -> Tensor:
        """``x`` (..., C, H, W) -> (...) nats, broadcast with the batch of conditions."""
        self._check_shape(x)
        if not is_checked():
            self.likelihood.check(x)
        batch = torch.broadcast_shapes(x.shape[:-3], self.batch_shape)
        flat = x.expand(batch + self.event_shape).reshape(-1, *self.event_shape)
        if self.condition is None:
            params = self.net(flat)
        else:
            maps = self.condition.shape[-3:]
            params = self.net(flat, self.condition.expand(batch + maps).reshape(-1, *maps))
        with checked_data():
            return self.likelihood(params).log_prob(flat).reshape(batch)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        raise RuntimeError("an autoregressive likelihood is sampled with fastvae.compile_sampler(model)")
