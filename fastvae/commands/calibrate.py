"""``fastvae calibrate``: predicted, reported and real errors of log p(x), on a model that is known exactly."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from .options import check_seed
from .table import print_table

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
Is the error bar of an importance-weighted log p(x) right? Evaluates probabilistic PCA, whose log p(x) is known, with
proposals that are too narrow (scale below 1) or too wide, and compares what theory predicts, what log_likelihood
reports and what happened over many replicates: effective sample size, standard error, bias, and the share of error bars
that hold the truth. Writes calibration.json and calibration.png into a new folder."""
_HEADER = ["c", "ESS", "predicted", "error", "predicted", "reported", "bias", "+-", "predicted", "reported"]
_HEADER += ["covered", "k-hat", "trusted", "covered then"]
_LEGEND = """\
error, bias: measured over the replicates against the exact log p(x). covered: error bars of 1.96 standard errors, less
the reported bias, that hold it; 95 % is right. trusted: replicates with ESS above 100 and k-hat below 0.5; few of
many are those that missed the tail of the weights, and their error bars hold the truth less often."""
_EPILOG = """\
examples:
  python -m fastvae calibrate
  python -m fastvae calibrate --num-samples 1000 --replicates 50 --scales 0.9 1.1 1.3 --out quick-look"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastvae-calibration"),
        metavar="FOLDER",
        help="new folder for report and picture (default: fastvae-calibration)",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=5000,
        metavar="M",
        help="importance samples of each evaluation (default: 5000)",
    )
    parser.add_argument(
        "--replicates", type=int, default=200, metavar="R", help="evaluations of each proposal (default: 200)"
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="C",
        help="standard deviations of the proposals, in units of the posterior's (default: 0.7 to 1.5)",
    )
    parser.add_argument(
        "--latent-size",
        type=int,
        default=50,
        metavar="D",
        help="size of z: weights vary more with more dimensions (default: 50)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of data and samples (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print and write; the exit code."""
    from fastvae import figures
    from fastvae.evaluation.calibration import calibrate

    from .calibration_figure import calibration_figure

    check_seed(args.seed)
    if args.out.exists():
        raise FileExistsError(f"--out {args.out} exists already; nothing was overwritten: choose a new name")
    scales = {} if args.scales is None else {"scales": sorted(args.scales)}
    calibration = calibrate(
        num_samples=args.num_samples,
        replicates=args.replicates,
        latent_size=args.latent_size,
        seed=args.seed,
        progress=True,
        **scales,
    )
    print(
        f"log p(x) in nats: {args.replicates} replicates with M = {args.num_samples} samples, latent size "
        f"{args.latent_size}, proposals of c times the posterior's scale"
    )
    print_table(_HEADER, [_cells(row) for row in calibration.rows])
    print(_LEGEND)
    args.out.mkdir(parents=True)
    with (args.out / "calibration.json").open("x") as file:
        json.dump(calibration.to_dict(), file, indent=1)
    figures.save(calibration_figure(calibration), args.out / "calibration.png")
    print(f"report and picture: {args.out}/")
    return 0


def _cells(row: Any) -> list[str]:
    return [
        f"{row.scale:g}",
        f"{row.ess:.0f}",
        f"{row.predicted.ess:.0f}",
        f"{row.measured_error:z.4f}",
        f"{row.predicted.std_error:z.4f}",
        f"{row.reported_error:z.4f}",
        f"{row.measured_bias:z.4f}",
        f"{row.bias_error:z.4f}",
        f"{row.predicted.bias:z.4f}",
        f"{row.reported_bias:z.4f}",
        f"{row.coverage:.1%}",
        f"{row.khat:.2f}",
        f"{row.trusted_share:.0%}",
        "-" if math.isnan(row.trusted_coverage) else f"{row.trusted_coverage:.1%}",
    ]
