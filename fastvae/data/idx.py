"""Images from idx files, the format of MNIST and its relatives, gzipped or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_idx", "read_idx_pair"]

_EXPECTED = "expected train-images-idx3-ubyte and t10k-images-idx3-ubyte, gzipped or not"


def read_idx_pair(path: Path) -> dict[str, Tensor]:
    """Training and test images (N, 1, H, W) uint8 from a folder, or from the file of the training images.

    Raises:
        ValueError: if one of the two files is missing, cannot be told, or cannot be read.
    """
    train = _find(path, "train-images") if path.is_dir() else path
    if "train" not in train.name:
        raise ValueError(f"{train} is not named as training images of idx files are; {_EXPECTED}, or a .npz file")
    return {"train": read_idx(train), "test": read_idx(_test_file(train))}


def read_idx(path: Path) -> Tensor:
    """(N, H, W) unsigned bytes of an idx file -> (N, 1, H, W) uint8.

    Raises:
        ValueError: if the magic number, the element type, the number of dimensions or the length is wrong.
    """
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} must start with the magic number of idx files, 00 00 08 03, got {_hex(content)}")
    element, ndim = content[2], content[3]
    if element != 0x08 or ndim != 3:
        raise ValueError(
            f"{path} must hold images: unsigned bytes (type 08) in 3 dimensions, magic number 00 00 08 03, got "
            f"{_hex(content)}" + (": these are labels" if ndim == 1 else "")
        )
    header = 4 + 4 * ndim
    if len(content) < header:
        raise ValueError(f"{path} is truncated: its header takes {header} bytes, got {len(content)}")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        problem = "is truncated" if len(content) < expected else "is too long"
        raise ValueError(f"{path} {problem}: images {shape} take {expected} bytes, got {len(content)}")
    if not math.prod(shape):
        raise ValueError(f"{path} is empty: it holds images of shape {shape}")
    images = np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    return torch.from_numpy(images.copy()).unsqueeze(1)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _find(folder: Path, word: str) -> Path:
    # a plain file and its gzipped twin are one
    found = {
        file.name.removesuffix(".gz"): file for file in sorted(folder.iterdir(), reverse=True) if word in file.name
    }
    if len(found) != 1:
        raise ValueError(f"{folder} holds {sorted(found) or 'no file'} with {word} in its name; {_EXPECTED}")
    return next(iter(found.values()))


def _test_file(train: Path) -> Path:
    plain = train.name.removesuffix(".gz")
    names = [plain.replace("train", word) + suffix for word in ("t10k", "test") for suffix in ("", ".gz")]
    for name in names:
        if (train.parent / name).is_file():
            return train.parent / name
    raise ValueError(f"{train.parent} has no test images beside {train.name}; expected one of {', '.join(names)}")


def _hex(content: bytes) -> str:
    return content[:4].hex(" ") or "an empty file"
