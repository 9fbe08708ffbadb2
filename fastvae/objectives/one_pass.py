"""A bound as one graph for autograd: every sample at once."""

from collections.abc import Callable

from torch import Tensor

from fastvae.evaluation.arguments import checked_log_prob

from .draws import Draws
from .estimator import Estimator

__all__ = ["one_pass"]


def one_pass(
    x: Tensor, draws: Draws, log_prob: Callable[[Tensor, Tensor], Tensor], num_samples: int, estimator: Estimator
) -> Tensor:
    """The bound (N,) of all samples; its gradient is the estimator's.

    Args:
        x: (N, ...).
        draws: the samples of the proposal.
        log_prob: ``log_prob(x, z)`` (K, N), what the log-weights are without log q.
        num_samples: K.
        estimator: bound and gradient.
    """
    z, log_q = draws.first(num_samples)
    log_w = checked_log_prob(log_prob(x, z), log_q.shape)
    if estimator.log_q == "all":
        log_w = log_w - log_q
    elif estimator.log_q == "path":
        log_w = log_w - _path_alone(log_q, draws, z)
    if estimator.doubly and z.requires_grad:
        factor = estimator.path_factor(estimator.weights(log_w.detach()))
        # on the z that log_w was computed from: on any later tensor it would never run
        z.register_hook(lambda grad: grad * factor.view(*factor.shape, *[1] * (grad.ndim - 2)))
    return estimator.bound(log_w)


def _path_alone(log_q: Tensor, draws: Draws, z: Tensor) -> Tensor:
    """The value of log q(z) with the derivative with respect to z alone, for any distribution."""
    if not z.requires_grad:
        return log_q.detach()
    zero = (z - z.detach()) * draws.score(z)
    return log_q.detach() + (zero.flatten(2).sum(-1) if z.ndim > 2 else zero)
