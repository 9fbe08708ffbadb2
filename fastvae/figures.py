"""Pictures of images: grids of samples, rows that compare reconstructions. Needs matplotlib (the extra ``demo``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["image_grid", "image_rows", "save", "wavefront"]


def image_grid(images: Tensor, columns: int | None = None, title: str | None = None, invert: bool = False) -> Figure:
    """Images side by side, row after row.

    Args:
        images: (N, C, H, W) with values in [0, 1], 1 is white, and C = 1 (grey) or 3 (colour).
        columns: images in a row; by default a square.
        title: written above.
        invert: show 1 as black: scans of ink are bright on dark, paper is the other way round.

    Raises:
        ValueError: for another shape or no images.

    Example:
        >>> figure = image_grid(torch.rand(10, 1, 8, 8))
    """
    _check(images)
    columns = columns or math.ceil(math.sqrt(images.shape[0]))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    rows = math.ceil(images.shape[0] / columns)
    figure = _figure(columns, rows, title)
    axes = figure.add_subplot(111)
    _show(axes, _tile(images, columns, rows, invert))
    return figure


def image_rows(rows: Mapping[str, Tensor], title: str | None = None, invert: bool = False) -> Figure:
    """One labelled row of images for each entry, to compare column by column.

    Args:
        rows: label -> (N, C, H, W) with values in [0, 1].
        title: written above.
        invert: show 1 as black.

    Raises:
        ValueError: for another shape or no rows.

    Example:
        >>> figure = image_rows({"data": torch.rand(5, 1, 8, 8), "VAE": torch.rand(5, 1, 8, 8)})
    """
    if not rows:
        raise ValueError("rows must have at least one entry, got none")
    for images in rows.values():
        _check(images)
    columns = max(images.shape[0] for images in rows.values())
    figure = _figure(columns + 3, len(rows), title)
    for number, (label, images) in enumerate(rows.items()):
        axes = figure.add_subplot(len(rows), 1, number + 1)
        _show(axes, _tile(images, columns, 1, invert))
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def wavefront(steps: Any, known: Any = None, title: str | None = None) -> Figure:
    """Which pixel is drawn at which step: colours from the first step to the last, the pixels of one step outlined.

    Args:
        steps: (H, W) step of each pixel, as ``sampler.plan.pixel_steps()`` gives them.
        known: (H, W), True for pixels that are not drawn, left white.
        title: written above; by default the number of steps and of pixels.

    Raises:
        ValueError: for another shape.

    Example:
        >>> figure = wavefront(torch.arange(6) + 2 * torch.arange(4)[:, None])
    """
    steps = torch.as_tensor(steps)
    drawn = torch.ones_like(steps, dtype=torch.bool) if known is None else ~torch.as_tensor(known).cpu()
    if steps.ndim != 2 or drawn.shape != steps.shape or not steps.numel():
        raise ValueError(f"steps and known must have shape (H, W), got {tuple(steps.shape)} and {tuple(drawn.shape)}")
    height, width = steps.shape
    taken = steps[drawn].unique()
    if title is None:
        title = f"{len(taken)} steps draw {int(drawn.sum())} of {steps.numel()} pixels"
    figure = _figure(0, 0, None)
    figure.set_size_inches(max(3.0, 0.3 * width + 1.2), max(1.6, 0.3 * height + 0.8))
    axes = figure.add_subplot(111)
    picture = steps.float().masked_fill(~drawn, torch.nan).numpy()
    shown = axes.imshow(picture, cmap="viridis", interpolation="nearest")
    middle = int(taken[len(taken) // 2]) if len(taken) else -1
    for row in range(height):
        for column in range(width):
            if not drawn[row, column]:
                continue
            step = int(steps[row, column])
            dark = step < (int(taken[0]) + int(taken[-1])) / 2
            axes.text(column, row, str(step), ha="center", va="center", fontsize=6, color="white" if dark else "black")
            if step == middle:
                axes.add_patch(_frame(column, row))
    axes.set_title(f"{title}; outlined: step {middle}" if len(taken) else title, fontsize=9)
    axes.set_xlabel("column", fontsize=8)
    axes.set_ylabel("row", fontsize=8)
    axes.tick_params(labelsize=7)
    figure.colorbar(shown, ax=axes, label="step", shrink=0.8)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG; an existing file is an error, nothing is overwritten."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another name or remove it")
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return path


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[0] == 0:
        raise ValueError(f"images must have shape (N, 1 or 3, H, W) with N > 0, got {tuple(images.shape)}")


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.6)


def _figure(columns: int, rows: int, title: str | None) -> Figure:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(max(2.0, 0.6 * columns), max(0.8, 0.66 * rows)), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _tile(images: Tensor, columns: int, rows: int, invert: bool) -> Tensor:
    """(N, C, H, W) -> (rows * (H + 1), columns * (W + 1), C) on white."""
    count, channels, height, width = images.shape
    canvas = torch.ones(rows, columns, channels, height + 1, width + 1)
    values = images.detach().float().cpu().clamp(0.0, 1.0)
    shown = 1.0 - values if invert else values
    for index in range(count):
        canvas[index // columns, index % columns, :, :height, :width] = shown[index]
    return canvas.permute(0, 3, 1, 4, 2).reshape(rows * (height + 1), columns * (width + 1), channels)


def _show(axes, picture: Tensor) -> None:  # type: ignore[no-untyped-def]
    axes.imshow(picture.numpy().squeeze(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
