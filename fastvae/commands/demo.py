"""``demo``: three expressive VAEs on real digits, from training to log p(x), exact samples and speed, in minutes."""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastvae
from fastvae import figures
from fastvae.data import Data, load
from fastvae.evaluation import active_units
from fastvae.models import VAE, PixelVAE
from fastvae.objectives import elbo, iwae
from fastvae.training import Interrupted, fit

from . import speed
from .options import check_seed
from .problem import Problem
from .table import print_table

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
The whole tour in some minutes, on scikit-learn's digits (8x8 pixels, no download): train a VAE with the ELBO, one with
the importance-weighted bound and a PixelVAE; evaluate log p(x) in nats per test image with its errors; draw exact
samples; measure the speed against plain code. Writes report.json and pictures into a new folder."""
_EPILOG = """\
examples:
  python -m fastvae demo
  python -m fastvae demo --epochs 0.1 --num-samples 500 --num-images 20 --out quick-look"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m fastvae demo``."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastvae-demo"),
        metavar="FOLDER",
        help="new folder for report and pictures (default: fastvae-demo)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the weights, the training and every draw (default: 0)"
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=5000,
        metavar="M",
        help="importance samples for each test image (default: 5000)",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        default=100,
        metavar="N",
        help="test images that log p(x) is evaluated for (default: 100)",
    )
    parser.add_argument(
        "--epochs",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="on the 100 epochs of each model, for a quick look (default: 1.0)",
    )


@dataclass
class System:
    """A model, the images as it sees them, and the way it is trained."""

    name: str
    problem: Problem
    model: VAE | PixelVAE
    bound: Callable[[Any, Tensor], Tensor]
    epochs: int


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, sample, measure; write the report and the pictures into a new folder."""
    if args.num_samples < 1 or args.num_images < 1 or not 0 < args.epochs < math.inf:
        raise ValueError(
            "--num-samples, --num-images and --epochs must be positive, got "
            f"{args.num_samples}, {args.num_images} and {args.epochs}"
        )
    check_seed(args.seed)
    if args.out.exists():
        raise FileExistsError(f"{args.out} exists already; choose another folder with --out")
    data = load("digits")
    args.out.mkdir(parents=True)  # before the minutes of training: it may be forbidden
    try:
        _tour(data, args)
    except BaseException as error:
        if not any(args.out.iterdir()):  # else the next run would say that it exists
            args.out.rmdir()
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt(f"{error.where}; nothing was saved") from None
        raise
    return 0


def _tour(data: Data, args: argparse.Namespace) -> None:
    started = time.perf_counter()
    print(data, flush=True)
    systems = build(Problem(data, "gaussian"), Problem(data, "categorical"), args)
    report: dict[str, Any] = {"data": repr(data), "environment": environment(), "systems": []}
    for system in systems:
        report["systems"].append(train_and_evaluate(system, args))
    report["sampling"] = draw_pictures(systems, args)
    print("Measuring speed against what one would write without fastvae ...", flush=True)
    importance = systems[1].model
    report["speed"] = [
        speed.sampling(systems[-1].model, args.seed),
        speed.evaluation(importance, systems[1].problem.frozen("test")[:4], args.num_samples),
        speed.masked_convolution(),
    ]
    report["seconds"] = time.perf_counter() - started
    show(report, args)
    with open(args.out / "report.json", "x") as file:
        json.dump(report, file, indent=1)
    print(f"{report['seconds']:.0f} seconds. Report and pictures: {args.out}/")


def build(continuous: Problem, levels: Problem, args: argparse.Namespace) -> list[System]:
    """The models, at the marginals of the training images where they can start there."""
    torch.manual_seed(args.seed)
    shape = levels.data.event_shape
    # few latent dimensions: 1,297 images overfit the proposal of a larger z, and then k-hat rejects the estimate
    vae, importance = (VAE(shape, continuous.family("vae"), 4, (200, 100), activation="elu") for _ in range(2))
    for model in (vae, importance):
        model.start_at_marginals(continuous.fresh(continuous.data.train))
    pixelvae = PixelVAE(shape, levels.family("pixelvae"), 4, channels=32, num_blocks=2, first_kernel_size=5)

    def epochs(number: int) -> int:
        return max(1, round(number * args.epochs))

    return [
        System("Gaussian VAE", continuous, vae, elbo, epochs(100)),
        System("Gaussian IWAE", continuous, importance, lambda model, x: iwae(model, x, num_samples=10), epochs(100)),
        System("PixelVAE", levels, pixelvae, elbo, epochs(100)),
    ]


def train_and_evaluate(system: System, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table. Nothing but training and validation images chooses the weights."""
    problem, model = system.problem, system.model
    print(f"{system.name}: training for {system.epochs} epochs", flush=True)
    started = time.perf_counter()
    fitted = fit(
        model,
        lambda model, levels: -system.bound(model, problem.fresh(levels)),
        problem.data.train_in_epoch,
        problem.frozen("valid"),
        valid_loss=lambda model, x: -system.bound(model, x),
        epochs=system.epochs,
        batch_size=64,
        learning_rate=lambda epoch: 1e-3 * (1 + math.cos(math.pi * epoch / system.epochs)),
        clip_norm=100.0,
        seed=args.seed,
    )
    trained = time.perf_counter()
    test = problem.frozen("test")[: args.num_images]
    result = fastvae.log_likelihood(test, model, num_samples=args.num_samples, seed=args.seed, progress=True)
    log_prob, volume = result.mean(), problem.log_volume
    return {
        "name": system.name,
        "elbo": float(result.elbo.mean()) + volume,
        "log_prob": log_prob.value + volume,
        "monte_carlo_error": log_prob.monte_carlo_error,
        "data_error": log_prob.data_error,
        "ess": float(result.ess.median()),
        "khat": float(result.khat.median()),
        "untrusted": log_prob.num_untrusted,
        "active_units": active_units(model, problem.frozen("valid")),
        "latent_size": model.latent_size,
        "bits_per_dim": problem.bits_per_dim(log_prob.value),
        "num_images": len(test),
        "num_samples": args.num_samples,
        "best_epoch": fitted.best_epoch,
        "train_seconds": trained - started,
        "evaluate_seconds": time.perf_counter() - trained,
    }


