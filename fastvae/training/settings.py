"""What a run is asked to do, checked once."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Settings", "fingerprint"]


@dataclass(frozen=True)
class Settings:
    """The numbers of :func:`fastvae.training.fit`."""

    epochs: int
    batch_size: int
    learning_rate: float | Callable[[int], float]
    epsilon: float
    clip_norm: float | None
    patience: int | None
    seed: int

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        for name, number in (("learning_rate", self.rate(0)), ("epsilon", self.epsilon), ("clip_norm", self.clip_norm)):
            if number is None and name == "clip_norm":
                continue
            if not isinstance(number, int | float):
                raise TypeError(f"{name} must be a number, got {number!r}")
            if not 0 < number < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {number}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise TypeError(f"seed must be an integer in [0, 2^63), got {self.seed!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), got {self.seed}")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        return self.learning_rate(epoch) if callable(self.learning_rate) else self.learning_rate

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of a run; ``epochs`` and ``patience`` may."""
        return {
            "batch_size": self.batch_size,
            "learning_rate": self.rate(0),
            "epsilon": self.epsilon,
            "clip_norm": self.clip_norm,
            "seed": self.seed,
        }


def fingerprint(images: Tensor) -> str:
    """Shape, type and checksum of images: enough to notice that a run is resumed on other data."""
    content = images.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return f"{tuple(images.shape)} {images.dtype} {zlib.crc32(content):08x}"
