"""``fastvae sample``: a picture of draws from a trained model, exact ones, not means."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_device, check_new_file, check_seed

if TYPE_CHECKING:
    from torch import Tensor

    from fastvae.sampling import Sampler

    from .complete import Partial

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
Draw images from a trained model and write them as a PNG. They are samples, not decoder means: of the prior and then of
the likelihood for a VAE; pixel after pixel for models with a PixelCNN, by the compiled sampler (exact, in far fewer
serial steps than pixels); by one scan over the pixels for NADE and for a PixelCNN in another order.

A PixelCNN can also complete images of which a part is known: each row of the picture is what is known, completions of
it and, if there is one, the original. Only where all known pixels come before the others in reading order (--keep top)
are these draws of p(unknown | known); else a pixel knows only what is known above and to its left."""
_EPILOG = """\
examples:
  python -m fastvae sample runs/vae --out samples.png
  python -m fastvae sample runs/pixelcnn --num 16 --seed 1 --verify --out samples.png
  python -m fastvae sample runs/pixelcnn --temperature 0.8 --out cold.png --plot-plan wavefront.png
  python -m fastvae sample runs/pixelcnn --complete test --keep top --out completed.png
  python -m fastvae sample runs/pixelcnn --complete mine.png --out completed.png"""
_PIXEL_OPTIONS = ("verify", "temperature", "top_k", "greedy", "complete", "keep", "plot_plan")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder that 'fastvae train' made")
    parser.add_argument("--out", required=True, metavar="FILE.png", help="the picture: a new file")
    parser.add_argument("--num", type=int, default=64, metavar="N", help="how many images (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed, the same images (default: 0)")
    parser.add_argument(
        "--weights", choices=("best", "last"), default="best", help="best on validation, or last (default: best)"
    )
    add_device(parser)
    pixel = parser.add_argument_group("models with a PixelCNN")
    pixel.add_argument("--verify", action="store_true", help="prove the samples exact by one parallel pass")
    pixel.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="divides logits and multiplies scales; below 1 more probable images than the model's own (default: 1)",
    )
    pixel.add_argument(
        "--top-k", type=int, metavar="K", help="categorical likelihood: draw from the K most probable levels"
    )
    pixel.add_argument("--greedy", action="store_true", help="the most probable value of each pixel given the earlier")
    pixel.add_argument(
        "--complete",
        metavar="SOURCE",
        help="complete images (pixelcnn alone): 'test' or 'valid', some images of what the model was trained on; "
        "FILE.npz with values (N, H, W) or (N, C, H, W) in the model's units and a boolean mask, True for known "
        "pixels; FILE.png, one image whose transparent pixels are not known",
    )
    pixel.add_argument(
        "--keep",
        choices=("top", "bottom", "left", "right"),
        help="the half that is known, for --complete without a mask (default: top, for test and valid)",
    )
    pixel.add_argument("--plot-plan", metavar="FILE.png", help="also draw which pixel is drawn at which step")


def run(args: argparse.Namespace) -> int:
    """Draw and write; the exit code."""
    from fastvae import figures
    from fastvae.models import OrderEnsemble

    from .complete import check_complete
    from .problem import check_finite, device_named, read_checkpoint

    if args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}")
    check_seed(args.seed)
    check_complete(args.complete, args.keep)
    _check_pictures(args)
    device = device_named(args.device)
    model, options = read_checkpoint(args.checkpoint, device, args.weights)
    if isinstance(model, OrderEnsemble) or options["model"] in ("vae", "iwae"):
        if given := [name for name in _PIXEL_OPTIONS if getattr(args, name) not in (None, False)]:
            raise ValueError(
                f"--{given[0].replace('_', '-')} is for models with a PixelCNN in raster order, not for a "
                f"{type(model).__name__}"
            )
        scans = isinstance(model, OrderEnsemble)
        samples = model.sample(args.num, seed=args.seed) if scans else _at_once(model, args.num, args.seed)
        columns = None
    elif args.complete is None:
        samples, columns = _pixel_by_pixel(model, args), None
    else:
        samples, columns = _completed(model, options, args)
    check_finite(samples, "the sample", args.checkpoint)
    figures.save(figures.image_grid(_unit_interval(model, samples, columns), columns=columns), args.out)
    print(f"{args.num} samples: {args.out}" if args.complete is None else f"completions: {args.out}")
    return 0


def _check_pictures(args: argparse.Namespace) -> None:
    for option, name in (("--out", args.out), ("--plot-plan", args.plot_plan)):
        if name is None:
            continue
        if Path(name).suffix.lower() != ".png":
            raise ValueError(f"{option} must end in .png, got {name}")
        check_new_file(name, option)
    if args.plot_plan is not None and Path(args.plot_plan).resolve() == Path(args.out).resolve():
        raise ValueError(f"--out and --plot-plan must be two files, got {args.out} for both")


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
    return _drawn(sampler, args.num, args, condition=z)


def _completed(model: Any, options: Any, args: argparse.Namespace) -> "tuple[Tensor, int]":
    """A picture for each place of the grid, and the columns."""
    import fastvae

    from .complete import completed_grid, read_partial

    if options["model"] != "pixelcnn":
        raise ValueError(
            f"--complete is for a pixelcnn: a {options['model']} would first need latents that fit what is known"
        )
    partial = read_partial(args.complete, args.keep, args.num, model, options)
    each = args.num // len(partial.values)
    sampler = fastvae.compile_sampler(model)
    observed = tuple(part.repeat_interleave(each, 0) for part in (partial.known, partial.values))
    drawn = _drawn(sampler, each * len(partial.values), args, partial, observed=observed)
    top = 1.0 if model.family.num_levels is None else model.family.num_levels - 1.0
    return completed_grid(partial, drawn.cpu().unflatten(0, (-1, each)), top)


def _drawn(
    sampler: "Sampler", num: int, args: argparse.Namespace, partial: "Partial | None" = None, **given: Any
) -> Any:
    from fastvae import figures

    how = {name: value for name in ("temperature", "top_k") if (value := getattr(args, name)) is not None}
    drawn = sampler(num, seed=args.seed, greedy=args.greedy, verify=args.verify, **how, **given)
    if args.verify:
        print(drawn.certificate)
    if args.plot_plan is not None and sampler.plan is not None:
        known = None if partial is None else partial.known.all(0).all(0)
        figures.save(figures.wavefront(sampler.plan.pixel_steps(), known), args.plot_plan)
        print(f"the plan: {args.plot_plan}")
    return drawn.samples


def _unit_interval(model: Any, samples: Any, columns: int | None) -> Any:
    if columns is not None:
        return samples  # of a completion: they are
    top = 1 if model.family.num_levels is None else model.family.num_levels - 1
    return (samples.float() / top).clamp(0, 1)
