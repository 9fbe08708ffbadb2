"""``fastvae figures``: three experiments of the literature, each as a table and a picture."""

import argparse
import importlib
import json
from pathlib import Path

from .options import check_seed

__all__ = ["add_arguments", "run"]

_FIGURES = ("collapse", "four-points", "orders")
_DESCRIPTION = """\
Three experiments on small data, each as a table on standard output, and a picture and the numbers in a new folder.

  collapse     posterior collapse: how much goes through z as the PixelCNN in the decoder of a PixelVAE gets deeper,
               with and without free bits; scikit-learn's digits, binarised
  four-points  inference suboptimality: four data points, z of two dimensions; Gaussian and IAF posteriors beside the
               exact ones on a grid
  orders       the same PixelCNN with the same budget in raster order, along an s-curve, along a Hilbert curve and in a
               random order; scikit-learn's digits, binarised

collapse and orders train every model with several seeds and show their mean, its error and each of them."""
_EPILOG = """\
examples:
  python -m fastvae figures collapse --out figures/collapse
  python -m fastvae figures collapse --seeds 10 --out figures/collapse-10
  python -m fastvae figures four-points --out figures/four-points
  python -m fastvae figures orders --epochs 200 --out figures/orders"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("name", choices=_FIGURES, help="which experiment")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where all goes: a new name")
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="E",
        help="of training each model (four-points: steps of Adam); default: a few minutes on two cores for the whole",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights and noise (default: 0)")
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="collapse, orders: how many seeds, --seed and those after it (default: 5 and 3)",
    )


def run(args: argparse.Namespace) -> int:
    """Compute, print and write; the exit code."""
    from fastvae import figures

    module = importlib.import_module(f"fastvae.commands.figure_{args.name.replace('-', '_')}")
    check_seed(args.seed)
    epochs = module.EPOCHS if args.epochs is None else args.epochs
    if epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {epochs}")
    sizes = _seeds(args.name, args.seeds, getattr(module, "SEEDS", None))
    if args.out.exists():
        raise FileExistsError(f"--out {args.out} exists already; nothing was overwritten: choose a new name")
    report = module.compute(epochs, args.seed, *sizes)
    module.show(report)
    figure = module.draw(report)
    args.out.mkdir(parents=True)
    with (args.out / f"{args.name}.json").open("x") as file:
        json.dump(module.as_json(report), file, indent=1)
    figures.save(figure, args.out / f"{args.name}.png")
    print(f"numbers and picture: {args.out}/")
    return 0


def _seeds(name: str, given: int | None, default: int | None) -> list[int]:
    """How many seeds, for the experiments that take several."""
    if default is None:
        if given is not None:
            raise ValueError(f"--seeds does not apply to {name}, which trains with one seed")
        return []
    if given is not None and given < 1:
        raise ValueError(f"--seeds must be at least 1, got {given}")
    return [default if given is None else given]
