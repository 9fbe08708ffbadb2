"""What to maximise: bounds on log p(x), the ELBO and the IWAE bound, whose value is the bound itself, in nats; and an
objective with a weighted KL and free bits, which is no bound."""

from .bounds import elbo, iwae
from .weighted import weighted_elbo

__all__ = ["elbo", "iwae", "weighted_elbo"]
