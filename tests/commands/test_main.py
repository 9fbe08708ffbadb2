"""The command line as a whole: help, exit codes, errors in one line."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from fastvae.__main__ import main

COMMANDS = ("demo", "train", "evaluate", "sample", "reproduce", "calibrate", "diagnose", "figures")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["--help"])
    assert leave.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fastvae.__main__ import _parser

    with pytest.raises(SystemExit) as leave:
        main([command, "--help"])
    assert leave.value.code == 0
    text = capsys.readouterr().out
    subparsers = next(action for action in _parser([command])._actions if action.dest == "command")
    actions = subparsers.choices[command]._actions  # type: ignore[index, union-attr]
    assert len(actions) > 3
    for action in actions:
        assert action.help
        assert all(flag in text for flag in action.option_strings)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fastvae.__main__ import _parser

    with pytest.raises(SystemExit):
        main([command, "--help"])
    prefix = "  python -m fastvae "
    examples = [line for line in capsys.readouterr().out.splitlines() if line.startswith(prefix)]
    assert examples
    for line in examples:
        argv = line.removeprefix(prefix).split()
        assert _parser(argv).parse_args(argv).command == command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_default_of_every_option_that_has_one(command: str) -> None:
    from fastvae.__main__ import _parser

    subparsers = next(action for action in _parser([command])._actions if action.dest == "command")
    for action in subparsers.choices[command]._actions:  # type: ignore[index, union-attr]
        if action.option_strings and action.default not in (None, False, argparse.SUPPRESS):
            assert f"(default: {action.default})" in str(action.help), action.dest


@pytest.mark.parametrize("argv", [[], ["paint"], ["train"], ["sample", "--num", "many"]])
def test_misuse_ends_with_code_2_and_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(argv)
    assert leave.value.code == 2
    assert "usage: python -m fastvae" in capsys.readouterr().err


def test_an_error_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tmp_path / "nowhere"), "--out", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastvae sample: error: ")
    assert "nowhere is not a checkpoint" in error
    assert error.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is not a checkpoint"):
        main(["sample", str(tmp_path / "nowhere"), "--out", str(tmp_path / "a.png"), "--debug"])


def test_ctrl_c_ends_with_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from fastvae.commands import sample

    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "run", interrupted)
    assert main(["sample", "checkpoint", "--out", "a.png"]) == 130
    assert capsys.readouterr().err == "fastvae sample: interrupted\n"


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastvae", "evaluate", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("fastvae evaluate: error: nowhere is not a checkpoint")
    assert "Traceback" not in done.stderr
