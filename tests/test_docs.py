"""The tables of the documentation: every name exists, every command is one that the command line takes."""

import argparse
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import fastvae
from fastvae.commands.options import TRAINING, with_defaults

DOCS = Path(__file__).parent.parent / "docs"
COMMANDS = ("train", "evaluate", "sample", "diagnose", "figures", "accelerate-report", "reproduce")


def rows(page: str) -> list[list[str]]:
    """The cells of the first table of a page."""
    lines = (DOCS / page).read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    table = []
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return table


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"fastvae.commands.{words[0].replace('-', '_')}").add_arguments(parser)
    return parser.parse_args(words[1:])


SYSTEMS = rows("systems.md")
LINES = [text for row in SYSTEMS for text in code(row[3]) if text.split()[0] in COMMANDS]


def test_there_is_a_row_for_each_system_with_a_command() -> None:
    assert [int(row[0]) for row in SYSTEMS] == list(range(1, 18))
    assert all(code(row[3])[0].split()[0] in COMMANDS for row in SYSTEMS)


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_a_system_is_accepted(line: str) -> None:
    args = parsed(shlex.split(line))
    if line.startswith("train"):
        with_defaults({name: getattr(args, name) for name in TRAINING})


def test_every_function_that_is_named_exists() -> None:
    named = [text for row in SYSTEMS for text in code(row[2])] + [
        text for row in rows("papers.md") for text in code(row[2])
    ]
    for text in named:
        words = text.split("(")[0].split()
        if words[0] in COMMANDS:
            continue
        found: Any = fastvae.distributions if words[0] in fastvae.distributions.__all__ else fastvae
        for part in words[0].split("."):
            found = getattr(found, part) if hasattr(found, part) else getattr(fastvae.evaluation, part)
