"""``fastvae reproduce``: a published experiment from its recipe, by the commands train, evaluate and sample."""

import argparse
import contextlib
import io
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

import torch

from . import evaluate, sample, train
from .options import EXACT, absolute, add_device, check_seed
from .recipe import BUDGETS, Plan, Recipe, read_recipe, recipe_names

if TYPE_CHECKING:
    from torch import Tensor

    from fastvae.evaluation.peers import Peers

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
Repeat a published experiment from its recipe, a file in fastvae/recipes that names the paper, the protocol and the
options of train and evaluate. Writes into a new folder: config.json (what was asked for), log.txt (with the commands of
each part, which do the same alone), run (the checkpoint), evaluation.json, report.json (which compares with the
published figure) and pictures. After an interruption the same command with --resume goes on. Several processes share
the work under torchrun."""
_EPILOG = """\
examples:
  python -m fastvae reproduce iwae-table1 k=50 layers=1 --data mnist.npz --out runs/iwae50
  python -m fastvae reproduce iwae-table1 k=50 layers=1 --data mnist.npz --out runs/iwae50 --resume
  python -m fastvae reproduce pixelvae decoder=gated --data binarized_mnist_fixed.npz --out runs/pixelvae
  python -m fastvae reproduce pixelvae decoder=independent --data binarized.npz --out runs/vae --against runs/pixelvae
  python -m fastvae reproduce vampprior prior=normal --budget full --data binarized_mnist_fixed.npz --out runs/normal
  python -m fastvae reproduce gated-pixelcnn --out runs/digits
  torchrun --nproc-per-node 4 -m fastvae reproduce nade --budget full --data binarized.npz --out runs/nade"""
_DIGITS = "embedded digits, 8x8: a trial of the recipe; the published figure is of another data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    names = recipe_names()
    parser.description = f"{_DESCRIPTION}\n\nrecipes and their choices, the first value of each is the default:\n"
    parser.description += "\n".join(f"  {name}: {read_recipe(name).described()}" for name in names)
    parser.epilog = _EPILOG
    parser.add_argument("name", metavar="NAME", choices=names, help=f"the recipe: {', '.join(names)}")
    parser.add_argument("choices", metavar="CHOICE=VALUE", nargs="*", help="choices of the recipe, such as k=50")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where everything goes: a new name")
    parser.add_argument(
        "--data", default="digits", metavar="DATA", help="'digits' or a path, as for train (default: digits)"
    )
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        default="cpu",
        help="cpu: a short schedule, minutes on two cores; full: the published one, for a GPU (default: cpu)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of training and evaluation (default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")
    parser.add_argument(
        "--against",
        metavar="FOLDER",
        help="of another finished run on the same images: also print the mean difference, image by image, with its "
        "error; with --resume of a finished run, alone",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, draw and compare; the exit code."""
    from fastvae.evaluation.peers import OtherProcessFailed

    from .processes import first_process_first, together

    with together() as peers:
        try:
            config = first_process_first(peers, lambda: _prepared(args, peers))
        except OtherProcessFailed:
            return 0  # that one tells what went wrong
        with _logged(Path(args.out) / "log.txt", peers):
            try:
                _parts(Path(args.out), config, args.device, peers)
                if args.against is not None and peers.rank == 0:
                    print(_paired(Path(args.out), Path(args.against)))
            except KeyboardInterrupt as interrupt:
                where = f"{interrupt}".partition(";")[0] or "interrupted"
                again = f"{args.out} keeps what was done; go on with: {_command(args)} --resume"
                raise KeyboardInterrupt(f"{where}; {again}") from None
    return 0


def _prepared(args: argparse.Namespace, peers: "Peers") -> dict[str, Any]:
    """The config; the first process makes the folder."""
    recipe = read_recipe(args.name)
    check_seed(args.seed)
    if args.against is not None:
        _per_image(Path(args.against))
    config = _config(args, recipe, recipe.plan(args.choices, args.budget))
    if peers.rank == 0:
        _open_folder(Path(args.out), config, args.resume)
    return config


