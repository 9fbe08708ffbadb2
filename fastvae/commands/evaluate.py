"""``fastvae evaluate``: log-likelihood of test images, with its errors and the diagnostics that judge them."""

import argparse
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import EXACT, absolute, add_device, check_new_file, check_seed

if TYPE_CHECKING:
    from torch import Tensor

    from fastvae.evaluation import LogLikelihood
    from fastvae.evaluation.peers import Peers

    from .problem import Problem

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
Log-likelihood of the test images under a trained model, in nats per image. For models with latent variables it is
estimated with importance samples: the table shows the Monte-Carlo error (of the samples) apart from the data error (of
the choice of images), the effective sample size and the k-hat diagnostic (below 0.5 the errors can be trusted). The
log-likelihood of NADE and the PixelCNNs is exact.

An evaluation that was interrupted goes on when the same command is given again. Several processes share the work under
torchrun, and any number of them gives the same figures: on CUDA each has a device of its own; on the CPU torchrun gives
each one thread, or as many as OMP_NUM_THREADS says."""
_EPILOG = """\
examples:
  python -m fastvae evaluate runs/vae
  python -m fastvae evaluate runs/vae --num-samples 1000 --limit 100 --out runs/vae-report.json
  python -m fastvae evaluate runs/vae --refine 100
  python -m fastvae evaluate runs/vae --num-samples 100000 --resume runs/vae-state --plot runs/vae-bound.png
  torchrun --nproc-per-node 4 -m fastvae evaluate runs/vae --num-samples 100000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder that 'fastvae train' made")
    parser.add_argument("--data", metavar="DATA", help="'digits' or a path (default: what the model was trained on)")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="which images (default: test)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N of them (default: all)")
    parser.add_argument(
        "--spread",
        action="store_true",
        help="the N images of --limit evenly spaced over the set, not the first: the test images of Larochelle's "
        "binarised MNIST are sorted, and the first N are no sample of them",
    )
    parser.add_argument(
        "--num-samples", type=int, default=5000, metavar="M", help="importance samples for each image (default: 5000)"
    )
    parser.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="STEPS",
        help="first fit the proposal to each image in so many steps, each as costly as 24 samples; 100 to 300 where "
        "ESS and k-hat are bad (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the importance samples (default: 0)")
    parser.add_argument(
        "--weights", choices=("best", "last"), default="best", help="best on validation, or last (default: best)"
    )
    parser.add_argument("--out", metavar="FILE", help="also write the figures as JSON to a new file")
    parser.add_argument(
        "--plot", metavar="FILE", help="also draw the bound over the number of samples and the ESS to a new PNG"
    )
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        help="keep what is done in FOLDER, for the same command by any number of processes to go on from there, and in "
        "the end the whole as result.safetensors for LogLikelihood.load (default: a folder in CHECKPOINT, removed when "
        "all is done)",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print and perhaps write a report; the exit code."""
    from fastvae.evaluation.peers import OtherProcessFailed

    from .processes import first_process_first, together

    with together() as peers:
        try:
            job = first_process_first(peers, lambda: _prepared(args, peers))
            if job.states is not None:
                peers.advice = f"; {job.states} keeps what was done: the same command goes on from there"
            figures = (_exact if job.options["model"] in EXACT else _estimated)(job, args, peers)
        except OtherProcessFailed:
            return 0  # that one tells what went wrong
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(str(interrupt) or f"interrupted{peers.advice}") from None
        if peers.rank == 0:
            _report(job, args, figures)
    return 0


@dataclass(frozen=True)
class _Job:
    """What is to be evaluated, and the folder for the states of its parts, if any are kept."""

    problem: "Problem"
    model: Any
    options: dict[str, Any]
    images: "Tensor"
    states: Path | None


def _prepared(args: argparse.Namespace, peers: "Peers") -> _Job:
    from .problem import Problem, read_checkpoint
    from .processes import device_of

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {args.limit}")
    if not 1 <= args.num_samples < 2**32:
        raise ValueError(f"--num-samples must be between 1 and 2^32 - 1, got {args.num_samples}")
    if not 0 <= args.refine < 2**29:
        raise ValueError(f"--refine must be between 0 and 2^29 - 1, got {args.refine}")
    check_seed(args.seed)
    for name in ("out", "plot"):
        if (path := getattr(args, name)) is not None and peers.rank == 0:
            check_new_file(path, f"--{name}")
    device = device_of(peers, args.device)
    model, options = read_checkpoint(args.checkpoint, device, args.weights)
    if options["model"] in EXACT and (args.plot, args.resume) != (None, None):
        raise ValueError(
            f"--plot and --resume are of importance samples; the log-likelihood of a {type(model).__name__} is exact"
        )
    if args.data is not None:
        options = options | {"data": absolute(args.data)}
    problem = Problem.from_options(options)
    problem.check_fits(model, args.checkpoint)
    images = _chosen(problem.frozen(args.split), args.limit, args.spread).to(device)
    states = None if options["model"] in EXACT else _states(args, model, images)
    return _Job(problem, model, options, images, states)


def _chosen(images: "Tensor", limit: int | None, spread: bool) -> "Tensor":
    """(N, C, H, W): all, the first ``limit``, or so many at equal distances."""
    if limit is None or limit >= len(images) or not spread:
        return images[:limit]
    return images[[number * len(images) // limit for number in range(limit)]]


def _states(args: argparse.Namespace, model: Any, images: "Tensor") -> Path | None:
    """By default another folder for every evaluation of the model, where one can be made."""
    from fastvae.evaluation.resume import fingerprint

    if args.resume is not None:
        return Path(args.resume)
    if not os.access(args.checkpoint, os.W_OK):
        return None
    same = fingerprint([model, images])[:16]
    return Path(args.checkpoint) / f"evaluation-{same}-{args.num_samples}-{args.refine}-{args.seed}"


def _report(job: _Job, args: argparse.Namespace, figures: dict[str, Any]) -> None:
    problem = job.problem
    dequantised = problem.likelihood == "gaussian"
    if dequantised:
        figures["log P(levels)"] = figures["log p(x)"] + problem.log_volume
    figures["bits per dim"] = problem.bits_per_dim(figures["log p(x)"])
    report: dict[str, Any] = {
        "checkpoint": str(args.checkpoint),
        "model": job.options["model"],
        "likelihood": problem.likelihood,
        "data": problem.data.name,
        "protocol": problem.data.protocol,
        "split": args.split,
        "images": len(job.images),
        "evenly spread": args.spread and args.limit is not None,
        **figures,
    }
    print(_table(report, dequantised))
    if args.out is not None:
        with Path(args.out).open("x") as file:
            json.dump({name: _as_json(value) for name, value in report.items()}, file, indent=1)


def _exact(job: _Job, args: argparse.Namespace, peers: "Peers") -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    from .problem import check_finite

    images = job.images
    shares = torch.arange(len(images), device=images.device).tensor_split(peers.size)
    log_prob = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    with torch.no_grad():
        for some in tqdm(shares[peers.rank].split(100), desc="log p(x)", unit="batch", disable=peers.rank > 0):
            log_prob[some] = job.model.log_prob(images[some]).double()
    log_prob = torch.cat([part[some] for part, some in zip(peers.gather(log_prob), shares, strict=True)])
    check_finite(log_prob, "log p(x)", args.checkpoint)
    spread = float(log_prob.std()) if len(images) > 1 else float("nan")
    return {"log p(x)": float(log_prob.mean()), "data error": spread / len(images) ** 0.5}


def _estimated(job: _Job, args: argparse.Namespace, peers: "Peers") -> dict[str, Any]:
    from fastvae.evaluation import log_likelihood_distributed
    from fastvae.evaluation.refine import NUM_SAMPLES

    from .problem import check_finite

    model, images = job.model, job.images
    steps = f" after {args.refine:,} refining steps" if args.refine else ""
    rows = len(images) * (args.num_samples + args.refine * NUM_SAMPLES)
    if peers.rank == 0:
        print(
            f"{len(images):,} images x {args.num_samples:,} importance samples{steps}: {rows:,} rows "
            "through the decoder; --limit and --num-samples make it less",
            file=sys.stderr,
        )
    result = log_likelihood_distributed(
        images,
        model,
        num_samples=args.num_samples,
        refine=args.refine,
        seed=args.seed,
        progress=True,
        checkpoint=job.states,
    )
    check_finite(result.log_prob, "log p(x)", args.checkpoint)
    return _figures(result, job, args) if peers.rank == 0 else {}


def _figures(result: "LogLikelihood", job: _Job, args: argparse.Namespace) -> dict[str, Any]:
    """Also draws them, and keeps or removes the states."""
    from fastvae.evaluation import active_units

    if args.plot is not None:
        result.plot(args.plot)
    if args.resume is not None:
        result.save(Path(args.resume) / "result.safetensors", overwrite=True)
    elif job.states is not None:
        shutil.rmtree(job.states, ignore_errors=True)
    mean, jackknife = result.mean(), result.jackknife
    return {
        "importance samples": args.num_samples,
        "refining steps": args.refine,
        "seed": args.seed,
        "ELBO": float(result.elbo.mean()),
        "log p(x)": mean.value,
        "Monte-Carlo error": mean.monte_carlo_error,
        "data error": mean.data_error,
        "jackknife": float(jackknife.log_prob.mean()),
        "jackknife error": jackknife.mean_std_error,
        "curve": result.curve,
        "ESS, median": float(result.ess.median()),
        "ESS, smallest": float(result.ess.min()),
        "k-hat, median": float(result.khat.median()),
        "images not trusted": mean.num_untrusted,
        "active units": active_units(job.model, job.images) if len(job.images) > 1 else None,
        "latent size": job.model.latent_size,
    }


def _as_json(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no nan


def _table(report: dict[str, Any], dequantised: bool) -> str:
    """The report line by line, with units."""
    from fastvae.evaluation.log_weights import UNTRUSTED

    density = " (of the dequantised values: a density)" if dequantised else ""
    notes = {
        "ELBO": f"nats{density}",
        "log p(x)": f"nats{density}" if "ELBO" in report else f"nats, exact{density}",
        "Monte-Carlo error": "nats, of the mean, from the samples",
        "data error": "nats, of the mean, from the choice of images",
        "jackknife": "nats, corrected for the bias; unknown unless all images are trusted",
        "jackknife error": "nats, of the mean, from the samples",
        "curve": "nats (samples)",
        "images not trusted": f"{UNTRUSTED}: log p(x) may be too low, its error larger than shown",
        "active units": f"of {report.get('latent size')}",
        "log P(levels)": "nats, a lower bound: dequantised, with one draw of the noise for each image",
        "bits per dim": "an upper bound: dequantised" if dequantised else "",
    }
    width = max(map(len, report))
    lines = []
    for name, value in report.items():
        if name == "latent size":
            continue
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        lines.append(f"{name:<{width}}  {shown}  {notes.get(name, '')}".rstrip())
    return "\n".join(lines)
