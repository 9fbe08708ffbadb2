"""Images from NumPy's .npz archives, without ever unpickling."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_npz"]

_LAYOUTS = "x_train and x_test (and x_valid), train_bits and test_bits (and valid_bits), or X"
_UNREADABLE = (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def read_npz(path: Path) -> tuple[dict[str, Tensor], int]:
    """The images of ``path`` as ``{"train", "test"[, "valid"]}`` or ``{"video"}``, and their number of levels.

    Raises:
        ValueError: if the file is no archive, is damaged, holds pickles, or lacks the entries; naming what it has.
    """
    found, arrays = _read_arrays(path)
    if "X" in arrays:
        names = {"X": "video"}
    elif {"x_train", "x_test"} <= arrays.keys():
        names = {"x_train": "train", "x_valid": "valid", "x_test": "test"}
    elif {"train_bits", "test_bits"} <= arrays.keys():
        names = {"train_bits": "train", "valid_bits": "valid", "test_bits": "test"}
    else:
        raise ValueError(f"{path} holds {sorted(found) or 'nothing'}; expected {_LAYOUTS}")
    parts = {
        part: _packed_images(path, key, arrays[key]) if key.endswith("_bits") else _images(path, key, arrays[key])
        for key, part in names.items()
        if key in arrays
    }
    return parts, _num_levels(path, arrays, parts)


def _read_arrays(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all entries, and the entries we know; others may be large, or pickles, and are left alone."""
    wanted = {"X", "x_train", "x_valid", "x_test", "train_bits", "valid_bits", "test_bits", "num_levels"}
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if start == b"\x93NUMPY":
            raise ValueError("it is a single array; expected an archive, as numpy.savez writes")
        if start[:2] != b"PK":  # numpy would take it for a pickle
            raise ValueError(f"it starts with {start!r}, not as the archives that numpy.savez writes")
        with np.load(path, allow_pickle=False) as archive:
            return archive.files, {key: _entry(archive, key) for key in archive.files if key in wanted}
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as a .npz archive of plain arrays: {error}") from error


def _entry(archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        array = archive[key]
    except ValueError as error:
        if "allow_pickle" in str(error):  # numpy would advise to unpickle, which runs what the file says
            raise ValueError(f"{key} holds Python objects, which are never loaded; store it as uint8") from None
        raise
    if not isinstance(array, np.ndarray):  # bytes: an entry that is no .npy file
        raise ValueError(f"{key} is not an array")
    return array


def _images(path: Path, key: str, array: np.ndarray) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, C, H, W) uint8."""
    if array.dtype not in (np.uint8, np.bool_):
        raise ValueError(
            f"{path}: {key} must hold integer levels as uint8 (or bool), got {array.dtype}; "
            "store the original levels 0..255, not scaled values"
        )
    images = torch.from_numpy(array.astype(np.uint8))  # a copy, writable and contiguous
    if images.ndim == 3:
        return images.unsqueeze(1)
    if images.ndim == 4 and images.shape[3] in (1, 3):  # first: no image is 1 or 3 pixels wide
        return images.movedim(3, 1).contiguous()
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise ValueError(
        f"{path}: {key} must be (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, got {array.shape}"
    )


def _packed_images(path: Path, key: str, array: np.ndarray) -> Tensor:
    """(N, 98) bytes -> (N, 1, 28, 28) in {0, 1}."""
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != 98:
        raise ValueError(
            f"{path}: {key} must be (N, 98) uint8, 28x28 bits packed by numpy.packbits, got {array.shape} {array.dtype}"
        )
    return torch.from_numpy(np.unpackbits(array, axis=1)).view(-1, 1, 28, 28)


def _num_levels(path: Path, arrays: dict[str, np.ndarray], parts: dict[str, Tensor]) -> int:
    top = max((int(images.max()) for images in parts.values() if images.numel()), default=0)
    if "num_levels" not in arrays:
        return 2 if top <= 1 else 256
    given = arrays["num_levels"]
    if given.ndim != 0 or given.dtype.kind not in "iu" or not 2 <= int(given) <= 256:
        raise ValueError(f"{path}: num_levels must be an integer in 2..256, got {given!r}")
    if top >= int(given):
        raise ValueError(f"{path}: num_levels is {int(given)}, but the images hold level {top}")
    return int(given)
