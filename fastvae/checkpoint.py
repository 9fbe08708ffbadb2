"""Checkpoints: a folder of safetensors and JSON, written so that a kill at any moment leaves a complete one.

===================== =================================================================================================
config.json           which class, built with which arguments, by which version, and what the caller adds (data ...)
model.safetensors     the weights to use: the best ones on validation, or the last where nothing was validated
training.safetensors  all a run needs to go on: last and best weights, optimiser, random state; its history as metadata
===================== =================================================================================================

Each file is replaced as a whole by ``os.replace``, and the state of a run is read from one file only, so no mixture of
two moments can be loaded. Nothing is ever unpickled.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

__all__ = [
    "check_state",
    "create",
    "load_model",
    "load_state",
    "read_config",
    "read_tensors",
    "read_training",
    "replace_file",
    "save",
    "training_file",
    "write_training",
    "write_weights",
]

FORMAT = 1  # of the folder; a reader refuses newer ones
_CONFIG, _WEIGHTS, _TRAINING = "config.json", "model.safetensors", "training.safetensors"


def save(folder: str | Path, model: nn.Module, *, info: Mapping[str, Any] | None = None) -> None:
    """Write a model into a new folder, to be read by :func:`load_model`.

    Args:
        folder: must not exist, or be empty: nothing is overwritten.
        model: a module with ``config()``: its constructor's arguments, as JSON can hold them.
        info: anything else worth keeping (data, protocol), as JSON can hold it.

    Raises:
        ValueError: if the folder holds something.
        TypeError: if the model has no ``config()``, or JSON cannot hold what it returns.

    Example:
        >>> import tempfile
        >>> class Line(nn.Linear):
        ...     def config(self):
        ...         return {"in_features": self.in_features, "out_features": self.out_features}
        >>> model = Line(3, 2)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     save(f"{parent}/line", model)
        ...     again = load_model(f"{parent}/line", {"Line": Line})
        >>> torch.equal(again.weight, model.weight)
        True
    """
    create(folder, model, info=info)
    write_weights(folder, model.state_dict())


def create(folder: str | Path, model: nn.Module, *, info: Mapping[str, Any] | None = None) -> None:
    """Make the folder and its config.json; the first half of :func:`save`, with the same errors."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; nothing was overwritten: choose a new name, or resume from it")
    config = _describe(model) | {"format": FORMAT, "fastvae": _version(), "info": dict(info or {})}
    content = _json(config, "info")
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / _CONFIG, content.encode())


def write_weights(
    folder: str | Path, tensors: Mapping[str, Tensor], *, about: Mapping[str, str | int | float] | None = None
) -> None:
    """Replace the weights to use, in one step; ``about`` says where they come from (epoch, loss)."""
    metadata = {"about": _json(dict(about or {}), "about")}  # one entry: safetensors shuffles several
    replace_file(Path(folder) / _WEIGHTS, safetensors.torch.save(_on_cpu(tensors), metadata))


