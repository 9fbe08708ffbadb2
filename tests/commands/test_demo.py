"""The demo from end to end at a small size: report, pictures, certificate, and no overwriting."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from fastvae.__main__ import main
from fastvae.commands import demo
from fastvae.training import Interrupted

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_the_demo_trains_evaluates_samples_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    options = ["--epochs", "0.03", "--num-samples", "300", "--num-images", "5"]
    assert main(["demo", "--out", str(out), *options]) == 0
    report = json.loads((out / "report.json").read_text())
    for row in report["systems"]:
        assert row["log_prob"] > row["elbo"], "more samples tighten the bound"
        assert row["num_samples"] == 300
        assert 0.0 < row["ess"] <= 300
    assert report["sampling"]["certificate"].startswith("exact")
    assert [row["ratio"] > 0 for row in report["speed"]] == [True] * 3
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {
        "reconstructions.png",
        "samples-gaussian-vae.png",
        "samples-gaussian-iwae.png",
        "samples-pixelvae.png",
    }
    printed = capsys.readouterr().out
    assert "PixelVAE" in printed
    assert "times faster" in printed

    before = (out / "report.json").read_bytes()
    assert main(["demo", "--out", str(out), *options]) == 2
    assert "exists already; choose another folder with --out" in capsys.readouterr().err
    assert (out / "report.json").read_bytes() == before


@pytest.mark.parametrize("option", ["--num-samples", "--num-images", "--epochs"])
def test_bad_numbers_are_errors_before_any_work(option: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), option, "0"]) == 2
    assert "must be positive, got" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808", "99999999999999999999"])
def test_a_seed_out_of_range_leaves_no_folder(seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--seed", seed]) == 2
    captured = capsys.readouterr()
    assert f"--seed must be in [0, 2^63), got {seed}" in captured.err
    assert captured.out == ""
    assert not out.exists()


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "fastvae demo: interrupted\n"),
        (Interrupted("interrupted in epoch 2", "x"), 130, "fastvae demo: interrupted in epoch 2; nothing was saved\n"),
        (RuntimeError("the loss became nan"), 2, "fastvae demo: error: the loss became nan\n"),
    ],
)
def test_a_run_that_fails_before_its_first_file_leaves_no_folder(
    failure: BaseException, code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "demo"

    def fails(*args: object) -> None:
        assert out.is_dir(), "made before the minutes of training"
        raise failure

    monkeypatch.setattr(demo, "train_and_evaluate", fails)
    assert main(["demo", "--out", str(out)]) == code
    assert capsys.readouterr().err == says
    assert not out.exists()


def test_pictures_stay_if_a_later_part_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(systems: object, args: argparse.Namespace) -> None:
        (args.out / "samples.png").write_text("a picture")
        raise RuntimeError("no space left")

    monkeypatch.setattr(demo, "train_and_evaluate", lambda *args: {})
    monkeypatch.setattr(demo, "draw_pictures", fails)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["samples.png"]
