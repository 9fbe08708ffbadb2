"""``fastvae diagnose``: posterior collapse, measured on a trained model."""

import argparse
import json
from pathlib import Path

from .options import EXACT, absolute, add_device, check_new_file, check_seed

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
How much a trained model says through z, and where: rate and distortion, mutual information, KL of each dimension and
active units, in nats per image. The mutual information is no more than the logarithm of the number of images, and takes
the densities of all pairs of them."""
_EPILOG = """\
examples:
  python -m fastvae diagnose runs/vae
  python -m fastvae diagnose runs/pixelvae --split valid --limit 200 --num-samples 16 --out runs/diagnosis.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder that 'fastvae train' made")
    parser.add_argument("--data", metavar="DATA", help="'digits' or a path (default: what the model was trained on)")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="which images (default: test)")
    parser.add_argument("--limit", type=int, default=1000, metavar="N", help="only the first N of them (default: 1000)")
    parser.add_argument(
        "--num-samples", type=int, default=64, metavar="M", help="samples of z for each image (default: 64)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the samples (default: 0)")
    parser.add_argument("--out", metavar="FILE.json", help="also write the figures here: a new file")
    parser.add_argument(
        "--weights", choices=("best", "last"), default="best", help="best on validation, or last (default: best)"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Diagnose and print; the exit code."""
    from fastvae.evaluation import diagnose

    from .problem import Problem, device_named, read_checkpoint

    if args.limit < 2:
        raise ValueError(f"--limit must be at least 2, got {args.limit}")
    if args.num_samples < 2:
        raise ValueError(f"--num-samples must be at least 2, got {args.num_samples}")
    check_seed(args.seed)
    if args.out is not None:
        check_new_file(args.out)
    device = device_named(args.device)
    model, options = read_checkpoint(args.checkpoint, device, args.weights)
    if options["model"] in EXACT:
        raise ValueError(f"diagnose is for models with latent variables; a {type(model).__name__} has none")
    if args.data is not None:
        options = options | {"data": absolute(args.data)}
    problem = Problem.from_options(options)
    problem.check_fits(model, args.checkpoint)
    images = problem.frozen(args.split)[: args.limit].to(device)
    pairs = min(4, args.num_samples)
    found = diagnose(model, images, args.num_samples, pairs, seed=args.seed, progress=True)
    print(found)
    if args.out is not None:
        about = {"checkpoint": str(args.checkpoint), "data": problem.data.name, "protocol": problem.data.protocol}
        with Path(args.out).open("x") as file:
            json.dump(about | {"split": args.split} | found.to_dict(), file, indent=1)
    return 0
