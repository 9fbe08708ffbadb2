"""``fastvae figures orders``: does the order of generation matter? One budget, four orders."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

import fastvae.data
from fastvae import ops
from fastvae.models import OrderedPixelCNN
from fastvae.ops.orders import OrderName
from fastvae.training import fit

from .table import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EPOCHS", "SEEDS", "as_json", "compute", "draw", "show"]

EPOCHS, SEEDS = 25, 3
ORDERS: tuple[OrderName, ...] = ("raster", "s_curve", "hilbert", "random")
_BLUE = "#0072b2"


@dataclass(frozen=True)
class Row:
    """One order; nats per image. ``difference`` to the first order, of one seed after the other and image by image.

    Two errors of the mean: from the choice of test images, of the models at hand, and from the seeds (weights, noise
    and, of a random order, the order itself), for the images at hand; nan of a single seed.
    """

    order: str
    valid: float
    test: float
    image_error: float
    seed_error: float
    difference: float
    difference_image_error: float
    difference_seed_error: float
    test_of_seed: list[float]
    path: list[list[int]]  # of the first seed


@dataclass(frozen=True)
class Report:
    """All orders."""

    epochs: int
    seeds: list[int]
    protocol: str
    parameters: int
    rows: list[Row]


def compute(epochs: int, seed: int, num_seeds: int = SEEDS, channels: int = 24, num_blocks: int = 3) -> Report:
    """Train the same PixelCNN in each order, with each seed, and evaluate it exactly on the test images."""
    data = fastvae.data.binarize(fastvae.data.load("digits"), "sample")
    test, seeds = data.test.float(), list(range(seed, seed + num_seeds))
    rows, first, size = [], torch.zeros(0), 0
    bar = tqdm(total=len(ORDERS) * num_seeds, desc="orders", unit="model")
    for name in ORDERS:
        path: list[list[int]] = []
        nll, valid = torch.zeros(num_seeds, len(test), dtype=torch.float64), 0.0
        for number, one in enumerate(seeds):
            torch.manual_seed(one)
            order = ops.generation_order(name, data.event_shape[1:], seed=one) if name == "random" else name
            model = OrderedPixelCNN(
                data.event_shape, "bernoulli", channels, num_blocks, first_kernel_size=5, order=order
            )
            result = fit(
                model,
                _loss,
                data.train_in_epoch,
                data.valid,
                epochs=epochs,
                batch_size=100,
                learning_rate=2e-3,
                seed=one,
                progress=False,
            )
            with torch.no_grad():
                nll[number] = -model.log_prob(test).double()
            valid += (result.best_valid or 0.0) / num_seeds
            path = path or model.orders[0].tolist()
            size = sum(parameter.numel() for parameter in model.parameters())
            bar.update()
        first = nll if name == ORDERS[0] else first
        gap = _mean_and_errors(nll - first)
        rows.append(Row(name, valid, *_mean_and_errors(nll), *gap, nll.mean(1).tolist(), path))
    bar.close()
    return Report(epochs, seeds, f"{data.name}, {data.protocol}", size, rows)


def _loss(net: Any, x: Tensor) -> Tensor:
    return -net.log_prob(x.float())


def _mean_and_errors(values: Tensor) -> tuple[float, float, float]:
    """(seeds, images) -> the mean and its standard errors from the images and from the seeds."""
    images, seeds = values.mean(0), values.mean(1)
    errors = [float(means.std()) / len(means) ** 0.5 if len(means) > 1 else math.nan for means in (images, seeds)]
    return float(values.mean()), errors[0], errors[1]


def show(report: Report) -> None:
    """The table."""
    print(
        f"{report.protocol}\nlocally masked PixelCNN, {report.parameters:,} parameters, {report.epochs} epochs, mean "
        f"of the seeds {report.seeds[0]} to {report.seeds[-1]}; exact negative log-likelihood, nats per image"
    )
    first = report.rows[0].order
    header = ["order", "validation", "test", "images", "seeds", f"to {first}", "images", "seeds", "each seed"]
    print_table(header, [_cells(row) for row in report.rows])
    print(
        "images, seeds: standard errors of the number before, from the choice of test images and from the seeds; of "
        f"the difference to {first} seed by seed and image by image"
    )


def _cells(row: Row) -> list[str]:
    errors = [f"{value:.2f}" for value in (row.image_error, row.seed_error)]
    gap = [f"{value:.2f}" for value in (row.difference_image_error, row.difference_seed_error)]
    each = " ".join(f"{value:.2f}" for value in row.test_of_seed)
    return [row.order, f"{row.valid:.2f}", f"{row.test:.2f}", *errors, f"{row.difference:+.2f}", *gap, each]


def as_json(report: Report) -> dict[str, Any]:
    """Ready for JSON, which has no nan."""
    made = asdict(report)
    for row in made["rows"]:
        for name in ("seed_error", "difference_seed_error"):
            row[name] = row[name] if len(report.seeds) > 1 else None
    return made


def draw(report: Report) -> Figure:
    """Each order as a path over the pixels, its likelihood above; below, all seeds on one axis."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    count = len(report.rows)
    figure = Figure(figsize=(2.7 * count, 5.2), layout="constrained")
    figure.suptitle(
        f"One PixelCNN, one budget ({report.epochs} epochs of binarised digits), {count} orders, "
        f"{len(report.seeds)} seeds: test NLL in nats per image",
        fontsize=11,
    )
    grid = figure.add_gridspec(2, count, height_ratios=[2.6, 1.0])
    for number, row in enumerate(report.rows):
        panel = figure.add_subplot(grid[0, number])
        _path(panel, row.path)
        gap = "" if number == 0 else f"{row.difference:+.2f} ± {row.difference_image_error:.2f} (images)"
        gap += f" ± {row.difference_seed_error:.2f} (seeds)" if number and len(report.seeds) > 1 else ""
        panel.set_title(f"{row.order.replace('_', '-')}: {row.test:.2f}\n{gap}", fontsize=9)
    _seeds(figure.add_subplot(grid[1, :]), report)
    return figure


def _seeds(panel: Any, report: Report) -> None:
    """One line for each order: a dot for each seed, a bar at their mean."""
    for place, row in enumerate(report.rows):
        panel.plot(row.test_of_seed, [place] * len(row.test_of_seed), "o", color=_BLUE, markersize=4, alpha=0.7)
        panel.plot([row.test], [place], "|", color="black", markersize=13, markeredgewidth=1.5)
    panel.set_yticks(range(len(report.rows)), [row.order.replace("_", "-") for row in report.rows], fontsize=8.5)
    panel.set_ylim(len(report.rows) - 0.5, -0.5)
    panel.set_xlabel("nats per test image (dot: a seed, bar: their mean); lower is better", fontsize=8.5)
    panel.tick_params(labelsize=8)
    panel.grid(axis="x", alpha=0.25, linewidth=0.6)


def _path(panel: Any, path: list[list[int]]) -> None:
    rows, columns = [row for row, _ in path], [column for _, column in path]
    time = torch.zeros(max(rows) + 1, max(columns) + 1)
    for number, (row, column) in enumerate(path):
        time[row, column] = number
    panel.imshow(time.numpy(), cmap="Blues", alpha=0.6)
    panel.plot(columns, rows, "-", color=_BLUE, linewidth=0.9)
    panel.plot(columns[0], rows[0], "o", color="black", markersize=5)
    panel.plot(columns[-1], rows[-1], "s", color="black", markersize=5)
    panel.set_xlabel("dot: first pixel, square: last", fontsize=7.5)
    panel.set_xticks([])
    panel.set_yticks([])
