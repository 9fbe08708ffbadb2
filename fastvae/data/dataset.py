"""``Data``: three sets of images with integer levels, and the sentence that says how they came about."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Data", "random_uniform", "sample_binary"]


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Images with integer levels, split for training, model selection and the final figures.

    Args:
        name: what the data are called in reports.
        protocol: how they were split and binarised; figures of different protocols do not compare.
        num_levels: L; the levels are 0..L-1, so 2 means binary.
        train: (N, C, H, W) uint8.
        valid: (N, C, H, W) uint8, for early stopping and every other choice.
        test: (N, C, H, W) uint8, for the final figures alone.
        grey: (N, C, H, W) uint8 grey images of which ``train`` is one binary draw, or None if ``train`` is fixed.
        grey_levels: the number of levels of ``grey``.
        seed: of the fresh draws.

    Raises:
        ValueError: if a set is empty, has another shape or type, or holds a level beyond ``num_levels - 1``.

    Example:
        >>> images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
        >>> Data("zeros", "none", num_levels=2, train=images, valid=images, test=images)
        Data(zeros: 4 train, 4 valid, 4 test of (1, 2, 2), 2 levels; none)
    """

    name: str
    protocol: str
    num_levels: int
    train: Tensor
    valid: Tensor
    test: Tensor
    grey: Tensor | None = None
    grey_levels: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "valid", "test"):
            _check(f"{self.name}: {name}", getattr(self, name), tuple(self.train.shape[1:]), self.num_levels)
        if self.grey is not None:
            _check(f"{self.name}: grey", self.grey, tuple(self.train.shape[1:]), self.grey_levels)

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} train, {len(self.valid)} valid, {len(self.test)} test"
        return f"Data({self.name}: {sizes} of {self.event_shape}, {self.num_levels} levels; {self.protocol})"

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def train_in_epoch(self, epoch: int) -> Tensor:
        """(N, C, H, W) uint8 training images of an epoch: ``train``, or a fresh binary draw of ``grey``."""
        if self.grey is None:
            return self.train
        return sample_binary(self.grey, self.grey_levels, random_uniform(self.grey.shape, self.seed, epoch))


def sample_binary(grey: Tensor, num_levels: int, noise: Tensor) -> Tensor:
    """1 with probability level / (L - 1), else 0, uint8; ``noise`` uniform in [0, 1)."""
    return (noise * (num_levels - 1) < grey).to(torch.uint8)


def random_uniform(shape: tuple[int, ...] | torch.Size, *seed: int) -> Tensor:
    """Uniform float32 numbers in [0, 1) from NumPy's PCG64, whose stream for a seed is fixed across its versions."""
    if min(seed) < 0:
        raise ValueError(f"seed must not be negative, got {min(seed)}")
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).random(tuple(shape), dtype=np.float32))


def _check(what: str, images: Tensor, event_shape: tuple[int, ...], num_levels: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"{what} must be (N, C, H, W) uint8 levels, got {tuple(images.shape)} {images.dtype}")
    if images.numel() == 0:
        raise ValueError(f"{what} must hold at least one image, got shape {tuple(images.shape)}")
    if tuple(images.shape[1:]) != event_shape:
        raise ValueError(f"{what} must have images of the shape of train, {event_shape}, got {tuple(images.shape[1:])}")
    if not 2 <= num_levels <= 256:
        raise ValueError(f"{what} must have 2 to 256 levels, got {num_levels}")
    if int(images.max()) >= num_levels:
        raise ValueError(f"{what} must hold levels 0..{num_levels - 1}, got {int(images.max())}")
