"""What ``fastvae sample --complete`` starts from: images of which a part is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Partial", "check_complete", "completed_grid", "read_partial"]

_MOST_IMAGES = 8
_UNKNOWN = torch.tensor([0.62, 0.76, 0.93])  # light blue: no grey value


@dataclass(frozen=True)
class Partial:
    """Images and what is known of them.

    Attributes:
        values: (N, C, H, W) in the units of the model.
        known: (N, C, H, W) boolean.
        complete: whether ``values`` also holds what is not known.
    """

    values: Tensor
    known: Tensor
    complete: bool


def check_complete(source: str | None, keep: str | None) -> None:
    """Raise ``ValueError`` for a source that cannot be one, before any work."""
    if source is None:
        if keep is not None:
            raise ValueError("--keep says which half of the images of --complete is known; give --complete too")
        return
    if source not in ("test", "valid") and Path(source).suffix.lower() not in (".npz", ".png"):
        raise ValueError(f"--complete must be test, valid, or a file that ends in .npz or .png, got {source}")


def read_partial(source: str, keep: str | None, num: int, model: Any, options: Mapping[str, Any]) -> Partial:
    """The images of ``--complete``.

    Raises:
        ValueError: if the file does not fit the model, or does not say what is known.
    """
    if source in ("test", "valid"):
        from .problem import Problem

        problem = Problem.from_options(options)
        problem.check_fits(model, "the checkpoint")
        values = problem.frozen("test" if source == "test" else "valid")
        values = values[torch.linspace(0, len(values) - 1, min(num, _MOST_IMAGES, len(values))).long()]  # sorted or not
        return Partial(values, _half(keep or "top", values), True)
    path = Path(source)
    values, known = _from_npz(path) if path.suffix.lower() == ".npz" else _from_png(path, model.family.num_levels)
    shape = tuple(model.event_shape)
    if tuple(values.shape[1:]) != shape:
        raise ValueError(f"--complete {path} has images of shape {tuple(values.shape[1:])}, the model's are {shape}")
    if len(values) > num:
        raise ValueError(f"--complete {path} has {len(values)} images, but --num allows for {num} completions")
    if (known is None) == (keep is None):
        said = "says what is known: leave out --keep" if keep else "does not say what is known: add a mask or --keep"
        raise ValueError(f"--complete {path} {said}")
    if known is None:
        return Partial(values, _half(str(keep), values), True)
    return Partial(values, known.expand(values.shape), False)


def completed_grid(partial: Partial, completions: Tensor, top: float) -> tuple[Tensor, int]:
    """Rows of what is known, the completions (N, K, C, H, W) and, if there is one, the original; in colour."""
    known = _colour(partial.values / top)
    known = torch.where(partial.known.any(1, keepdim=True), known, _UNKNOWN[:, None, None])
    columns = [known, *(_colour(each / top) for each in completions.unbind(1))]
    if partial.complete:
        columns.append(_colour(partial.values / top))
    return torch.stack(columns, 1).flatten(0, 1), len(columns)


def _colour(images: Tensor) -> Tensor:
    return images.float().clamp(0, 1).expand(-1, 3, -1, -1)


def _half(which: str, values: Tensor) -> Tensor:
    height, width = values.shape[-2:]
    row, column = torch.arange(height)[:, None], torch.arange(width)[None]
    half = {
        "top": row < (height + 1) // 2,
        "bottom": row >= height // 2,
        "left": column < (width + 1) // 2,
        "right": column >= width // 2,
    }[which]
    return half.expand(height, width).expand(values.shape)


def _from_npz(path: Path) -> tuple[Tensor, Tensor | None]:
    """``values`` in the units of the model and, if there, ``mask``: (N, H, W) or (N, C, H, W)."""
    with np.load(path, allow_pickle=False) as archive:
        if "values" not in archive.files:
            raise ValueError(f"--complete {path} holds {archive.files or 'nothing'}; expected values, and mask")
        values = torch.from_numpy(np.asarray(archive["values"], dtype=np.float32))
        mask = torch.from_numpy(archive["mask"]) if "mask" in archive.files else None
    if values.ndim not in (3, 4):
        raise ValueError(f"--complete {path}: values must be (N, H, W) or (N, C, H, W), got {tuple(values.shape)}")
    values = values if values.ndim == 4 else values.unsqueeze(1)
    if mask is None:
        return values, None
    known = mask[None, None] if mask.ndim == 2 else mask.unsqueeze(1) if mask.ndim == 3 else mask
    fits = known.ndim == 4 and all(a in (1, b) for a, b in zip(known.shape, values.shape, strict=True))
    if known.dtype != torch.bool or not fits:
        raise ValueError(
            f"--complete {path}: mask must be boolean, True for known pixels, with the shape of values or (H, W), "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return values, known


def _from_png(path: Path, num_levels: int | None) -> tuple[Tensor, Tensor | None]:
    """One image; pixels that are transparent are not known."""
    from matplotlib.image import imread

    pixels = torch.from_numpy(np.array(imread(path), dtype=np.float32))  # (H, W) or (H, W, channels) in [0, 1]
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    colour, alpha = (pixels[..., :-1], pixels[..., -1]) if pixels.shape[2] in (2, 4) else (pixels, None)
    if colour.shape[2] == 3 and bool((colour == colour[..., :1]).all()):
        colour = colour[..., :1]
    values = colour.permute(2, 0, 1)[None]
    if num_levels is not None:
        values = (values * (num_levels - 1)).round()
    return values, None if alpha is None or bool((alpha == 1).all()) else (alpha > 0)[None, None]
