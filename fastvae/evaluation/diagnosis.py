"""What :func:`fastvae.evaluation.diagnose` found."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Diagnosis"]


@dataclass(frozen=True, repr=False, eq=False)
class Diagnosis:
    """How much a model says through z, in nats per datapoint; see :func:`diagnose` for the definitions.

    Attributes:
        num_points: N.
        num_samples: of z for each datapoint.
        rate: E_x KL(q(z|x) || r(z)).
        rate_error: its Monte-Carlo error, 0 where the KL has a closed form.
        distortion: -E_x E_q log p(x|z).
        distortion_error: its Monte-Carlo error.
        mutual_information: I_q(x; z), of at most log N.
        mutual_information_error: its Monte-Carlo error.
        kl_per_dimension: (d,) float64.
        active_units: dimensions whose posterior mean varies over the data.
        exact_dimensions: whether ``kl_per_dimension`` is the KL itself, so that it sums to ``rate``; else that of
            Gaussians with the same means and variances.
    """

    num_points: int
    num_samples: int
    rate: float
    rate_error: float
    distortion: float
    distortion_error: float
    mutual_information: float
    mutual_information_error: float
    kl_per_dimension: Tensor
    active_units: int
    exact_dimensions: bool

    @property
    def elbo(self) -> float:
        """-(rate + distortion)."""
        return -(self.rate + self.distortion)

    @property
    def marginal_kl(self) -> float:
        """KL(q(z) || r(z)) = rate - mutual information: how far the codes together are from the prior."""
        return self.rate - self.mutual_information

    @property
    def latent_size(self) -> int:
        """d."""
        return len(self.kl_per_dimension)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and lists, ready for JSON."""
        names = ["num_points", "num_samples", "rate", "rate_error", "distortion", "distortion_error", "elbo"]
        names += ["mutual_information", "mutual_information_error", "marginal_kl", "active_units", "latent_size"]
        values = {name: getattr(self, name) for name in names}
        values |= {"kl_per_dimension": self.kl_per_dimension.tolist(), "exact_dimensions": self.exact_dimensions}
        return {name: _as_json(value) for name, value in values.items()}

    def __repr__(self) -> str:
        most = math.log(self.num_points)
        how = "KL" if self.exact_dimensions else "KL of Gaussians with the same mean and variance"
        sorted_kl = self.kl_per_dimension.sort(descending=True).values.tolist()
        shown = " ".join(f"{value:.2f}" for value in sorted_kl[:10])
        more = "" if len(sorted_kl) <= 10 else f" ... {sorted_kl[-1]:.2f}"
        return "\n".join(
            [
                f"Diagnosis of {self.num_points:,} datapoints, {self.num_samples} samples of z each; nats for each",
                f"  rate                {self.rate:9.4f} +- {self.rate_error:.4f}  KL(q(z|x) || r(z))",
                f"  distortion          {self.distortion:9.4f} +- {self.distortion_error:.4f}  -E log p(x|z)",
                f"  ELBO                {self.elbo:9.4f}  -(rate + distortion)",
                f"  mutual information  {self.mutual_information:9.4f} +- {self.mutual_information_error:.4f}  "
                f"I(x; z), at most log N = {most:.4f}",
                f"  KL(q(z) || r(z))    {self.marginal_kl:9.4f}  rate - mutual information",
                f"  active units        {self.active_units:>4} of {self.latent_size}",
                f"  {how} per dimension, largest first: {shown}{more}",
            ]
        )


def _as_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no nan
