"""The picture of ``fastvae calibrate``. Needs matplotlib (the extra ``demo``)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fastvae.evaluation.calibration import Calibration, CalibrationRow, predict
from fastvae.evaluation.log_weights import TRUSTED_ESS, TRUSTED_KHAT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration_figure"]

_THEORY, _REPORTED, _MEASURED, _BAD = "#777777", "#0072b2", "#d55e00", "#cc79a7"


def calibration_figure(calibration: Calibration) -> Figure:
    """Six panels over the scale of the proposal: ESS, error, bias, coverage, k-hat, and the errors in units of the bar.

    Example:
        >>> from fastvae.evaluation.calibration import calibrate
        >>> figure = calibration_figure(calibrate([0.9, 1.1], num_samples=100, replicates=20, progress=False))
        >>> len(figure.axes)
        6
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(12, 6.6), layout="constrained")
    figure.suptitle(
        f"Error bars of log p(x) against the truth: {calibration.replicates} replicates, M = "
        f"{calibration.num_samples}, latent size {calibration.latent_size} (shaded: most of them not trusted)",
        fontsize=11,
    )
    panels = figure.subplots(2, 3)
    _ess(panels[0, 0], calibration)
    _error(panels[0, 1], calibration)
    _bias(panels[0, 2], calibration)
    _coverage(panels[1, 0], calibration)
    _khat(panels[1, 1], calibration)
    _z_scores(panels[1, 2], calibration)
    for panel in panels.flat:
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.tick_params(labelsize=8)
    for panel in panels.flat[:5]:
        panel.set_xlabel("scale of the proposal / scale of the posterior", fontsize=8)
        _mark_untrusted(panel, calibration.rows)
    return figure


def _ess(panel: Any, calibration: Calibration) -> None:
    scales, theory = _theory(calibration, "ess")
    panel.plot(scales, theory, color=_THEORY, label="predicted")
    panel.plot(*_points(calibration, "ess"), "o", color=_REPORTED, markersize=5, label="reported (median)")
    panel.axhline(TRUSTED_ESS, color=_BAD, linestyle=":", linewidth=1)
    panel.set_yscale("log")
    panel.set_ylim(0.5, 2 * calibration.num_samples)
    _title(panel, "Effective sample size")


def _error(panel: Any, calibration: Calibration) -> None:
    scales, theory = _theory(calibration, "std_error")
    panel.plot(scales, theory, color=_THEORY, label="predicted")
    panel.plot(*_points(calibration, "reported_error"), "o", color=_REPORTED, markersize=5, label="reported")
    panel.plot(*_points(calibration, "measured_error"), "x", color=_MEASURED, markersize=7, label="measured (spread)")
    least = predict(1.02, calibration.latent_size, calibration.num_samples).std_error
    panel.set_yscale("log")
    panel.set_ylim(0.5 * least, 3.0)
    _title(panel, "Standard error, nats (at 1 it is zero)")


def _bias(panel: Any, calibration: Calibration) -> None:
    scales, theory = _theory(calibration, "bias")
    panel.plot(scales, theory, color=_THEORY, label="predicted")
    panel.plot(*_points(calibration, "reported_bias"), "o", color=_REPORTED, markersize=5, label="reported")
    panel.errorbar(
        [row.scale for row in calibration.rows],
        [row.measured_bias for row in calibration.rows],
        yerr=[1.96 * row.bias_error for row in calibration.rows],
        fmt="x",
        color=_MEASURED,
        markersize=7,
        capsize=3,
        label="measured",
    )
    lowest = min(row.measured_bias - 1.96 * row.bias_error for row in calibration.rows)
    panel.set_ylim(min(1.25 * lowest, -1e-3), -0.2 * min(lowest, -1e-3))
    _title(panel, "Bias, nats", legend="lower center")


