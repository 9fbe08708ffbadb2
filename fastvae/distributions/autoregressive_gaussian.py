"""The autoregressive Gaussian: a proposal or prior whose dimensions follow from the ones before, drawn in one pass."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import _standard_normal

from fastvae.nn import MADE

__all__ = ["AutoregressiveGaussian"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class AutoregressiveGaussian(Distribution):
    r"""Gaussians one after the other, :math:`\prod_i N(z_i; \mu_i(z_{<i}, c), e^{2 \lambda_i(z_{<i}, c)})`.

    Every draw is reparameterised, :math:`z_i = \mu_i + e^{\lambda_i} \epsilon_i`. Densities are one parallel pass of
    the network; draws are one pass too, each unit of the network computed once
    (:func:`fastvae.ops.solve_masked_mlp`), with exact gradients. It is the masked autoregressive flow of one step of
    Papamakarios et al. (2017), equations 2 and 3, and with a context the proposal of Kingma et al.'s appendix (2016).
    At the end of an encoder it is made by :class:`AutoregressiveProposal`.

    Args:
        net: the network, with a mean and a log-scale for each dimension (``num_params=2``).
        context: (..., C), one for each member of the batch; None for a network without a context.

    Shapes:
        batch (...), that of the context; event (D,).

    Raises:
        TypeError: if ``net`` is no MADE.
        ValueError: if it has another number of parameters, or the context does not fit.

    Example:
        >>> made = MADE(3, [16], num_params=2, context_features=4)
        >>> q = AutoregressiveGaussian(made, torch.randn(8, 4))
        >>> z, log_q = q.rsample_and_log_prob((5,))
        >>> z.shape, bool(torch.allclose(q.log_prob(z), log_q, atol=1e-4))
        (torch.Size([5, 8, 3]), True)
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, net: MADE, context: Tensor | None = None, validate_args: bool | None = None) -> None:
        if not isinstance(net, MADE):
            raise TypeError(f"net must be a fastvae.nn.MADE, got {type(net).__name__}")
        if net.num_params != 2:
            raise ValueError(
                f"net must give 2 parameters, mean and log-scale, for each dimension, got {net.num_params}"
            )
        net.check_context(context)
        self.net, self.context = net, context
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, torch.Size([net.features]), validate_args=False)

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers one draw takes."""
        return self.event_shape[0]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AutoregressiveGaussian":
        shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*shape, -1)
        new = AutoregressiveGaussian(self.net, context)
        new._batch_shape = shape
        return new

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws and their log-density from standard normal noise, in one pass.

        Args:
            noise: (..., D), leading dimensions before the batch are sample dimensions.

        Returns:
            ``z`` with the shape of ``noise`` (float64 for float64 noise, else float32), and log q(z) in nats without
            the last dimension.
        """
        z, params = self.net.solve(noise, self.context, "affine")
        return z, self._log_density(noise.to(z.dtype), params[..., 1])

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Reparameterised draws (sample, batch, D) and their log-density (sample, batch) in nats, in one pass."""
        weight = next(self.net.parameters())
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return self.from_noise(_standard_normal(self._extended_shape(torch.Size(sample_shape)), dtype, weight.device))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample_and_log_prob(sample_shape)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """``value`` (..., D), broadcast with the batch -> (...) nats, by one parallel pass."""
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value must end in {tuple(self.event_shape)}, got shape {tuple(value.shape)}")
        loc, log_scale = self.net(value, self.context).unbind(-1)
        return self._log_density((value - loc) * (-log_scale).exp(), log_scale)

    def _log_density(self, noise: Tensor, log_scale: Tensor) -> Tensor:
        log_q = -0.5 * noise.square().sum(-1) - log_scale.sum(-1) - self.noise_size * _HALF_LOG_TWO_PI
        return log_q.expand(torch.broadcast_shapes(log_q.shape, self.batch_shape))
