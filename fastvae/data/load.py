"""``load``: from a name or a path to images with a split."""

from pathlib import Path

import torch
from torch import Tensor

from .dataset import Data, random_uniform
from .idx import read_idx_pair
from .npz import read_npz

__all__ = ["load"]


def load(source: str | Path, *, num_valid: int | None = None, num_test: int | None = None, seed: int = 0) -> Data:
    """Images from ``"digits"`` or a file, split into train, validation and test.

    - ``"digits"``: scikit-learn's 1,797 scans of 8x8 pixels and 17 grey levels; a seeded random split into 1297 / 200
      / 300. Needs no download.
    - a ``.npz`` file with ``x_train`` and ``x_test`` (and ``x_valid``), or ``train_bits`` and ``test_bits`` (and
      ``valid_bits``): 28x28 binary images as rows of 98 packed bytes, or ``X``: frames in video order, split by time so
      that neighbouring frames do not end up on both sides (80 / 10 / 10 %).
      Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, uint8 or bool; an entry ``num_levels``
      says if there are fewer than 256. Never unpickled.
    - idx files as of MNIST, gzipped or not: their directory, or the file of the training images.

    Where a file has no validation images, the last ``num_valid`` training images are held out (default: a sixth, at
    most 10,000, which is the usual 50,000 / 10,000 of MNIST).

    Args:
        source: ``"digits"`` or a path.
        num_valid: how many validation images to hold out, for sources that do not bring their own.
        num_test: how many test images to split off, for sources that do not bring their own.
        seed: of the split of the digits.

    Raises:
        ValueError: if the file cannot be read, or the split cannot be made; says what was found and what is expected.

    Example:
        >>> load("digits")
        Data(digits: 1297 train, 200 valid, 300 test of (1, 8, 8), 17 levels; random split, seed 0)
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be 'digits' or a path, got {type(source).__name__}")
    for name, value in (("num_valid", num_valid), ("num_test", num_test)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if source == "":  # as a path it would be the current folder
        raise ValueError("source must be 'digits' or a path, got an empty string")
    if source == "digits":
        return _digits(200 if num_valid is None else num_valid, 300 if num_test is None else num_test, seed)
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{path} does not exist; expected 'digits', a .npz file, an idx file or a folder of idx files")
    if path.suffix == ".npz":
        parts, num_levels = read_npz(path)
    else:
        parts, num_levels = read_idx_pair(path), 256
    return _from_parts(path, parts, num_levels, num_valid, num_test)


def _digits(num_valid: int, num_test: int, seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'fastvae[demo]'") from error
    images = torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1)
    _check_room("digits", len(images), num_valid + num_test)
    order = random_uniform((len(images),), seed).argsort(stable=True)
    valid, test, train = order.split([num_valid, num_test, len(images) - num_valid - num_test])
    return Data("digits", f"random split, seed {seed}", 17, images[train], images[valid], images[test])


def _from_parts(
    path: Path, parts: dict[str, Tensor], num_levels: int, num_valid: int | None, num_test: int | None
) -> Data:
    if "video" in parts:
        return _video(path, parts["video"], num_levels, num_valid, num_test)
    if num_test is not None:
        raise ValueError(f"num_test must be None: {path} brings its own {len(parts['test'])} test images")
    train, protocol = parts["train"], "split of the file"
    if "valid" in parts:
        if num_valid is not None:
            raise ValueError(f"num_valid must be None: {path} brings its own {len(parts['valid'])} validation images")
        return Data(path.name, protocol, num_levels, train, parts["valid"], parts["test"])
    held_out = min(10_000, max(1, len(train) // 6)) if num_valid is None else num_valid
    _check_room(str(path), len(train), held_out)
    protocol += f", the last {held_out} training images held out for validation"
    return Data(path.name, protocol, num_levels, train[:-held_out], train[-held_out:], parts["test"])


def _video(path: Path, frames: Tensor, num_levels: int, num_valid: int | None, num_test: int | None) -> Data:
    num_valid = max(1, len(frames) // 10) if num_valid is None else num_valid
    num_test = max(1, len(frames) // 10) if num_test is None else num_test
    _check_room(str(path), len(frames), num_valid + num_test)
    train, valid, test = frames.split([len(frames) - num_valid - num_test, num_valid, num_test])
    return Data(
        path.name, "video order: first frames train, then validation, last test", num_levels, train, valid, test
    )


def _check_room(what: str, available: int, held_out: int) -> None:
    if held_out >= available:
        raise ValueError(
            f"{what} has {available} images, of which {held_out} were to be held out: none is left for training"
        )
