"""The command that times models before and after: their own ones and those that a user names."""

import argparse
from pathlib import Path

import pytest

from fastvae.__main__ import main
from fastvae.acceleration import accelerate
from fastvae.commands.accelerate_styles import STYLES

MODEL = """
import torch
from torch import nn
from neighbour import WIDTH

class Masked(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight * self.mask, self.bias, padding=1)

def build():
    layer = Masked(1, WIDTH, 3)
    layer.mask = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    return nn.Sequential(layer, nn.Conv2d(WIDTH, 1, 3)), torch.rand(1, 1, 6, 6)

def frozen():
    model, x = build()
    return model.requires_grad_(False), (x,)

def named():
    model, x = build()
    return model, {"input": x}

def wrong():
    return build()[0]

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    (tmp_path / "my_model.py").write_text(MODEL)
    return tmp_path / "my_model.py"


def test_the_built_in_styles_are_swapped_as_they_should_be() -> None:
    swapped = {name: len(accelerate(build()[0]).swapped) for name, build in STYLES.items()}
    assert swapped == {
        "7x7 layers, mask in place": 3,
        "residual blocks 3x3": 6,
        "5x5, mask as attribute": 4,
        "5x5, weight norm": 4,
        "gated vertical stack 5x5": 4,
        "padded and shifted": 0,
    }


def test_prints_a_row_for_every_model(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [str(file), f"{file}:frozen", f"{file}:named"]
    assert main(["accelerate-report", *models, "--rounds", "3", "--layers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["model", "swapped"]
    for name, line in zip(models, lines[1:4], strict=True):
        cells = line.split()
        assert cells[:3] == [name, "1", "1"]
        assert (cells[-1] == "-") == name.endswith("frozen")  # nothing to train
        assert float(cells[3]) > 0
    assert lines.count("  0: 3x3, mask A, masked weight") == 3
    assert sum(line.startswith("  1: Conv2d, no mask") for line in lines) == 3


def test_a_function_of_a_module_is_found_by_name(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accelerate-report", str(file), "--rounds", "3"]) == 0  # its folder is on the path from here on
    assert main(["accelerate-report", "my_model:named", "--rounds", "3"]) == 0
    assert "my_model:named" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nowhere.py", "nowhere.py is not a file"),
        ("pixelcnn", "'pixelcnn' is no model; give FILE.py, FILE.py:FUNCTION or MODULE:FUNCTION"),
        ("no.such.module:build", "No module named 'no'"),
        ("{file}:paint", "has no function 'paint' that returns"),
        ("{file}:number", "has no function 'number' that returns"),
        ("{file}:wrong", "must return (model, example_input), got Sequential"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line(
    file: Path, model: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["accelerate-report", model.format(file=file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastvae accelerate-report: error: ")
    assert says in error
    assert error.count("\n") == 1


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accelerate-report", "--rounds", "2"]) == 2
    assert "--rounds must be at least 3, got 2" in capsys.readouterr().err


def test_the_examples_of_the_help_parse(capsys: pytest.CaptureFixture[str]) -> None:
    from fastvae.__main__ import _parser

    with pytest.raises(SystemExit):
        main(["accelerate-report", "--help"])
    prefix = "  python -m fastvae "
    examples = [line.removeprefix(prefix) for line in capsys.readouterr().out.splitlines() if line.startswith(prefix)]
    assert len(examples) == 2
    for example in examples:
        parsed = _parser(example.split()).parse_args(example.split())
        assert isinstance(parsed, argparse.Namespace)
        assert parsed.rounds == 9
