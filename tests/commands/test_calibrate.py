"""``fastvae calibrate``: a table, a report and a picture in a new folder, and clear refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvae.__main__ import main

pytest.importorskip("matplotlib")
SMALL = ["--num-samples", "60", "--replicates", "5", "--latent-size", "3"]


def test_writes_table_report_and_picture_and_nothing_twice(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "folder"
    assert main(["calibrate", *SMALL, "--scales", "1.2", "0.6", "1", "--out", str(out)]) == 0
    report = json.loads((out / "calibration.json").read_text())
    assert [row["scale"] for row in report["rows"]] == [0.6, 1.0, 1.2]
    assert (report["num_samples"], report["replicates"], report["latent_size"]) == (60, 5, 3)
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[:4] == ["c", "ESS", "predicted", "error"]
    assert [line.split()[0] for line in printed[2:5]] == ["0.6", "1", "1.2"]
    assert "-0.0000" not in printed[3]
    before = (out / "calibration.json").read_bytes()
    assert main(["calibrate", *SMALL, "--out", str(out)]) == 2
    assert "folder exists already; nothing was overwritten" in capsys.readouterr().err
    assert (out / "calibration.json").read_bytes() == before


def test_one_proposal_is_enough_for_a_picture(tmp_path: Path) -> None:
    for scale in ("1", "0.5"):
        assert main(["calibrate", *SMALL, "--scales", scale, "--out", str(tmp_path / scale)]) == 0


def test_the_picture_shows_the_limits_of_the_trust_rule() -> None:
    from fastvae.commands.calibration_figure import calibration_figure
    from fastvae.evaluation import calibrate
    from fastvae.evaluation.log_weights import TRUSTED_ESS, TRUSTED_KHAT, is_trusted

    figure = calibration_figure(calibrate([0.9, 1.2], num_samples=200, replicates=5, latent_size=3, progress=False))
    limits = {
        axes.get_title(): [line.get_ydata()[0] for line in axes.lines if line.get_ls() == ":"] for axes in figure.axes
    }
    assert limits["Effective sample size"] == [TRUSTED_ESS]
    assert limits["Diagnostics"] == [TRUSTED_KHAT]
    ess, khat = torch.tensor([TRUSTED_ESS, TRUSTED_ESS + 1.0]), torch.tensor([TRUSTED_KHAT - 0.01, TRUSTED_KHAT])
    assert is_trusted(ess[:, None], khat).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--num-samples", "1"], "num_samples must be at least 2, got 1"),
        (["--replicates", "0"], "replicates must be at least 2, got 0"),
        (["--latent-size", "0"], "latent_size must be at least 1, got 0"),
        (["--scales", "0"], "scales must be positive numbers, at least one, got [0.0]"),
        (["--seed", "-1"], "--seed must be in [0, 2^63), got -1"),
    ],
)
def test_bad_numbers_are_errors_before_any_work(argv: list[str], says: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["calibrate", *argv, "--out", str(tmp_path / "a")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
