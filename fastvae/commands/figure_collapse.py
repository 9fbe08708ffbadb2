"""``fastvae figures collapse``: how much goes through z as the autoregressive decoder gets deeper."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

import fastvae.data
from fastvae.evaluation import diagnose
from fastvae.models import VAE, PixelVAE
from fastvae.objectives import weighted_elbo
from fastvae.training import fit

from .table import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EPOCHS", "SEEDS", "as_json", "compute", "draw", "field_of_view", "show"]

EPOCHS, SEEDS = 12, 5
DEPTHS = (0, 1, 2, 4)  # residual blocks; 0: pixels independent given z
LATENT_SIZE, FREE_BITS = 2, 0.5
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#777777"


@dataclass(frozen=True)
class Row:
    """One trained model; nats per test image."""

    depth: int
    field: int
    free_bits: float
    seed: int
    kl: float
    mutual_information: float
    active_units: int
    distortion: float
    elbo: float
    kl_per_dimension: list[float]


@dataclass(frozen=True)
class Report:
    """All models."""

    epochs: int
    seeds: list[int]
    protocol: str
    rows: list[Row]


def compute(epochs: int, seed: int, num_seeds: int = SEEDS, depths: tuple[int, ...] = DEPTHS) -> Report:
    """Train models for each depth, without and with free bits, and diagnose them on the test images."""
    data = fastvae.data.binarize(fastvae.data.load("digits"), "sample")
    seeds = list(range(seed, seed + num_seeds))
    cases = [(depth, free_bits, one) for depth in depths for free_bits in (0.0, FREE_BITS) for one in seeds]
    rows = []
    for depth, free_bits, one in tqdm(cases, desc="models", unit="model"):
        torch.manual_seed(one)
        model = _model(data.event_shape, depth)

        def loss(net: Any, x: Tensor, free_bits: float = free_bits) -> Tensor:
            return -weighted_elbo(net, x.float(), free_bits=free_bits)

        fit(
            model,
            loss,
            data.train_in_epoch,
            data.valid,
            epochs=epochs,
            batch_size=100,
            learning_rate=1e-2,
            seed=one,
            progress=False,
        )
        rows.append(_row(model, data.test.float(), depth, free_bits, one))
    return Report(epochs, seeds, f"{data.name}, {data.protocol}", rows)


def _model(event_shape: tuple[int, int, int], depth: int) -> VAE | PixelVAE:
    if depth == 0:
        return VAE(event_shape, "bernoulli", LATENT_SIZE, (100,), "elu")
    return PixelVAE(
        event_shape,
        "bernoulli",
        LATENT_SIZE,
        (100,),
        channels=16,
        num_blocks=depth,
        first_kernel_size=3,
        kernel_size=5,
        gated=True,
        map_channels=1,
    )


def field_of_view(depth: int) -> int:
    """Of the decoder, in pixels across: one kernel of 3 and one of 5 for each block; 0 without a PixelCNN."""
    return 3 + 4 * depth if depth else 0


def _row(model: VAE | PixelVAE, test: Tensor, depth: int, free_bits: float, seed: int) -> Row:
    found = diagnose(model, test, num_samples=16)
    return Row(
        depth,
        field_of_view(depth),
        free_bits,
        seed,
        found.rate,
        found.mutual_information,
        found.active_units,
        found.distortion,
        found.elbo,
        found.kl_per_dimension.tolist(),
    )


def show(report: Report) -> None:
    """The table."""
    print(
        f"{report.protocol}\ngated PixelVAE, {LATENT_SIZE} dimensions of z, {report.epochs} epochs, kernels of 5: "
        "blocks of the decoder and its field of view in pixels; nats per test image, mean of the seeds "
        f"{report.seeds[0]} to {report.seeds[-1]}"
    )
    header = ["blocks", "field", "free bits", "KL", "I(x; z)", "active units", "distortion", "ELBO", "KL of each seed"]
    print_table(header, [_cells(rows) for rows in _cases(report)])
    print("free bits: nats of KL for each dimension that cost nothing in training; the ELBO shown is the plain one")


def _cases(report: Report) -> list[list[Row]]:
    """The models that differ in nothing but the seed."""
    cases: dict[tuple[int, float], list[Row]] = {}
    for row in report.rows:
        cases.setdefault((row.depth, row.free_bits), []).append(row)
    return list(cases.values())


def _mean(rows: list[Row], name: str) -> float:
    return fmean(getattr(row, name) for row in rows)


def _cells(rows: list[Row]) -> list[str]:
    names = ("kl", "mutual_information", "active_units", "distortion", "elbo")
    means = [f"{_mean(rows, name):.{1 if name == 'active_units' else 2}f}" for name in names]
    each = " ".join(f"{row.kl:.2f}" for row in rows)
    return [str(rows[0].depth), str(rows[0].field), f"{rows[0].free_bits:g}", *means, each]


def as_json(report: Report) -> dict[str, Any]:
    """Ready for JSON."""
    return asdict(report)


def draw(report: Report) -> Figure:
    """KL over the depth, KL of each dimension, ELBO over the depth."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    figure.suptitle(
        f"Posterior collapse in a PixelVAE: binarised digits, {LATENT_SIZE} dimensions of z, {report.epochs} epochs; "
        f"dots: seeds {report.seeds[0]} to {report.seeds[-1]}, line: their mean",
        fontsize=11,
    )
    left, middle, right = figure.subplots(1, 3)
    depths = sorted({row.depth for row in report.rows})
    for free_bits, color, shift in ((0.0, _BLUE, -0.08), (FREE_BITS, _ORANGE, 0.08)):
        cases = [rows for rows in _cases(report) if rows[0].free_bits == free_bits]
        label = f"{free_bits:g} free nats for each dimension" if free_bits else "no free bits"
        _means(left, cases, "kl", "-", color, label)
        _means(left, cases, "mutual_information", ":", color, "its I(x; z)")
        _means(right, cases, "elbo", "-", color, label)
        for panel, name in ((left, "kl"), (middle, "kl_per_dimension"), (right, "elbo")):
            for row in (row for rows in cases for row in rows):
                values = getattr(row, name)
                values = values if isinstance(values, list) else [values]
                places = [depths.index(row.depth) + shift] * len(values)
                panel.plot(places, values, "o", color=color, markersize=3.5, alpha=0.5, markeredgewidth=0.0)
    middle.axhline(FREE_BITS, color=_GREY, linestyle=":", linewidth=1)
    middle.text(0.5, FREE_BITS, "free below", color=_GREY, fontsize=7.5, va="bottom", ha="center")
    for panel, title in ((left, "KL(q(z|x) || r(z))"), (middle, "KL of each dimension"), (right, "ELBO")):
        panel.set_title(f"{title}, nats per test image", fontsize=9.5)
        panel.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        panel.set_xlabel("residual blocks of the PixelCNN (0: independent pixels)", fontsize=8.5)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.tick_params(labelsize=8)
    for panel in (left, middle):
        panel.set_ylim(bottom=-0.03)
    left.legend(fontsize=7.5)
    right.legend(fontsize=7.5)
    return figure


def _means(panel: Any, cases: list[list[Row]], name: str, line: str, color: str, label: str) -> None:
    """A line through the means over the seeds."""
    panel.plot(range(len(cases)), [_mean(rows, name) for rows in cases], line, color=color, linewidth=1.4, label=label)
