"""``fastvae figures orders``: does the order of generation matter? One budget, four orders."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

import fastvae.data
from fastvae.models import OrderedPixelCNN
from fastvae.training import fit

from .table import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EPOCHS", "as_json", "compute", "draw", "show"]

EPOCHS = 25
ORDERS = ("raster", "s_curve", "hilbert", "random")
_BLUE = "#0072b2"


@dataclass(frozen=True)
class Row:
    """One order; nats per image. ``difference`` to the first order, image by image."""

    order: str
    valid: float
    test: float
    error: float
    difference: float
    difference_error: float
    path: list[list[int]]


@dataclass(frozen=True)
class Report:
    """All orders."""

    epochs: int
    seed: int
    protocol: str
    parameters: int
    rows: list[Row]


def compute(epochs: int, seed: int, channels: int = 24, num_blocks: int = 3) -> Report:
    """Train the same PixelCNN in each order and evaluate it exactly on the test images."""
    data = fastvae.data.binarize(fastvae.data.load("digits"), "sample")
    test, rows, first, size = data.test.float(), [], None, 0
    for order in tqdm(ORDERS, desc="orders", unit="model"):
        torch.manual_seed(seed)
        model = OrderedPixelCNN(data.event_shape, "bernoulli", channels, num_blocks, first_kernel_size=5, order=order)
        size = sum(parameter.numel() for parameter in model.parameters())
        result = fit(
            model,
            _loss,
            data.train_in_epoch,
            data.valid,
            epochs=epochs,
            batch_size=100,
            learning_rate=2e-3,
            seed=seed,
            progress=False,
        )
        with torch.no_grad():
            nll = -model.log_prob(test).double()
        first = nll if first is None else first
        (mean, error), (gap, gap_error) = _mean_and_error(nll), _mean_and_error(nll - first)
        path = model.orders[0].tolist()
        rows.append(Row(order, result.best_valid or 0.0, mean, error, gap, gap_error, path))
    return Report(epochs, seed, f"{data.name}, {data.protocol}", size, rows)


def _loss(net: Any, x: Tensor) -> Tensor:
    return -net.log_prob(x.float())


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def show(report: Report) -> None:
    """The table."""
    print(
        f"{report.protocol}\nlocally masked PixelCNN, {report.parameters:,} parameters, {report.epochs} epochs, seed "
        f"{report.seed}; exact negative log-likelihood, nats per image"
    )
    header = ["order", "validation", "test", "+-", f"to {report.rows[0].order}", "+-"]
    print_table(header, [_cells(row) for row in report.rows])
    print("+-: standard errors from the choice of test images; of the difference image by image in the last column")


def _cells(row: Row) -> list[str]:
    gap = [f"{row.difference:+.2f}", f"{row.difference_error:.2f}"]
    return [row.order, f"{row.valid:.2f}", f"{row.test:.2f}", f"{row.error:.2f}", *gap]


def as_json(report: Report) -> dict[str, Any]:
    """Ready for JSON."""
    return asdict(report)


def draw(report: Report) -> Figure:
    """Each order as a path over the pixels, its likelihood above."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(2.7 * len(report.rows), 3.4), layout="constrained")
    figure.suptitle(
        f"One PixelCNN, one budget ({report.epochs} epochs of binarised digits), {len(report.rows)} orders: test NLL",
        fontsize=11,
    )
    panels = figure.subplots(1, len(report.rows), squeeze=False)[0]
    for panel, row in zip(panels, report.rows, strict=True):
        _path(panel, row.path)
        gap = "" if row is report.rows[0] else f"\n{row.difference:+.2f} ± {row.difference_error:.2f} to raster"
        panel.set_title(f"{row.order}: {row.test:.2f} ± {row.error:.2f} nats{gap}", fontsize=9)
    return figure


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
