"""``fastvae train``: a model, data, a checkpoint; interrupted and resumed without a trace."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import TRAINING, add_training_options, is_weighted, rate_of, resumed, stored_options, with_defaults

if TYPE_CHECKING:
    from torch import Tensor

    from fastvae.evaluation.peers import Peers

    from .problem import Problem

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
Train a model on images and keep a checkpoint (safetensors and JSON) in a new folder. Losses are in nats per image.
Weights are selected on validation images, never on test images. Ctrl-C saves and stops; --resume goes on to the same
result as if nothing had happened. Several processes share every batch under torchrun, each with a CUDA device of its
own where there is one."""
_EPILOG = """\
examples:
  python -m fastvae train --out runs/vae
  python -m fastvae train --model iwae --num-samples 50 --data mnist.npz --binarize sample --out runs/iwae
  python -m fastvae train --model iwae --num-samples 5000 --estimator dreg --max-mib 64 --out runs/dreg
  python -m fastvae train --model vae --prior vamp --proposal iaf --binarize sample --out runs/vamp
  python -m fastvae train --model pixelvae --binarize sample --num-blocks 1 --free-bits 0.2 --out runs/free-bits
  python -m fastvae train --model nade --order random --num-orders 8 --binarize sample --out runs/nade
  python -m fastvae train --model pixelcnn --data digits --likelihood categorical --out runs/pixelcnn
  python -m fastvae train --resume --out runs/pixelcnn --epochs 200
  torchrun --nproc-per-node 4 -m fastvae train --model pixelcnn --batch-size 200 --out runs/four"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the checkpoint goes: a new name")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own options")
    add_training_options(parser)


def run(args: argparse.Namespace) -> int:
    """Train; the exit code."""
    from fastvae.evaluation.peers import OtherProcessFailed

    from .processes import first_process_first, together

    folder = Path(args.out)
    with together() as peers:
        try:
            options, problem, model = first_process_first(peers, lambda: _prepared(args, folder, peers))
        except OtherProcessFailed:
            return 0  # that one tells what went wrong
        _train(args, options, problem, model, peers)
    return 0


def _prepared(args: argparse.Namespace, folder: Path, peers: "Peers") -> tuple[dict[str, Any], "Problem", Any]:
    from .problem import Problem, build_model
    from .processes import device_of

    options = _options(args, folder, peers)
    device = device_of(peers, options["device"])
    problem = Problem.from_options(options)
    return options, problem, build_model(options, problem).to(device)


def _train(args: argparse.Namespace, options: dict[str, Any], problem: "Problem", model: Any, peers: "Peers") -> None:
    from fastvae.training import Interrupted, fit

    from .problem import bound

    folder, device = Path(args.out), next(model.parameters()).device
    size = sum(parameter.numel() for parameter in model.parameters())
    if peers.rank == 0:
        shared = f", {peers.size} processes" if peers.size > 1 else ""
        print(
            f"{problem.data}\n{type(model).__name__} with {size:,} parameters, {problem.likelihood} likelihood, "
            f"{device}{shared}"
        )
    epoch = 0

    def images(number: int) -> "Tensor":
        nonlocal epoch
        epoch = number
        return problem.data.train_in_epoch(number).to(device)  # bytes: small enough to stay there

    try:
        result = fit(
            model,
            lambda net, levels: -bound(options, net, problem.fresh(levels), epoch),
            images,
            problem.frozen("valid"),
            valid_loss=lambda net, x: -bound(options, net, x),
            epochs=options["epochs"],
            batch_size=options["batch_size"],
            learning_rate=rate_of(options),
            epsilon=options["epsilon"],
            clip_norm=options["clip_norm"],
            patience=options["patience"] + (options.get("warm_up") or 0),
            seed=options["seed"],
            folder=folder,
            resume=args.resume,
            distributed=peers.size > 1,
            info={"options": options, "data": problem.data.name, "protocol": problem.data.protocol},
        )
    except Interrupted as interrupt:
        command = f"python -m fastvae train --resume --out {folder}"
        raise KeyboardInterrupt(f"{interrupt.where}; saved in {folder}; go on with: {command}") from None
    if peers.rank:
        return
    what = "nats per validation image" + (" of the objective, which is no bound" if is_weighted(options) else "")
    print(
        f"{result.epoch} epochs, {result.step} steps; best after epoch {result.best_epoch}: "
        f"{result.best_valid:.3f} {what}\n"
        f"checkpoint: {folder}\nnext: python -m fastvae evaluate {folder}"
    )


def _options(args: argparse.Namespace, folder: Path, peers: "Peers") -> dict[str, Any]:
    given = {name: getattr(args, name) for name in TRAINING}
    if not args.resume:
        if folder.exists() and peers.rank == 0:  # before data are loaded; the first process makes it
            raise ValueError(f"--out {folder} exists already; choose a new name, or add --resume to go on with its run")
        return with_defaults(given)
    return resumed(stored_options(folder), given, folder)
