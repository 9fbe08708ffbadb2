"""Bounds on log p(x) to maximise: the ELBO and the IWAE bound. The value returned is the bound itself, in nats."""

from .bounds import elbo, iwae

__all__ = ["elbo", "iwae"]
