"""The options of ``train``: one table of defaults, and what a resumed run takes from its checkpoint."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MODELS", "TRAINING", "Option", "add_device", "add_training_options", "resumed", "with_defaults"]

MODELS = ("vae", "iwae", "pixelcnn", "pixelvae")
_LATENT = ("vae", "iwae", "pixelvae")
_PIXEL = ("pixelcnn", "pixelvae")


class Option:
    """One option of ``train``; its default is filled in late, so that a given value can be told from it."""

    def __init__(self, default: Any, help: str, *, models: tuple[str, ...] = MODELS, **settings: Any) -> None:
        self.default, self.help, self.models, self.settings = default, help, models, settings


TRAINING: Mapping[str, Option] = {
    "model": Option(
        "vae",
        "vae: ELBO; iwae: the same net with the importance-weighted bound; pixelcnn: autoregressive, exact likelihood; "
        "pixelvae: a VAE with a PixelCNN decoder",
        choices=MODELS,
    ),
    "data": Option(
        "digits",
        "'digits' (scikit-learn's, 8x8, no download), a .npz file (x_train and x_test, or train_bits and test_bits, or "
        "X in video order), or idx files as of MNIST (their folder, or the file of the training images), gzipped or "
        "not",
    ),
    "binarize": Option(
        "none",
        "none; threshold: half of the top level; sample: one with probability level/top, drawn afresh in each epoch "
        "for training, once for validation and test",
        choices=("none", "threshold", "sample"),
    ),
    "likelihood": Option(
        "auto",
        "of a pixel given z (and the pixels before it); auto: bernoulli for binary data, else categorical; gaussian "
        "dequantises the levels to (0, 1)",
        choices=("auto", "bernoulli", "categorical", "gaussian"),
    ),
    "latent_size": Option(32, "size of z", models=_LATENT, type=int, metavar="D"),
    "hidden": Option([200, 200], "hidden layers of the encoder", models=_LATENT, type=int, nargs="+", metavar="H"),
    "channels": Option(32, "width of the masked stack", models=_PIXEL, type=int, metavar="C"),
    "num_blocks": Option(4, "masked residual blocks", models=_PIXEL, type=int, metavar="B"),
    "first_kernel_size": Option(7, "first (mask A) kernel, odd", models=_PIXEL, type=int, metavar="K"),
    "kernel_size": Option(3, "later (mask B) kernels, odd", models=_PIXEL, type=int, metavar="K"),
    "num_samples": Option({"iwae": 5}, "samples of z per image in the bound", models=_LATENT, type=int, metavar="K"),
    "epochs": Option(100, "passes over the training images; may be raised when resuming", type=int, metavar="E"),
    "batch_size": Option(50, "images in a batch", type=int, metavar="N"),
    "learning_rate": Option(1e-3, "of Adam", type=float, metavar="R"),
    "clip_norm": Option(100.0, "largest norm of the gradient of the mean loss", type=float, metavar="G"),
    "patience": Option(10, "stop after this many epochs without a better validation loss", type=int, metavar="E"),
    "seed": Option(
        0,
        "of weights, order and noise; the split and the frozen draws of validation and test never change",
        type=int,
        metavar="S",
    ),
    "device": Option("auto", "cpu, cuda, cuda:1, ...; auto: cuda where there is one", metavar="DEVICE"),
}
_MAY_CHANGE = ("epochs", "patience", "device")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The table as arguments of a parser; options that were not given are None."""
    for name, option in TRAINING.items():
        shown = option.default
        if isinstance(shown, list):
            shown = " ".join(map(str, shown))
        elif isinstance(shown, dict):
            shown = "1" + "".join(f"; {value} for {model}" for model, value in shown.items())
        only = "" if option.models == MODELS else f"{', '.join(option.models)}: "
        parser.add_argument(
            f"--{name.replace('_', '-')}", help=f"{only}{option.help} (default: {shown})", **option.settings
        )


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device`` of the commands that read a checkpoint."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: cuda where there is one")


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a new run.

    Raises:
        ValueError: if an option was given that the model does not have, or no sample was asked for.
    """
    model = given.get("model") or TRAINING["model"].default
    options: dict[str, Any] = {}
    for name, option in TRAINING.items():
        value = given.get(name)
        if model not in option.models:
            if value is not None:
                raise ValueError(f"{_flag(name)} does not apply to {model}, only to {', '.join(option.models)}")
            continue
        default = option.default.get(model, 1) if isinstance(option.default, dict) else option.default
        options[name] = default if value is None else value
    if options.get("num_samples", 1) < 1:  # the others are checked before a folder is made, this by the loss
        raise ValueError(f"--num-samples must be at least 1, got {options['num_samples']}")
    options["data"] = absolute(options["data"])
    return options


def resumed(stored: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options of a run that goes on: those it was started with, but for the few that may change.

    Raises:
        ValueError: if another one was given with another value.
    """
    options = dict(stored)
    for name, value in given.items():
        if value is None:
            continue
        value = absolute(value) if name == "data" else value
        if name not in _MAY_CHANGE and value != stored.get(name):
            raise ValueError(
                f"{_flag(name)} {value} differs from {stored.get(name)}, with which {folder} was started: a resumed "
                f"run may change {', '.join(map(_flag, _MAY_CHANGE))} alone; leave it out, or train into a new folder"
            )
        options[name] = value
    return options


def absolute(data: str) -> str:
    """A path that still holds when a checkpoint is used from another folder."""
    return data if data == "digits" else str(Path(data).resolve())


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
