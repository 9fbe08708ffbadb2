"""The demo from end to end at a small size: report, pictures, certificate, and no overwriting."""

import json
from pathlib import Path

import pytest

from fastvae.__main__ import main

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
