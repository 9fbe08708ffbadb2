"""The command line: ``python -m fastvae demo | train | evaluate | sample | reproduce | ...``."""

import argparse
import importlib
import sys
from collections.abc import Sequence

__all__ = ["main"]

_COMMANDS = {
    "demo": "the whole tour on scikit-learn's digits: train, evaluate, sample, compare",
    "train": "train a model and keep a checkpoint",
    "evaluate": "log-likelihood of test images with its errors",
    "sample": "a picture of exact samples",
    "diagnose": "posterior collapse, measured: rate, distortion, mutual information, KL of each dimension of z",
    "figures": "three experiments of the literature as tables and pictures: collapse, four-points, orders",
    "reproduce": "a published experiment from its recipe, compared with the published figure",
    "calibrate": "are the errors of log p(x) right? predicted against measured on a model that is known exactly",
    "accelerate-report": "what fastvae.accelerate brings to a model, measured on the spot",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 2 after an error and 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser(argv).parse_args(argv)
    try:
        return importlib.import_module(_module(args.command)).run(args)
    except KeyboardInterrupt as interrupt:
        print(f"fastvae {args.command}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        if args.debug:
            raise
        line = " ".join(str(error).split())
        print(f"fastvae {args.command}: error: {line}", file=sys.stderr)
        return 2


def _module(command: str) -> str:
    return f"fastvae.commands.{command.replace('-', '_')}"


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastvae",
        description="Expressive VAEs: train, evaluate with thousands of importance samples, sample exactly and fast.",
        epilog="python -m fastvae COMMAND --help tells everything about a command.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        command = subparsers.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if argv[:1] == [name]:  # only the command that runs is imported
            importlib.import_module(_module(name)).add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
