"""``fastvae figures collapse``: how much goes through z as the autoregressive decoder gets deeper."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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

__all__ = ["EPOCHS", "as_json", "compute", "draw", "field_of_view", "show"]

EPOCHS = 12
DEPTHS = (0, 1, 2, 4)  # residual blocks; 0: pixels independent given z
LATENT_SIZE, FREE_BITS = 2, 0.5
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#777777"


@dataclass(frozen=True)
class Row:
    """One trained model; nats per test image."""

    depth: int
    field: int
    free_bits: float
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
    seed: int
    protocol: str
    rows: list[Row]


def compute(epochs: int, seed: int, depths: tuple[int, ...] = DEPTHS) -> Report:
    """Train a model for each depth, without and with free bits, and diagnose it on the test images."""
    data = fastvae.data.binarize(fastvae.data.load("digits"), "sample")
    rows = []
    cases = [(depth, free_bits) for depth in depths for free_bits in (0.0, FREE_BITS)]
    for depth, free_bits in tqdm(cases, desc="models", unit="model"):
        torch.manual_seed(seed)
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
            seed=seed,
            progress=False,
        )
        rows.append(_row(model, data.test.float(), depth, free_bits))
    return Report(epochs, seed, f"{data.name}, {data.protocol}", rows)


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
        gated=True,
        map_channels=1,
    )


def field_of_view(depth: int) -> int:
    """Of the decoder, in pixels across: one kernel of 3 and one more for each block; 0 without a PixelCNN."""
    return 3 + 2 * depth if depth else 0


def _row(model: VAE | PixelVAE, test: Tensor, depth: int, free_bits: float) -> Row:
    found = diagnose(model, test, num_samples=16)
    return Row(
        depth,
        field_of_view(depth),
        free_bits,
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
        f"{report.protocol}\ngated PixelVAE, {LATENT_SIZE} dimensions of z, {report.epochs} epochs, kernels of 3: "
        "blocks of the decoder and its field of view in pixels; nats per test image"
    )
    header = ["blocks", "field", "free bits", "KL", "I(x; z)", "active units", "distortion", "ELBO"]
    print_table(header, [_cells(row) for row in report.rows])
    print("free bits: nats of KL for each dimension that cost nothing in training; the ELBO shown is the plain one")


def _cells(row: Row) -> list[str]:
    numbers = [f"{value:.2f}" for value in (row.kl, row.mutual_information)]
    last = [f"{value:.2f}" for value in (row.distortion, row.elbo)]
    return [str(row.depth), str(row.field), f"{row.free_bits:g}", *numbers, str(row.active_units), *last]


def as_json(report: Report) -> dict[str, Any]:
    """Ready for JSON."""
    return asdict(report)


def draw(report: Report) -> Figure:
    """KL over the depth, KL of each dimension, ELBO over the depth."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(
        f"Posterior collapse in a PixelVAE: binarised digits, {LATENT_SIZE} dimensions of z, {report.epochs} epochs",
        fontsize=11,
    )
    left, middle, right = figure.subplots(1, 3)
    depths = sorted({row.depth for row in report.rows})
    places = list(range(len(depths)))
    for free_bits, color in ((0.0, _BLUE), (FREE_BITS, _ORANGE)):
        rows = [row for row in report.rows if row.free_bits == free_bits]
        label = f"{free_bits:g} free nats for each dimension" if free_bits else "no free bits"
        left.plot(places, [row.kl for row in rows], "o-", color=color, label=label)
        left.plot(places, [row.mutual_information for row in rows], "x:", color=color, label="its I(x; z)")
        right.plot(places, [row.elbo for row in rows], "o-", color=color, label=label)
        shift = 0.16 if free_bits else -0.16
        for place, row in zip(places, rows, strict=True):
            middle.plot([place + shift] * LATENT_SIZE, row.kl_per_dimension, "_", color=color, markersize=9)
    middle.axhline(FREE_BITS, color=_GREY, linestyle=":", linewidth=1)
    for panel, title in ((left, "KL(q(z|x) || r(z))"), (middle, "KL of each dimension"), (right, "ELBO")):
        panel.set_title(f"{title}, nats per test image", fontsize=9.5)
        panel.set_xticks(places, [str(depth) for depth in depths])
        panel.set_xlabel("residual blocks of the PixelCNN (0: independent pixels)", fontsize=8.5)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.tick_params(labelsize=8)
    left.set_ylim(bottom=0.0)
    left.legend(fontsize=7.5)
    right.legend(fontsize=7.5)
    return figure
