"""Request: everything that determines the images of a call, checked and on the model's device."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .draw import Draw
from .inputs import require_tensor

__all__ = ["Request", "checked_observations"]


@dataclass(frozen=True)
class Request:
    """What to draw.

    Attributes:
        draw: the likelihood, at the temperature wanted.
        uniform: (B, C, H, W) numbers in (0, 1).
        condition: (B, ...) or None.
        known: (B, C, H, W), True for values that are given; None if none is.
        values: (B, C, H, W), those that are given, and zeros; None if none is.
        address: seed and number of the first image, if ``uniform`` are the numbers at these.
    """

    draw: Draw
    uniform: Tensor
    condition: Tensor | None = None
    known: Tensor | None = None
    values: Tensor | None = None
    address: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """B."""
        return self.uniform.shape[0]

    def part(self, rows: slice) -> "Request":
        """The request for some of the images."""
        parts = {
            name: tensor[rows]
            for name in ("uniform", "condition", "known", "values")
            if (tensor := getattr(self, name)) is not None
        }
        address = self.address and (self.address[0], self.address[1] + rows.start)
        return replace(self, address=address, **parts)


def checked_observations(
    num_samples: int,
    event_shape: tuple[int, ...],
    observed: Any,
    draw: Draw,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Mask and values (B, C, H, W) from (mask, values), zeros where nothing is known; None if that is everywhere."""
    if observed is None:
        return None, None
    if not isinstance(observed, tuple | list) or len(observed) != 2:
        raise TypeError(f"observed must be a pair (mask, values) of tensors, got {type(observed).__name__}")
    shape = (num_samples, *event_shape)
    known, values = observed
    for name, tensor in (("mask", known), ("values", values)):
        require_tensor(f"observed: the {name}", tensor)
        sizes = tuple(tensor.shape)
        fits = len(sizes) == 4 and sizes[2:] == shape[2:]
        if not fits or any(size not in (1, want) for size, want in zip(sizes[:2], shape[:2], strict=True)):
            raise ValueError(
                f"observed: the {name} must have shape {shape}, or 1 in place of {shape[0]} or {shape[1]}, got {sizes}"
            )
    if known.dtype != torch.bool:
        raise TypeError(f"observed: the mask must be boolean, True for known values, got {known.dtype}")
    known, values = known.to(device).expand(shape), values.to(device, dtype).expand(shape)
    if not bool(known.any()):
        return None, None
    values = values.masked_fill(~known, 0.0)  # what is there does not count, not even nan
    if not bool(torch.isfinite(values).all()):
        raise ValueError("observed: the values that the mask calls known must be finite, got nan or infinity")
    levels = draw.num_levels
    if levels is not None and not bool(((values == values.floor()) & (values >= 0) & (values < levels)).all()):
        raise ValueError(
            f"observed: known values must be integers in 0..{levels - 1} for likelihood {draw.name!r}, got others, "
            "such as grey values or scaled ones"
        )
    return known, values
