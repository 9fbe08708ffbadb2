"""What every model p(x, z) = p(x | z) r(z) with a proposal q(z | x) shares."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.distributions import Distribution

from fastvae.distributions import StandardNormal, VampPrior

__all__ = ["LatentVariableModel"]


class LatentVariableModel(nn.Module):
    """A generative model p(x | z) r(z) with a proposal q(z | x), from parts of your own.

    :func:`fastvae.log_likelihood` and :mod:`fastvae.objectives` ask for nothing but these three distributions.

    Args:
        encoder: ``encoder(x)`` -> the proposal, a Distribution with batch (N,) and event (d,).
        decoder: ``decoder(z)`` for z (..., d) -> the likelihood, a Distribution with batch (...) and the event of x.
        prior: a Distribution with event (d,), or a callable that makes one: a module with parameters to learn, such as
            those of :mod:`fastvae.distributions.priors` or a flow of zuko; or an int d for the standard normal.

    Raises:
        TypeError: if ``encoder`` or ``decoder`` cannot be called or ``prior`` is none of the above.

    Example:
        >>> import torch
        >>> from fastvae.distributions import Bernoulli, DiagonalGaussian
        >>> model = LatentVariableModel(
        ...     encoder=lambda x: DiagonalGaussian(x.flatten(1)[:, :2], torch.zeros(2)),
        ...     decoder=lambda z: Bernoulli(z.sum(-1)[..., None, None, None].expand(*z.shape[:-1], 1, 2, 2)),
        ...     prior=2,
        ... )
        >>> model.likelihood(model.prior().sample((3,))).log_prob(torch.ones(3, 1, 2, 2)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Distribution],
        decoder: Callable[[Tensor], Distribution],
        prior: Distribution | Callable[[], Distribution] | int,
    ) -> None:
        super().__init__()
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if not callable(part):
                raise TypeError(f"{name} must be callable, got {type(part).__name__}")
        if not isinstance(prior, int | Distribution) and not callable(prior):
            raise TypeError(f"prior must be a Distribution, a callable or a size, got {type(prior).__name__}")
        self.encoder, self.decoder = encoder, decoder
        self._prior = StandardNormal(prior) if isinstance(prior, int) else prior

    def proposal(self, x: Tensor) -> Distribution:
        """q(z | x): batch (N,), event (d,)."""
        return self.encoder(x)

    def prior(self) -> Distribution:
        """r(z): event (d,)."""
        if isinstance(self._prior, VampPrior):
            return self._prior(self.proposal)
        return self._prior if isinstance(self._prior, Distribution) else self._prior()

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x | z) for z (..., d): batch (...), the event of x."""
        return self.decoder(z)
