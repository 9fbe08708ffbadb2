"""What a saved run must hold to go on; a damaged or foreign file is refused before anything is taken from it."""

from collections.abc import Collection, Mapping, Sequence
from types import UnionType
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_moments", "check_part", "check_progress", "split_parts"]

_PARTS = ("model", "best", "optimizer", "random")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of Adam
_FIT: Mapping[str, UnionType | type] = {  # the entries of Fit, as JSON gives them back
    "epoch": int,
    "batch": int,
    "step": int,
    "loss_sum": int | float,
    "best_epoch": int | None,
    "best_valid": int | float | None,
    "history": list,
}


def check_progress(stored: Mapping[str, Any], identity: Mapping[str, Any], source: str) -> None:
    """Raise ``ValueError`` unless ``stored`` has ``moments``, all of ``identity`` and a whole ``fit``."""
    for name, kind, content in (("identity", dict, identity), ("fit", dict, _FIT), ("moments", list, ())):
        if not isinstance(stored.get(name), kind):
            raise ValueError(f"{source} is damaged: its state lacks {name}")
        if lacking := [key for key in content if key not in stored[name]]:
            raise ValueError(f"{source} is damaged: {name} of its state lacks {', '.join(lacking)}")
    for name, value in stored["fit"].items():
        if name not in _FIT or not isinstance(value, _FIT[name]):
            raise ValueError(f"{source} is damaged: fit of its state cannot have {name} {value!r}")


def split_parts(tensors: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    """``{"model.a": tensor}`` -> ``{"model": {"a": tensor}, ...}``.

    Raises:
        ValueError: if a tensor belongs to no part.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        if part not in parts:
            raise ValueError(f"{source} is damaged: {name} belongs to none of {', '.join(_PARTS)}")
        parts[part][key] = tensor
    return parts


def check_part(
    part: str,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    source: str,
    *,
    others: Collection[str] = (),
) -> None:
    """Raise ``ValueError`` unless names, shapes and types are as ``expected``; ``others`` may be there or not."""
    if lacking := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"{source} is damaged: it lacks {_listed(part, lacking)}")
    if unknown := sorted(tensors.keys() - expected.keys() - set(others)):
        raise ValueError(f"{source} is damaged: it has unknown {_listed(part, unknown)}")
    for name, want in expected.items():
        got = tensors[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise ValueError(
                f"{source} is damaged: {part}.{name} has shape {tuple(got.shape)} and {got.dtype}, expected "
                f"{tuple(want.shape)} and {want.dtype}"
            )


def check_moments(
    tensors: Mapping[str, Tensor], indices: Sequence[int], parameters: Sequence[Tensor], source: str
) -> dict[int, dict[str, Tensor]]:
    """Adam's state of the parameters ``indices``, as ``load_state_dict`` takes it.

    Raises:
        ValueError: if something is missing, unknown, or not of the shape and type of its parameter.
    """
    if not all(isinstance(index, int) and 0 <= index < len(parameters) for index in indices):
        raise ValueError(f"{source} is damaged: 'moments' must be numbers below {len(parameters)}, got {indices}")
    expected = {
        f"{index}.{name}": torch.zeros(()) if name == "step" else parameters[index]
        for index in indices
        for name in _MOMENTS
    }
    # the precision of the count of steps follows torch's default dtype
    found = {name: tensor.float() if name.endswith(".step") else tensor for name, tensor in tensors.items()}
    check_part("optimizer", found, expected, source)
    return {index: {name: tensors[f"{index}.{name}"] for name in _MOMENTS} for index in indices}


def _listed(part: str, names: Sequence[str]) -> str:
    return ", ".join(f"{part}.{name}" for name in names[:5])