def _config(args: argparse.Namespace, recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """What decides the result, as JSON can hold it; errors of the options come before anything is written."""
    import fastvae.data

    from .options import with_defaults

    data = fastvae.data.load(args.data)
    # binary files stay as they are; the protocol of the published figure cannot be had from them
    binarize = "none" if data.num_levels == 2 else plan.train.get("binarize", "sample")
    train = plan.train | {"data": absolute(args.data), "binarize": binarize, "seed": args.seed}
    with_defaults(train)
    binarization = "fixed" if data.num_levels == 2 else {"none": "grey levels"}.get(binarize, binarize)
    return {
        "recipe": recipe.name,
        "choices": plan.choices,
        "budget": args.budget,
        "train": train,
        "evaluate": plan.evaluate | {"seed": args.seed},
        "paper": recipe.paper,
        "published": plan.published,
        "differs": _differs(recipe, data.event_shape, args.data, binarization),
    }


def _differs(recipe: Recipe, shape: tuple[int, ...], data: str, binarization: str) -> str | None:
    """Why the figure does not compare with the published one, as far as can be told from the data."""
    if data == "digits":
        return _DIGITS
    if list(shape) != recipe.event_shape:
        return f"images of {shape}, not of {tuple(recipe.event_shape)}: the published figure is of another data set"
    if binarization != recipe.binarization:
        return f"binarisation: {binarization}; the published figure has another protocol, {recipe.binarization}"
    return None


def _open_folder(folder: Path, config: Mapping[str, Any], resume: bool) -> None:
    file = folder / "config.json"
    if not resume:
        if folder.exists():
            raise ValueError(f"--out {folder} exists already; choose a new name, or add --resume to go on with its run")
        folder.mkdir(parents=True)
        with file.open("x") as stream:
            json.dump(config, stream, indent=1)
        return
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--resume: {folder} holds no run of 'fastvae reproduce': {error}") from error
    for name, ours in config.items():
        if stored.get(name) != ours:
            raise ValueError(
                f"{name} was {stored.get(name)} when {folder} was made, got {ours}: --resume takes the same command"
            )


def _parts(folder: Path, config: dict[str, Any], device: str, peers: "Peers") -> None:
    """Train, evaluate and draw, each unless it is done; then compare."""
    print(f"{config['recipe']} {_named(config['choices'])} ({config['budget']} budget): {config['paper']}")
    if config["differs"]:
        print(f"note: {config['differs']}")
    run_folder, evaluation = folder / "run", folder / "evaluation.json"
    # the first process says what is there: it alone writes
    here = torch.tensor([evaluation.exists(), (run_folder / "training.safetensors").exists()]).to(torch.uint8)
    evaluated, begun = map(bool, peers.gather(here)[0].tolist())
    if not evaluated:
        how = ["--resume"] if begun else _flags(config["train"])
        _call("train", train, "--out", str(run_folder), "--device", device, *how)
        peers.agree({})  # the checkpoint is complete
        _evaluate(folder, config, device, peers)
    if peers.rank == 0:
        _draw(folder, config, device)
        _report(folder, config)


def _evaluate(folder: Path, config: dict[str, Any], device: str, peers: "Peers") -> None:
    partial = folder / "evaluation.partial.json"
    extra = ["--plot", str(folder / "bound.png"), "--resume", str(folder / "importance")]
    if peers.rank == 0:
        for left in (partial, folder / "bound.png"):  # of an interrupted evaluation
            left.unlink(missing_ok=True)
    flags = [*_flags(config["evaluate"]), "--out", str(partial), "--device", device]
    _call("evaluate", evaluate, str(folder / "run"), *flags, *([] if config["train"]["model"] in EXACT else extra))
    if peers.rank == 0:
        partial.replace(folder / "evaluation.json")


def _draw(folder: Path, config: dict[str, Any], device: str) -> None:
    if (picture := folder / "samples.png").exists():
        return
    partial = folder / "samples.partial.png"
    partial.unlink(missing_ok=True)
    seed = str(config["train"]["seed"])
    _call("sample", sample, str(folder / "run"), "--out", str(partial), "--seed", seed, "--device", device)
    partial.replace(picture)


def _report(folder: Path, config: dict[str, Any]) -> None:
    figures = json.loads((folder / "evaluation.json").read_text())
    comparison = _comparison(config, figures)
    partial = folder / "report.partial.json"
    partial.write_text(json.dumps(config | {"figures": figures, "comparison": comparison}, indent=1))
    partial.replace(folder / "report.json")
    print(f"{comparison}\nreport and pictures: {folder}")


def _comparison(config: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Ours against the published figure in one line, with the protocol and M."""
    count = figures.get("importance samples")
    how = "exact" if count is None else f"M = {count}, +- {figures['Monte-Carlo error']:.2f} (samples)"
    spread = "evenly spread " if figures["evenly spread"] else ""
    if untrusted := figures.get("images not trusted"):
        how += f", a lower bound of log p: {untrusted} images not trusted"
    data_error = figures["data error"]
    name = "log P(levels)" if "log P(levels)" in figures else "log p(x)"
    how += ", a lower bound of log P: dequantised" if name == "log P(levels)" else ""
    ours = f"-{name} {-figures[name]:.2f} nats ({how}"
    ours += "" if data_error is None else f", +- {data_error:.2f} (data)"
    ours += f"; {figures['images']} {spread}test images of {figures['data']}; {figures['protocol']}; "
    ours += f"{config['budget']} budget)"
    if config["published"] is None:
        return f"{ours}; no figure was published for {_named(config['choices'])} in: {config['paper']}"
    does_not = f"; not comparable: {config['differs']}" if config["differs"] else ""
    return f"{ours}; published {config['published']:.2f} ({config['paper']}){does_not}"


def _per_image(folder: Path) -> tuple[dict[str, Any], "Tensor"]:
    """What an evaluation says of its images, and their log-probabilities (N,) in nats."""
    from fastvae.evaluation import LogLikelihood

    try:
        figures = json.loads((folder / "evaluation.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--against {folder} holds no finished run of 'fastvae reproduce': {error}") from error
    if "importance samples" not in figures:
        raise ValueError(f"--against needs importance samples; {folder} is exact and keeps no value for each image")
    found = LogLikelihood.load(folder / "importance" / "result.safetensors").log_prob.double()
    volume = figures.get("log P(levels)", figures["log p(x)"]) - figures["log p(x)"]
    return {name: figures[name] for name in ("data", "protocol", "split", "images", "evenly spread")}, found + volume


def _paired(ours: Path, theirs: Path) -> str:
    """The difference of two runs in one line."""
    (images, one), (others, two) = _per_image(ours), _per_image(theirs)
    if images != others:
        raise ValueError(f"--against {theirs} is of other images: {others}; {ours} is of {images}")
    gain = one - two
    error = float(gain.std()) / len(gain) ** 0.5
    return f"{ours} against {theirs}: log p higher by {float(gain.mean()):.2f} +- {error:.2f} nats (paired, images)"


def _call(name: str, module: ModuleType, *argv: str) -> None:
    """A command of ours, shown as it would be typed."""
    print(f"$ python -m fastvae {name} {shlex.join(argv)}", flush=True)
    parser = argparse.ArgumentParser(prog=f"python -m fastvae {name}")
    module.add_arguments(parser)
    module.run(parser.parse_args(list(argv)))


def _flags(options: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        values = [] if value is True else value if isinstance(value, list) else [value]  # True: a switch
        flags += [f"--{name.replace('_', '-')}", *map(str, values)]
    return flags


def _named(choices: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in choices.items())


def _command(args: argparse.Namespace) -> str:
    given = [args.name, *args.choices, "--data", args.data, "--budget", args.budget]
    return f"python -m fastvae reproduce {shlex.join([*given, '--seed', str(args.seed), '--out', args.out])}"


class _Tee(io.TextIOBase):
    """Writes to several streams."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()


@contextlib.contextmanager
def _logged(path: Path, peers: "Peers") -> Iterator[None]:
    """What the first process prints also goes to a file; a resumed run adds to it."""
    if peers.rank:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
        return
    with path.open("a") as log, contextlib.redirect_stdout(_Tee(sys.stdout, log)):
        yield
