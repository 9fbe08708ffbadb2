"""``fastvae accelerate-report``: what one line brings to a model, measured on the spot."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
Times models before and after fastvae.accelerate(model): a forward without gradients, and a training step of Adam.
Outputs and gradients are compared first; a model that would not compute the same is an error, not a row."""
_EPILOG = """\
A model is FILE.py, FILE.py:FUNCTION or MODULE:FUNCTION. The function, 'build' if none is named, takes no arguments and
returns (model, example_input); example_input is a tensor, a tuple of arguments or a dict of named ones.

examples:
  python -m fastvae accelerate-report
  python -m fastvae accelerate-report my_pixelcnn.py package.models:small --layers"""

Build = Callable[[], tuple[Any, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="models to time (default: one in each of six styles of public code)"
    )
    parser.add_argument("--layers", action="store_true", help="also list what was swapped and what was not, and why")
    parser.add_argument(
        "--rounds", type=int, default=9, metavar="R", help="interleaved pairs of timings for each figure (default: 9)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit code."""
    from tqdm import tqdm

    from .accelerate_styles import STYLES
    from .table import print_table

    if args.rounds < 3:
        raise ValueError(f"--rounds must be at least 3, got {args.rounds}")
    builders: dict[str, Build] = {name: _builder(name) for name in args.models} or dict(STYLES)
    rows, reports = [], {}
    for name, build in tqdm(builders.items(), disable=None, leave=False):
        reports[name], figures = _measure(name, build, args.rounds)
        rows.append([name, str(len(reports[name].swapped)), str(len(reports[name].skipped)), *figures])
    header = ["model", "swapped", "left", "forward ms", "after", "times faster", "step ms", "after", "times faster"]
    print_table(header, rows)
    if args.layers:
        for name, report in reports.items():
            print(f"\n{name}: {report}")
    return 0


def _builder(name: str) -> Build:
    source, _, function = name.rpartition(":") if ":" in name else (name, "", "build")
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"{source} is not a file; give FILE.py, FILE.py:FUNCTION or MODULE:FUNCTION")
        sys.path.insert(0, str(path.parent.resolve()))  # a model's file may import its neighbours
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{source} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
    elif ":" in name:
        module = importlib.import_module(source)
    else:
        raise ValueError(f"{name!r} is no model; give FILE.py, FILE.py:FUNCTION or MODULE:FUNCTION")
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{source} has no function {function!r} that returns (model, example_input)")
    return getattr(module, function)


def _measure(name: str, build: Build, rounds: int) -> tuple[Any, list[str]]:
    import torch

    import fastvae

    (before, example), (after, _) = _built(name, build), _built(name, build)
    report = fastvae.accelerate(after, example)
    passes = [_forward, _training_step] if any(p.requires_grad for p in before.parameters()) else [_forward]
    figures: list[str] = []
    for make in passes:
        with torch.random.fork_rng(devices=[]):
            figures += _timed(make(after, example), make(before, example), rounds)
    return report, figures + ["-"] * (6 - len(figures))


def _timed(after: Callable[[], Any], before: Callable[[], Any], rounds: int) -> list[str]:
    from fastvae.timing import interleaved

    pairs = interleaved(after, before, rounds=rounds)
    quartiles = f"[{pairs['ratio_q1']:.2f}, {pairs['ratio_q3']:.2f}]"
    return [
        f"{1e3 * pairs['baseline_s']:.2f}",
        f"{1e3 * pairs['candidate_s']:.2f}",
        f"{pairs['ratio']:.2f} {quartiles}",
    ]


def _built(name: str, build: Build) -> tuple[Any, Any]:
    import torch
    from torch import nn

    torch.manual_seed(0)
    made = build()
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
        raise TypeError(f"{name} must return (model, example_input), got {type(made).__name__}")
    return made


def _forward(model: Any, example: Any) -> Callable[[], Any]:
    import torch

    def call() -> None:
        with torch.no_grad():
            _call(model, example)

    return call


def _training_step(model: Any, example: Any) -> Callable[[], Any]:
    import torch
    from torch.utils._pytree import tree_flatten

    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def call() -> None:
        optimiser.zero_grad()
        outputs = [t for t in tree_flatten(_call(model, example))[0] if isinstance(t, torch.Tensor) and t.requires_grad]
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        optimiser.step()

    return call


def _call(model: Any, example: Any) -> Any:
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)