def write_training(folder: str | Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the state of a run in one step: ``tensors``, and ``state`` as JSON can hold it."""
    metadata = {"state": _json(state, "state")}
    replace_file(Path(folder) / _TRAINING, safetensors.torch.save(_on_cpu(tensors), metadata))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The content of config.json: ``model``, ``config``, ``format``, ``fastvae`` (version) and ``info``.

    Raises:
        ValueError: if the folder is no checkpoint, is damaged, or is of a newer version.
    """
    path = Path(folder) / _CONFIG
    if not path.is_file():
        found = "is not a folder" if not Path(folder).is_dir() else f"has no {_CONFIG}"
        raise ValueError(f"{folder} is not a checkpoint: it {found}; expected what fastvae.checkpoint.save writes")
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    expected = {"model": str, "config": dict, "format": int, "fastvae": str, "info": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in expected.items()):
        raise ValueError(f"{path} is not the description of a checkpoint: expected entries {', '.join(expected)}")
    if config["format"] > FORMAT:
        raise ValueError(
            f"{folder} has format {config['format']}, written by fastvae {config['fastvae']}; this is fastvae "
            f"{_version()}, which reads up to format {FORMAT}: update fastvae"
        )
    return config


def read_training(folder: str | Path, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write_training` wrote, for a run of ``model``.

    Raises:
        ValueError: if the folder is no checkpoint, belongs to another model, or cannot be read.
    """
    stored, ours = read_config(folder), _describe(model)
    if ours["config"].keys() - stored["config"].keys():
        stored["config"] = _with_defaults(model, stored["config"])
    for key in ("model", "config"):
        if stored[key] != ours[key]:
            raise ValueError(f"{folder} holds another model: its {key} is {stored[key]}, expected {ours[key]}")
    path = training_file(folder)
    tensors, metadata = read_tensors(path)
    try:
        state = json.loads(metadata["state"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no state of a run") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state of a run: expected a JSON object, got {type(state).__name__}")
    return tensors, state


def training_file(folder: str | Path) -> Path:
    """Where :func:`write_training` puts the state of a run, to be named in errors."""
    return Path(folder) / _TRAINING


def load_model(
    folder: str | Path,
    registry: Mapping[str, Callable[..., nn.Module]],
    *,
    weights: Literal["best", "last"] = "best",
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Build the model of a checkpoint, in evaluation mode.

    Args:
        folder: as written by :func:`save` or :func:`fastvae.training.fit`.
        registry: the classes that may be built, by name: ``{"VAE": fastvae.models.VAE}``.
        weights: ``"best"`` on validation (the last ones where nothing was validated), or ``"last"`` of the run.
        device: where the model goes.

    Raises:
        ValueError: if the folder is no checkpoint, its class is not in ``registry``, or its files are missing, damaged
            or of another model.
    """
    if weights not in ("best", "last"):
        raise ValueError(f"weights must be 'best' or 'last', got {weights!r}")
    config = read_config(folder)
    if config["model"] not in registry:
        raise ValueError(f"{folder} holds a model of class {config['model']}, expected one of {', '.join(registry)}")
    try:
        model = registry[config["model"]](**config["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{Path(folder) / _CONFIG} does not fit {config['model']}: {error}") from error
    path = Path(folder) / (_WEIGHTS if weights == "best" else _TRAINING)
    if weights == "best" and not path.is_file() and (Path(folder) / _TRAINING).is_file():
        raise ValueError(f"{folder} has no validated weights yet: resume its training, or ask for weights='last'")
    tensors, _ = read_tensors(path)
    if weights == "last":
        tensors = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    model.to(_floating_dtype(tensors))
    load_state(model, tensors, str(path))
    return model.to(device).eval()


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """``model.load_state_dict`` with errors that name ``source``, what it holds and what is expected."""
    check_state(model, tensors, source)
    model.load_state_dict(dict(tensors))


def check_state(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise ``ValueError`` where :func:`load_state` would; the model is left as it is."""
    expected = model.state_dict()
    for kind, names in (("lacks", expected.keys() - tensors.keys()), ("has unknown", tensors.keys() - expected.keys())):
        if names:
            raise ValueError(f"{source} is of another model: it {kind} {', '.join(sorted(names)[:5])}")
    for name, want in expected.items():
        got = tensors[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise ValueError(
                f"{source} is of another model: {name} has shape {tuple(got.shape)} and {got.dtype}, expected "
                f"{tuple(want.shape)} and {want.dtype}"
            )


def _describe(model: nn.Module) -> dict[str, Any]:
    """Class and arguments as they look after a trip through JSON (tuples become lists)."""
    config: Any = getattr(model, "config", None)
    if not callable(config):
        raise TypeError(
            f"model must have a method config() that returns its constructor's arguments, got {type(model).__name__}"
        )
    return {"model": type(model).__name__, "config": json.loads(_json(config(), "config()"))}


def _with_defaults(model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """``config``, with what the class of the model makes of arguments that came after it was written."""
    try:
        with torch.random.fork_rng(devices=[]):
            return _describe(type(model)(**config))["config"]
    except (TypeError, ValueError):
        return config


def _json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold what JSON can: {error}") from error


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # cloned: safetensors refuses memory shared by two names, as tied weights have
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _floating_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    floating = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    return floating[0] if floating else torch.get_default_dtype()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} is incomplete: {path.name} is missing")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  no dict
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write beside, force to disk, then rename: readers see the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _version() -> str:
    from fastvae import __version__  # lazily: the package imports this module

    return __version__
