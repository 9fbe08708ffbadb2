"""The options of ``train`` of a new run, of a resumed one and of a checkpoint."""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastvae import checkpoint

from .option_table import EXACT, MODELS, TRAINING, Option

__all__ = [
    "EXACT",
    "MODELS",
    "TRAINING",
    "Option",
    "absolute",
    "add_device",
    "add_training_options",
    "check_new_file",
    "check_seed",
    "is_weighted",
    "rate_of",
    "resumed",
    "stored_options",
    "with_defaults",
]

_NEVER_DEFAULT = ("model", "data")  # in a checkpoint
_MAY_CHANGE = ("epochs", "patience", "device")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The table as arguments of a parser; options that were not given are None."""
    for name, option in TRAINING.items():
        shown = option.default
        if isinstance(shown, list):
            shown = " ".join(map(str, shown))
        elif isinstance(shown, dict):
            shown = "; ".join(f"{value} for {key}" for key, value in shown.items())
            shown = shown if option.only else f"1; {shown}"
        only = "" if option.models == MODELS else f"{', '.join(option.models)}: "
        only += f"{_needs(option)}: " if option.only else ""
        told = "" if shown is None else f" (default: {shown})"
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{only}{option.help}{told}", **option.settings)


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device`` of the commands that read a checkpoint."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: cuda where there is one (default: auto)"
    )


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a new run.

    Raises:
        ValueError: if an option was given that the model does not have, or a value that makes no sense.
    """
    options: dict[str, Any] = {}
    for name, option in TRAINING.items():
        value = given.get(name)
        if name == "model":
            options[name] = option.default if value is None else value
        elif option.applies(options):
            options[name] = option.default_in(options) if value is None else value
        elif value is not None:
            model = options["model"]
            raise ValueError(
                f"{_flag(name)} applies {_needs(option)} only"
                if model in option.models
                else f"{_flag(name)} does not apply to {model}, only to {', '.join(option.models)}"
            )
    for name, value in options.items():
        _check(name, value)
    if options.get("stochastic_layers") == "2" and options["prior"] == "vamp":
        raise ValueError(
            "--prior vamp needs --stochastic-layers 1: with 2, the proposal of the top layer given a pseudo-input has "
            "no density in closed form; choose mixture or autoregressive"
        )
    if options.get("max_mib") is not None and is_weighted(options):
        raise ValueError("--max-mib needs a plain bound: leave it out, or --beta, --warm-up and --free-bits")
    options["data"] = absolute(options["data"])
    return options


def is_weighted(options: Mapping[str, Any]) -> bool:
    """Whether what is trained is no bound: the KL has a weight or is partly free."""
    return (options.get("beta", 1.0), options.get("warm_up"), options.get("free_bits")) != (1.0, None, None)


def stored_options(folder: str | Path) -> dict[str, Any]:
    """The options that the run of a checkpoint was started with; those that came later have their defaults.

    Raises:
        ValueError: if the folder is no checkpoint, was not made by ``train``, has options that are not known here, or
            its options are damaged.
    """
    config = checkpoint.read_config(folder)
    stored = config["info"].get("options")
    if not isinstance(stored, dict):
        raise ValueError(f"{folder} was not made by 'fastvae train': its config.json has no training options")
    for name in _NEVER_DEFAULT:
        if name not in stored or (name == "model" and stored[name] not in MODELS):
            raise ValueError(f"{folder}/config.json is damaged: its training options name no {name}")
    if unknown := sorted(stored.keys() - TRAINING.keys()):
        raise ValueError(
            f"{folder} was trained with options that are not known here, {', '.join(unknown)}: it was made by another "
            f"version of fastvae ({config['fastvae']}); read it with that one, or train again"
        )
    options = dict(stored)
    for name, option in TRAINING.items():  # what others depend on comes first
        if not option.applies(options):
            continue
        if name not in options:
            options[name] = option.default_in(options)
        if problem := option.problem(options[name]):
            raise ValueError(f"{folder}/config.json is damaged: option {name} {problem}, got {options[name]!r}")
    return options


def resumed(stored: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options of a run that goes on: those it was started with, but for the few that may change.

    Raises:
        ValueError: if another one was given with another value, or with one that makes no sense.
    """
    options = dict(stored)
    for name, value in given.items():
        if value is None:
            continue
        _check(name, value)
        value = absolute(value) if name == "data" else value
        if name not in _MAY_CHANGE and value != stored.get(name):
            raise ValueError(
                f"{_flag(name)} {value} differs from {stored.get(name)}, with which {folder} was started: a resumed "
                f"run may change {', '.join(map(_flag, _MAY_CHANGE))} alone; leave it out, or train into a new folder"
            )
        if name == "epochs" and value != stored.get(name) and stored.get("schedule") == "cosine":
            raise ValueError(
                f"--epochs {value} differs from {stored[name]}, along which --schedule cosine was laid out"
            )
        options[name] = value
    return options


def rate_of(options: Mapping[str, Any]) -> float | Callable[[int], float]:
    """The learning rate as ``fit`` takes it: a number, or a function of the epoch (0, 1, ...)."""
    rate, schedule, epochs = options["learning_rate"], options["schedule"], options["epochs"]
    if schedule == "cosine":
        return lambda epoch: rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if schedule == "iwae":  # stage i ends after 1 + 3 + ... + 3^i epochs
        ends = [(3 ** (stage + 1) - 1) // 2 for stage in range(7)]
        return lambda epoch: rate * 10 ** (-sum(epoch >= end for end in ends) / 7)
    return rate


def absolute(data: str) -> str:
    """A path that still holds when a checkpoint is used from another folder."""
    if not data:
        raise ValueError("--data must be 'digits' or a path, got an empty text")
    return data if data == "digits" else str(Path(data).resolve())


def check_seed(seed: int) -> None:
    """Raise ``ValueError`` for a seed that not every generator can take."""
    _check("seed", seed)


def check_new_file(name: str, option: str = "--out") -> None:
    """Raise ``ValueError``, before any work, if the file is there already or has no folder to go to."""
    out = Path(name)
    if out.exists():
        raise ValueError(f"{option} {out} exists already; nothing was overwritten: choose a new name")
    if not out.parent.is_dir():
        raise ValueError(f"{option} {out}: there is no folder {out.parent}")


def _check(name: str, value: Any) -> None:
    if problem := TRAINING[name].problem(value):
        raise ValueError(f"{_flag(name)} {problem}, got {value!r}")


def _needs(option: Option) -> str:
    assert option.only is not None
    name, values = option.only
    return f"with {_flag(name)} {' or '.join(map(str, values))}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
