"""``calibrate``: are errors, biases and alarms of ``log_likelihood`` right? A model whose log p(x) is known tells."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastvae.distributions import DiagonalGaussian

from .log_likelihood import log_likelihood

__all__ = ["Calibration", "CalibrationRow", "Prediction", "calibrate", "predict"]

_COVERED = 1.96  # standard errors: 95 % of a normal distribution
_ROUNDING = 1e-9  # nats: at the exact posterior error and error bar are both rounding


@dataclass(frozen=True)
class Prediction:
    """What theory says of M samples from a scaled posterior, in nats."""

    ess: float
    std_error: float
    bias: float


def predict(scale: float, latent_size: int, num_samples: int) -> Prediction:
    r"""ESS, standard error and O(1/M) bias with a proposal of ``scale`` times the posterior's standard deviation.

    For the weights r = p(z|x) / q(z|x) of a Gaussian, :math:`E[r^2] = (c / \sqrt{2 - 1/c^2})^d`, so that ESS is
    :math:`M / E[r^2]`, the standard error :math:`\sqrt{(E[r^2] - 1) / M}` (delta method) and the bias
    :math:`-(E[r^2] - 1) / 2M`. At :math:`c \le 1/\sqrt2` the variance is infinite.

    Args:
        scale: c, positive.
        latent_size: d.
        num_samples: M.

    Example:
        >>> found = predict(1.1, 50, 5000)
        >>> f"{found.ess:.0f} {found.std_error:.5f} {found.bias:.6f}"
        '2328 0.01515 -0.000115'
    """
    if 2.0 * scale**2 <= 1.0:
        return Prediction(0.0, math.inf, -math.inf)
    log_square = latent_size * (math.log(scale) - 0.5 * math.log(2.0 - scale**-2))
    excess = math.expm1(log_square) if log_square < 700.0 else math.inf
    return Prediction(num_samples / (1.0 + excess), math.sqrt(excess / num_samples), -excess / (2.0 * num_samples))


@dataclass(frozen=True)
class CalibrationRow:
    """The replicates with one scale of the proposal; figures in nats.

    ``trusted_coverage`` falls below 0.95 where few replicates are trusted: those are the ones that missed the tail.
    What such errors come to is ``trusted_share * (1 - trusted_coverage)``.
    """

    scale: float
    predicted: Prediction
    ess: float  # median over replicates
    khat: float  # median
    reported_error: float  # root mean square of the standard errors that log_likelihood gives
    measured_error: float  # standard deviation of its estimates around the truth
    reported_bias: float  # mean of its O(1/M) estimates, trusted or not
    measured_bias: float  # mean estimate less the truth
    bias_error: float  # standard error of the measured bias
    z_scores: list[float]  # of each replicate: (estimate - bias - truth) / standard error
    trusted: list[bool]  # of each replicate: ESS above 100 and k-hat below 0.5

    @property
    def coverage(self) -> float:
        """The share of replicates whose error bar of 1.96 standard errors holds the truth: 0.95 if it is right."""
        return _covered(self.z_scores)

    @property
    def trusted_coverage(self) -> float:
        """The same among the replicates whose diagnostics allow the error bar; nan if there are none."""
        return _covered([z for z, trusted in zip(self.z_scores, self.trusted, strict=True) if trusted])

    @property
    def trusted_share(self) -> float:
        """The share of replicates whose diagnostics allow the error bar."""
        return sum(self.trusted) / len(self.trusted)


def _covered(z_scores: list[float]) -> float:
    return sum(abs(z) < _COVERED for z in z_scores) / len(z_scores) if z_scores else math.nan


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` found."""

    latent_size: int
    num_samples: int
    replicates: int
    seed: int
    rows: list[CalibrationRow]

    def to_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON: what is not finite is None."""
        shares = ("coverage", "trusted_coverage", "trusted_share")
        rows = [asdict(row) | {name: getattr(row, name) for name in shares} for row in self.rows]
        return _finite(asdict(self) | {"rows": rows})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def calibrate(
    scales: Sequence[float] = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5),
    *,
    num_samples: int = 5000,
    replicates: int = 200,
    latent_size: int = 50,
    seed: int = 0,
    progress: bool | None = None,
) -> Calibration:
    """Evaluate a linear Gaussian model with proposals that are too narrow or too wide, many times.

    The model is probabilistic PCA (Tipping and Bishop 1999) with orthogonal loadings: log p(x) and the posterior, a
    diagonal Gaussian, are known. The proposal is the posterior with ``scale`` times its standard deviation.

    Args:
        scales: the proposals.
        num_samples: M, importance samples of each evaluation.
        replicates: evaluations of each scale, with data and noise of their own.
        latent_size: d: the weights vary more in more dimensions.
        seed: of data and noise, in [0, 2^63).
        progress: show a progress bar; by default only on a terminal.

    Raises:
        ValueError: if a number makes no sense.

    Example:
        >>> found = calibrate([1.1], num_samples=500, replicates=50, progress=False).rows[0]
        >>> bool(abs(found.measured_error / found.predicted.std_error - 1) < 0.5)
        True
    """
    for name, value, least in (
        ("num_samples", num_samples, 2),
        ("replicates", replicates, 2),
        ("latent_size", latent_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not scales or not all(0.0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales must be positive numbers, at least one, got {list(scales)}")
    model = _LinearGaussian(latent_size, seed)
    x = model.sample(replicates)
    bar = tqdm(scales, desc="calibrating", unit="scale", disable=None if progress is None else not progress)
    rows = [_row(model, x, scale, num_samples, seed, index * replicates) for index, scale in enumerate(bar)]
    return Calibration(latent_size, num_samples, replicates, seed, rows)


def _row(
    model: "_LinearGaussian", x: Tensor, scale: float, num_samples: int, seed: int, first_id: int
) -> CalibrationRow:
    result = log_likelihood(
        x,
        proposal=lambda x: model.posterior(x, scale),
        log_joint=model.log_joint,
        num_samples=num_samples,
        seed=seed,
        ids=torch.arange(first_id, first_id + len(x)),  # noise of its own for every scale
        progress=False,
    )
    error = result.log_prob - model.log_prob(x)
    bias = -result.weights.cv2 / (2 * num_samples)  # shown only where trusted; here it is judged everywhere
    z_scores = torch.where((error - bias).abs() < _ROUNDING, 0.0, (error - bias) / result.std_error)
    return CalibrationRow(
        scale=float(scale),
        predicted=predict(scale, model.latent_size, num_samples),
        ess=float(result.ess.median()),
        khat=float(result.khat.median()),
        reported_error=float(result.std_error.square().mean().sqrt()),
        measured_error=float(error.std()),
        reported_bias=float(bias.mean()),
        measured_bias=float(error.mean()),
        bias_error=float(error.std()) / len(x) ** 0.5,
        z_scores=z_scores.tolist(),
        trusted=result.trusted.tolist(),
    )


class _LinearGaussian:
    """x = W z + s e, with orthogonal columns of W: log p(x) and a diagonal posterior in closed form; float64."""

    def __init__(self, latent_size: int, seed: int) -> None:
        self.latent_size, self.size = latent_size, 2 * latent_size
        self.generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(self._normal(self.size, latent_size))
        self.basis, self.scale = basis, 0.5
        self.loadings = torch.linspace(0.5, 2.0, latent_size, dtype=torch.float64)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def sample(self, count: int) -> Tensor:
        z = self._normal(count, self.latent_size)
        return (z * self.loadings) @ self.basis.T + self.scale * self._normal(count, self.size)

    def posterior(self, x: Tensor, scale: float) -> DiagonalGaussian:
        precision = 1.0 + (self.loadings / self.scale).square()
        loc = (x @ self.basis) * self.loadings / self.scale**2 / precision
        return DiagonalGaussian(loc, -0.5 * precision.log() + math.log(scale))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        residual = x - (z * self.loadings) @ self.basis.T
        squares = residual.square().sum(-1) / self.scale**2 + z.square().sum(-1)
        constant = self.size * math.log(self.scale) + 0.5 * (self.size + self.latent_size) * math.log(2.0 * math.pi)
        return -0.5 * squares - constant

    def log_prob(self, x: Tensor) -> Tensor:
        inside = x @ self.basis
        variance = self.loadings.square() + self.scale**2
        outside = (x.square().sum(-1) - inside.square().sum(-1)) / self.scale**2
        log_volume = variance.log().sum() + 2 * (self.size - self.latent_size) * math.log(self.scale)
        squares = (inside.square() / variance).sum(-1) + outside
        return -0.5 * (squares + log_volume + self.size * math.log(2.0 * math.pi))
