"""The examples run, with less work, and say what they promise."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_faster_layers(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "faster_layers.py"))["main"](batch=1, rounds=3)
    said = capsys.readouterr().out
    assert "swapped 5, verified on the example" in said
    assert "times faster than before" in said


def test_evaluate_your_vae(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "evaluate_your_vae.py"))["main"](epochs=1, num_samples=200, images=8)
    said = capsys.readouterr().out
    assert "LogLikelihood of 8 datapoints, 200 samples each" in said
    assert "after fitting the proposal to each image" in said


def test_sample_your_pixelcnn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "samples.png"
    runpy.run_path(str(EXAMPLES / "sample_your_pixelcnn.py"))["main"](epochs=1, num_samples=8, out=str(out))
    said = capsys.readouterr().out
    assert "equal to one pass per pixel: True" in said
    assert "upper halves completed" in said
    assert out.exists()
