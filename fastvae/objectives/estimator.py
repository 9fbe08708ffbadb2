"""Which bound, and which estimate of its gradient: the table that both ways to compute it share."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Estimator"]


@dataclass(frozen=True)
class Estimator:
    r"""A VR-IWAE bound, :math:`\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}`, and a gradient of it.

    ``alpha`` 0 is the IWAE bound, 1 (the limit) the ELBO. The gradient is the sum over samples of
    ``weights * d log w``. ``log_q`` tells how log q enters d log w: ``"all"`` of it, its ``"path"`` through z alone
    with q's own parameters constant, or ``"none"``: the log-weights leave it out. With ``doubly``, what goes through
    z into q is multiplied by ``path_factor`` once more.
    """

    alpha: float = 0.0
    log_q: Literal["all", "path", "none"] = "all"
    doubly: bool = False

    def scaled(self, log_w: Tensor) -> Tensor:
        """The log-weights that compete: (1 - alpha) log w; log w itself for the ELBO, whose samples do not."""
        return log_w if self.alpha in (0.0, 1.0) else (1.0 - self.alpha) * log_w

    def bound(self, log_w: Tensor) -> Tensor:
        """``log_w`` (K, N) -> (N,) nats; its derivative is ``weights``."""
        if self.alpha == 1.0:
            return log_w.mean(0)
        scaled = self.scaled(log_w)
        none = _all_zero(scaled)
        bound = torch.where(none, 0.0, scaled).logsumexp(0).masked_fill(none, -torch.inf) - math.log(log_w.shape[0])
        return bound if self.alpha == 0.0 else bound / (1.0 - self.alpha)

    def weights(self, log_w: Tensor) -> Tensor:
        """``log_w`` (K, N) -> d bound / d log w (K, N), which sums to one over the samples; 0 if all are zero."""
        if self.alpha == 1.0:
            return torch.full_like(log_w, 1.0 / log_w.shape[0])
        scaled = self.scaled(log_w)
        return scaled.softmax(0).masked_fill(_all_zero(scaled), 0.0)

    def bound_of(self, state: Tensor) -> Tensor:
        """:meth:`bound` from the streaming state (8, N) of the scaled log-weights; nan with nan or +inf among them."""
        n, m, s1 = state[:3]
        if self.alpha == 1.0:
            value = state[4].masked_fill(state[6] > 0, -torch.inf)
        else:
            value = (m + s1.log() - n.log()) / (1.0 - self.alpha)
        return value.masked_fill(state[7] > 0, torch.nan)

    def weights_in(self, state: Tensor, log_w: Tensor) -> Tensor:
        """:meth:`weights` of some samples ``log_w`` (k, n) among all those in ``state`` (8, n)."""
        n, m, s1 = state[:3]
        if self.alpha == 1.0:
            return (1.0 / n).to(log_w.dtype).expand_as(log_w)
        # a datapoint whose weights are all zero has no gradient, where -inf - -inf would be nan
        total = torch.where(s1 > 0, m + s1.log(), 0.0).masked_fill(state[7] > 0, torch.nan)
        return (self.scaled(log_w).double() - total).exp().to(log_w.dtype)

    def path_factor(self, weights: Tensor) -> Tensor:
        """What multiplies the gradient through z once more, for a ``doubly`` reparameterised estimate."""
        return self.alpha + (1.0 - self.alpha) * weights


def _all_zero(log_w: Tensor) -> Tensor:
    """(K, N) -> (N,) bool: datapoints without a gradient, where -inf - -inf would give nan."""
    return (log_w == -torch.inf).all(0)