def draw_pictures(systems: list[System], args: argparse.Namespace) -> dict[str, Any]:
    """Samples of every model, certified for the PixelVAE, and reconstructions side by side."""
    data = systems[0].problem.data
    top = data.num_levels - 1
    sampler = fastvae.compile_sampler(systems[-1].model)
    print(sampler.plan, flush=True)
    rows = {"data": data.test[:12] / top}
    certificate = ""
    for system in systems:
        model = system.model
        torch.manual_seed(args.seed)
        with torch.no_grad():
            z = model.prior().sample((64,))
            posterior_mean = model.proposal(system.problem.frozen("test")[:12]).mean
            if isinstance(model, PixelVAE):
                drawn = sampler(64, seed=args.seed, condition=z, verify=True)
                certificate, images = str(drawn.certificate), drawn.samples / top
                again = sampler(12, seed=args.seed, condition=posterior_mean).samples / top
                rows[f"{system.name}, sample"] = again
            else:
                images = model.likelihood(z).sample()
                rows[f"{system.name}, mean"] = model.likelihood(posterior_mean).mean
        name = system.name.lower().replace(" ", "-")
        figures.save(
            figures.image_grid(images, title=f"{system.name}: samples", invert=True), args.out / f"samples-{name}.png"
        )
    title = "Test images and p(x | z) at the mean of q(z | x)"
    figures.save(figures.image_rows(rows, title=title, invert=True), args.out / "reconstructions.png")
    print(certificate, flush=True)
    return {"certificate": certificate, "plan": str(sampler.plan)}


def show(report: dict[str, Any], args: argparse.Namespace) -> None:
    """The two tables on standard output."""
    first = report["systems"][0]
    print(
        f"\nlog p(x) in nats, mean of {first['num_images']} test images, M = {first['num_samples']} importance samples"
    )
    header = ["model", "ELBO", "log p(x)", "+- samples", "+- data", "ESS", "k-hat", "active units", "bits/dim"]
    print_table(
        header,
        [
            [
                row["name"],
                f"{row['elbo']:.2f}",
                f"{row['log_prob']:.2f}",
                f"{row['monte_carlo_error']:.3f}" + ("*" if row["untrusted"] else ""),
                f"{row['data_error']:.2f}",
                f"{row['ess']:.0f}",
                f"{row['khat']:.2f}",
                f"{row['active_units']}/{row['latent_size']}",
                f"{row['bits_per_dim']:.3f}",
            ]
            for row in report["systems"]
        ],
    )
    print("Gaussian rows bound the log-probability of the 17 levels by uniform dequantisation; PixelVAE's is of them.")
    from fastvae.evaluation.log_weights import UNTRUSTED

    untrusted = ", ".join(f"{row['name']} {row['untrusted']}" for row in report["systems"] if row["untrusted"])
    if untrusted:
        print(f"* images with {UNTRUSTED}, whose error and bias are larger than shown: {untrusted}")
    print("\nSpeed, side by side on this machine")
    print_table(
        ["what", "against", "fastvae", "baseline", "times faster"],
        [
            [row["what"], row["against"], f"{row['ours']:.3g} s", f"{row['baseline']:.3g} s", f"{row['ratio']:.1f}"]
            for row in report["speed"]
        ],
    )


def environment() -> dict[str, Any]:
    """What the figures were measured with."""
    return {
        "fastvae": fastvae.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