def _coverage(panel: Any, calibration: Calibration) -> None:
    scales = [row.scale for row in calibration.rows]
    shares = [row.coverage for row in calibration.rows]
    spread = [1.96 * math.sqrt(max(s * (1 - s), 0.0) / calibration.replicates) for s in shares]
    panel.axhline(0.95, color=_THEORY, label="right: 95 %")
    panel.errorbar(
        scales, shares, yerr=spread, fmt="o", color=_REPORTED, markersize=5, capsize=3, label="all replicates"
    )
    panel.plot(*_points(calibration, "trusted_coverage"), "x", color=_MEASURED, markersize=7, label="trusted ones")
    panel.set_ylim(0.0, 1.08)
    _title(panel, "Share of error bars that hold the truth", legend="lower center")


def _khat(panel: Any, calibration: Calibration) -> None:
    panel.axhline(TRUSTED_KHAT, color=_BAD, linestyle=":", linewidth=1, label="largest k-hat trusted")
    panel.plot(*_points(calibration, "khat"), "o", color=_REPORTED, markersize=5, label="median k-hat")
    panel.plot(
        *_points(calibration, "trusted_share"), "^", color=_MEASURED, markersize=6, label="share that is trusted"
    )
    _title(panel, "Diagnostics", legend="upper center")


def _z_scores(panel: Any, calibration: Calibration) -> None:
    """The worst proposal and the best one that is not the posterior itself."""
    scored = [row for row in calibration.rows if any(row.z_scores)]
    grid = [-5 + 0.05 * i for i in range(201)]
    panel.plot(
        grid, [math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) for z in grid], color=_THEORY, label="standard normal"
    )
    if scored:
        ranked = sorted(scored, key=lambda row: row.ess)
        for row, color in {ranked[0].scale: (ranked[0], _MEASURED), ranked[-1].scale: (ranked[-1], _REPORTED)}.values():
            panel.hist(
                [min(max(z, -5.0), 5.0) for z in row.z_scores],
                bins=[-5 + 0.5 * i for i in range(21)],
                density=True,
                histtype="stepfilled",
                alpha=0.45,
                color=color,
                label=f"scale {row.scale:g}, ESS {row.ess:.0f}",
            )
    panel.set_xlabel("(estimate - bias - truth) / standard error; beyond 5 at the edge", fontsize=8)
    _title(panel, "Errors in units of the error bar", legend="upper left")


def _theory(calibration: Calibration, name: str) -> tuple[list[float], list[float]]:
    """A smooth curve over the scales, where it is finite."""
    first, last = calibration.rows[0].scale, calibration.rows[-1].scale
    scales = [first + (last - first) * i / 300 for i in range(301)]
    values = [getattr(predict(c, calibration.latent_size, calibration.num_samples), name) for c in scales]
    kept = [(c, value) for c, value in zip(scales, values, strict=True) if math.isfinite(value)]
    return [c for c, _ in kept], [value for _, value in kept]


def _points(calibration: Calibration, name: str) -> tuple[list[float], list[float]]:
    return [row.scale for row in calibration.rows], [getattr(row, name) for row in calibration.rows]


def _mark_untrusted(panel: Any, rows: list[CalibrationRow]) -> None:
    """A shade where most replicates are not trusted, halfway to the neighbours that are."""
    scales = [row.scale for row in rows]
    edges = [scales[0], *((a + b) / 2 for a, b in pairwise(scales)), scales[-1]]
    margin = 0.03 * (scales[-1] - scales[0] or 1.0)
    edges[0], edges[-1] = edges[0] - margin, edges[-1] + margin
    for row, (left, right) in zip(rows, pairwise(edges), strict=True):
        if row.trusted_share < 0.5:
            panel.axvspan(left, right, color=_BAD, alpha=0.12, linewidth=0, zorder=0)
    panel.set_xlim(edges[0], edges[-1])


def _title(panel: Any, title: str, legend: str = "best") -> None:
    panel.set_title(title, fontsize=10)
    panel.legend(fontsize=7.5, loc=legend, framealpha=0.9)
