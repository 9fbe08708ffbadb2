"""``fastvae sample``: a picture of draws from a trained model, exact ones, not means."""

import argparse
from pathlib import Path
from typing import Any

from .options import add_device, check_new_file, check_seed

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
Draw images from a trained model and write them as a PNG. They are samples, not decoder means: of the prior and then of
the likelihood for a VAE; pixel after pixel for models with a PixelCNN, by the compiled sampler (exact, in far fewer
serial steps than pixels); by one scan over the pixels for NADE and for a PixelCNN in another order."""
_EPILOG = """\
examples:
  python -m fastvae sample runs/vae --out samples.png
  python -m fastvae sample runs/pixelcnn --num 16 --seed 1 --verify --out samples.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder that 'fastvae train' made")
    parser.add_argument("--out", required=True, metavar="FILE.png", help="the picture: a new file")
    parser.add_argument("--num", type=int, default=64, metavar="N", help="how many images (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed, the same images (default: 0)")
    parser.add_argument(
        "--verify", action="store_true", help="models with a PixelCNN: prove the samples exact by one parallel pass"
    )
    parser.add_argument(
        "--weights", choices=("best", "last"), default="best", help="best on validation, or last (default: best)"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Draw and write; the exit code."""
    from fastvae import figures
    from fastvae.models import OrderEnsemble

    from .problem import check_finite, device_named, read_checkpoint

    out = Path(args.out)
    if args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}")
    check_seed(args.seed)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {out}")
    check_new_file(args.out)
    device = device_named(args.device)
    model, options = read_checkpoint(args.checkpoint, device, args.weights)
    if isinstance(model, OrderEnsemble) or options["model"] in ("vae", "iwae"):
        if args.verify:
            raise ValueError(
                f"--verify is for models with a PixelCNN in raster order; a {type(model).__name__} has no certificate"
            )
        scans = isinstance(model, OrderEnsemble)
        samples = model.sample(args.num, seed=args.seed) if scans else _at_once(model, args.num, args.seed)
    else:
        samples = _pixel_by_pixel(model, args)
    check_finite(samples, "the sample", args.checkpoint)
    figures.save(figures.image_grid(_unit_interval(model, samples)), out)
    print(f"{args.num} samples: {out}")
    return 0


def _latents(model: Any, num: int, seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    return model.prior().sample((num,))


def _at_once(model: Any, num: int, seed: int) -> Any:
    import torch

    with torch.no_grad():
        latents = _latents(model, num, seed)
        return torch.cat([model.likelihood(z).sample() for z in latents.split(100)])  # bounds the memory


def _pixel_by_pixel(model: Any, args: argparse.Namespace) -> Any:
    import torch

    import fastvae

    with torch.no_grad():
        z = _latents(model, args.num, args.seed) if hasattr(model, "prior") else None
    sampler = fastvae.compile_sampler(model, example_condition=z)
    print(sampler.plan)
    drawn = sampler(args.num, seed=args.seed, condition=z, verify=args.verify)
    if args.verify:
        print(drawn.certificate)
    return drawn.samples


def _unit_interval(model: Any, samples: Any) -> Any:
    top = 1 if model.family.num_levels is None else model.family.num_levels - 1
    return (samples.float() / top).clamp(0, 1)
