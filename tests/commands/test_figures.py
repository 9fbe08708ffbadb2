"""``fastvae figures`` and ``fastvae diagnose`` with tiny budgets: tables, pictures, nothing overwritten."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvae.__main__ import main
from fastvae.commands import figure_collapse, figure_four_points, figure_orders

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def test_the_orders_are_tabled_and_drawn_and_nothing_is_overwritten(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(figure_orders.compute, channels=4, num_blocks=1)
    monkeypatch.setattr(figure_orders, "compute", small)
    out = tmp_path / "deeper" / "orders"
    argv = ["figures", "orders", "--epochs", "1", "--seed", "3", "--seeds", "2", "--out", str(out)]
    assert main(argv) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    report = json.loads((out / "orders.json").read_text())
    assert [row["order"] for row in report["rows"]] == ["raster", "s_curve", "hilbert", "random"]
    for row in report["rows"]:
        assert row["order"] in printed
        assert 10 < row["test"] < 64 * math.log(2) + 5
        assert sorted(row["path"]) == [[i, j] for i in range(8) for j in range(8)]
        assert row["test"] == pytest.approx(sum(row["test_of_seed"]) / 2)
        assert row["seed_error"] == pytest.approx(abs(row["test_of_seed"][0] - row["test_of_seed"][1]) / 2)
        assert row["difference"] == pytest.approx(row["test"] - report["rows"][0]["test"])
    assert report["seeds"] == [3, 4]
    assert report["rows"][0]["difference"] == 0
    before = (out / "orders.png").read_bytes()
    assert before.startswith(b"\x89PNG")
    assert main(argv) == 2
    assert "exists already; nothing was overwritten" in capsys.readouterr().err
    assert (out / "orders.png").read_bytes() == before


def test_the_four_points_have_their_kl_on_the_grid(capsys: Any) -> None:
    report = figure_four_points.compute(epochs=20, seed=0, cells=101)
    figure_four_points.show(report)
    assert "off the grid" in capsys.readouterr().out
    area = (10.0 / 101) ** 2
    for model in report.models:
        assert all(kl > 0 for kl in model.kl)
        assert model.outside < 1e-2
        torch.testing.assert_close(model.exact.exp().sum((1, 2)) * area, torch.ones(4, dtype=torch.float64))
    figure = figure_four_points.draw(report)
    assert len(figure.axes) == 5
    json.dumps(figure_four_points.as_json(report))


def test_kl_on_the_grid_is_the_gap_of_the_elbo() -> None:
    """log p(x) - ELBO by samples, where the grid takes no part in the ELBO."""
    from fastvae.models import VAE
    from fastvae.objectives import elbo

    torch.manual_seed(0)
    model, x = VAE((1, 2, 2), "bernoulli", 2, (8,)).double(), torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)
    with torch.no_grad():
        model.encoder.net[-1].weight.mul_(0.3)  # so that all of q is on the grid
        model.encoder.net[-1].bias.mul_(0.3)
    found = figure_four_points._on_grid("q", model, x, cells=201)
    assert found.outside < 1e-4
    with torch.no_grad():
        bound = elbo(model, x, num_samples=20_000)
    gap = torch.tensor(found.log_prob, dtype=torch.float64) - bound
    torch.testing.assert_close(torch.tensor(found.kl, dtype=torch.float64), gap, atol=0.01, rtol=0.0)


def test_collapse_is_diagnosed_for_each_depth_with_and_without_free_bits(capsys: Any) -> None:
    report = figure_collapse.compute(epochs=1, seed=0, num_seeds=2, depths=(0, 1))
    cases = [(depth, free, seed) for depth in (0, 1) for free in (False, True) for seed in (0, 1)]
    assert [(row.depth, row.free_bits > 0, row.seed) for row in report.rows] == cases
    for row in report.rows:
        assert row.kl == pytest.approx(sum(row.kl_per_dimension), rel=1e-5)
        assert row.elbo == -(row.kl + row.distortion)
    assert len({row.kl for row in report.rows}) == 8, "a seed makes a difference"
    figure_collapse.show(report)
    printed = capsys.readouterr().out
    assert f"{(report.rows[0].kl + report.rows[1].kl) / 2:.2f}" in printed
    assert f"{report.rows[0].kl:.2f} {report.rows[1].kl:.2f}" in printed
    assert len(figure_collapse.draw(report).axes) == 3
    json.dumps(figure_collapse.as_json(report))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--epochs 0", "--epochs must be at least 1, got 0"),
        ("--seed -1", "--seed must be in [0, 2^63)"),
        ("--seeds 0", "--seeds must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(argv: str, says: str, capsys: Any) -> None:
    assert main(["figures", "collapse", "--out", "not-made", *argv.split()]) == 2
    assert says in capsys.readouterr().err


def test_seeds_are_refused_where_there_is_one(capsys: Any) -> None:
    assert main(["figures", "four-points", "--out", "not-made", "--seeds", "2"]) == 2
    assert "--seeds does not apply to four-points" in capsys.readouterr().err


def test_a_mean_has_an_error_from_the_images_and_one_from_the_seeds() -> None:
    values = torch.tensor([[1.0, 3.0, 5.0], [2.0, 4.0, 12.0]])  # two seeds, three images
    mean, images, seeds = figure_orders._mean_and_errors(values)
    assert mean == pytest.approx(4.5)
    assert images == pytest.approx(torch.tensor([1.5, 3.5, 8.5]).std().item() / 3**0.5)
    assert seeds == pytest.approx(1.5)  # means 3 and 6
    assert math.isnan(figure_orders._mean_and_errors(values[:1])[2])


def test_the_field_of_view_that_the_table_names_is_the_decoders() -> None:
    """The last pixel of a wide image depends on pixels up to (field - 1) / 2 to the left, and on no other."""
    for depth in (1, 2):
        model = figure_collapse._model((1, 1, 32), depth)
        x = torch.zeros(1, 1, 1, 32, requires_grad=True)
        model(x, torch.zeros(1, figure_collapse.LATENT_SIZE))[0, 0, 0, -1].backward()
        assert x.grad is not None
        reach = 31 - int(x.grad[0, 0, 0].nonzero().min())
        assert reach == (figure_collapse.field_of_view(depth) - 1) // 2


def test_a_run_with_free_bits_and_warm_up_is_trained_resumed_and_diagnosed(tmp_path: Path, capsys: Any) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    argv = ["--binarize", "sample", "--latent-size", "3", "--hidden", "8", "--batch-size", "500"]
    argv += ["--beta", "0.5", "--warm-up", "3", "--free-bits", "0.1"]
    assert main(["train", "--out", str(whole), "--epochs", "3", *argv]) == 0, capsys.readouterr().err
    assert "no bound" in capsys.readouterr().out
    assert main(["train", "--out", str(run), "--epochs", "2", *argv]) == 0
    assert main(["train", "--resume", "--out", str(run), "--epochs", "3"]) == 0
    one, two = ((folder / "model.safetensors").read_bytes() for folder in (run, whole))
    assert one == two, "the warm-up goes on where it was"
    out = tmp_path / "diagnosis.json"
    capsys.readouterr()
    assert main(["diagnose", str(run), "--limit", "20", "--num-samples", "8", "--out", str(out)]) == 0
    assert "mutual information" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["num_points"] == 20
    assert len(found["kl_per_dimension"]) == 3
    assert main(["diagnose", str(run), "--limit", "20", "--out", str(out)]) == 2
    assert main(["train", "--out", str(tmp_path / "x"), *argv, "--max-mib", "1"]) == 2
    assert "--max-mib needs a plain bound" in capsys.readouterr().err
