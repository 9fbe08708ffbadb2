"""Files of evaluations: safetensors with one JSON header, written in one step, checked when read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fastvae.checkpoint import read_tensors, replace_file

__all__ = ["check_free", "check_tensors", "read", "write"]

FORMAT = 1  # a reader refuses newer ones
_HEADER = "fastvae.evaluation"


def check_free(path: str | Path, overwrite: bool) -> None:
    """Raise unless a file can be written there; existing ones only with ``overwrite``."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"path must name a file in an existing folder, got {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; nothing was overwritten: choose a new name, or overwrite=True")


def write(path: str | Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Replace the file in one step: a kill at any moment leaves the old one or the new one."""
    from fastvae import __version__  # lazily: the package imports this module

    about = {"kind": kind, "format": FORMAT, "fastvae": __version__, **header}
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_HEADER: json.dumps(about, allow_nan=False)}  # one entry: safetensors shuffles several
    replace_file(Path(path), safetensors.torch.save(on_cpu, metadata))


def read(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file of this kind.

    Raises:
        ValueError: if it is missing, damaged, of another kind, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist, or is not a file")
    tensors, metadata = read_tensors(path)
    try:
        header = json.loads(metadata[_HEADER])
        found, number, version = header["kind"], header["format"], header["fastvae"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} was not written by {kind}.save: it has no header of an evaluation") from error
    if not isinstance(number, int) or number > FORMAT:
        raise ValueError(
            f"{path} has format {number}, written by fastvae {version}; this one reads up to format {FORMAT}: "
            "update fastvae"
        )
    if found != kind:
        raise ValueError(f"{path} holds a {found}, expected a {kind}")
    return tensors, header


def check_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, torch.dtype]]
) -> None:
    """Raise ``ValueError`` unless the tensors are those ``expected``: name -> dimensions, dtype."""
    found = {name: (tensor.ndim, tensor.dtype) for name, tensor in tensors.items()}
    if found != dict(expected):
        raise ValueError(f"{path} is damaged: it holds {found}, expected {dict(expected)} (dimensions and types)")
