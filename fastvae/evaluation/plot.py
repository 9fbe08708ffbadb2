"""The picture of an evaluation: how the bound rises with samples, and how many of them count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastvae import figures

from .log_weights import TRUSTED_ESS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import LogLikelihood

__all__ = ["plot"]

_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#718096"


def plot(result: LogLikelihood, path: str | Path | None = None) -> Figure:
    """See :meth:`LogLikelihood.plot`."""
    try:
        from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib, or the extra fastvae[demo]") from error
    if result.weights.num_points == 0:
        raise ValueError("plot needs at least one datapoint, got none")
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _curve(left, result)
    _histogram(right, result)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors="#2d3748")
    if path is not None:
        figures.save(figure, path)
    return figure


def _curve(axes: Any, result: LogLikelihood) -> None:
    # the ELBO is often so far below that nothing else would be seen: it is a number in the title
    curve, start = result.curve, 1 if len(result.curve.num_samples) > 2 else 0
    k, mean, error = (values.cpu()[start:] for values in (curve.num_samples, curve.mean, curve.mean_std_error))
    drawn = mean.isfinite()
    k, mean, error = k[drawn], mean[drawn], error[drawn].nan_to_num(nan=0.0)
    axes.fill_between(
        k, mean - 2 * error, mean + 2 * error, color=_BLUE, alpha=0.2, lw=0, label="± 2 Monte-Carlo errors"
    )
    axes.plot(k, mean, color=_BLUE, lw=1.6, marker="o", ms=4, label="bound $L_k$")
    if bool(result.trusted.all()):
        corrected = float(result.jackknife.log_prob.mean())
        axes.axhline(corrected, color=_GREY, lw=1, ls="--", label="jackknife, bias corrected")
    axes.set_xscale("log")
    axes.set_xticks(k.tolist(), [f"{count:,}" for count in k.tolist()])
    axes.minorticks_off()
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("importance samples $k$", fontsize=9)
    axes.set_ylabel("nats per datapoint", fontsize=9)
    points, value, elbo = result.weights.num_points, float(curve.mean[-1]), float(curve.mean[0])
    what = "1 datapoint" if points == 1 else f"mean of {points:,} datapoints"
    axes.set_title(f"{what}: {value:.2f}, ELBO {elbo:.2f}", fontsize=9, loc="left")
    axes.grid(axis="y", color="#e2e8f0", lw=0.7)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _histogram(axes: Any, result: LogLikelihood) -> None:
    ess, trusted = result.ess.cpu(), result.trusted.cpu()
    shown = ess.isfinite()
    ess, trusted = ess[shown].clamp(min=1.0), trusted[shown]  # 0 where all weights are zero
    samples = max(result.origin.num_samples, 2)
    low = min(50.0, samples / 2, *ess.tolist())
    bins = torch.logspace(math.log10(low * 0.999), math.log10(samples * 1.001), 36)  # ends belong to them
    groups = [ess[trusted].numpy(), ess[~trusted].numpy()]
    labels = [f"trusted: {len(groups[0]):,}", f"not trusted: {len(groups[1]):,}"]
    axes.hist(groups, bins=bins.numpy(), stacked=True, color=[_BLUE, _ORANGE], label=labels, edgecolor="white", lw=0.5)
    axes.axvline(TRUSTED_ESS, color=_GREY, lw=1, ls=":", label=f"ESS = {TRUSTED_ESS}")
    axes.set_xscale("log")
    axes.set_xlabel(f"effective samples of {samples:,}", fontsize=9)
    axes.set_ylabel("datapoints", fontsize=9)
    axes.yaxis.get_major_locator().set_params(integer=True)  # counts
    axes.set_title("ESS", fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
