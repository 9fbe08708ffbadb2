"""``fastvae evaluate``: the figures are those of the library, the report is complete, nothing is overwritten."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import fastvae
from fastvae import checkpoint, models
from fastvae.__main__ import main
from fastvae.commands.problem import CLASSES, Problem
from fastvae.evaluation import LogLikelihood, log_likelihood_distributed

SMALL = {
    "vae": "--latent-size 3 --hidden 8 --likelihood gaussian",
    "iwae": "--latent-size 3 --hidden 8 --binarize sample",
    "pixelcnn": "--channels 4 --num-blocks 1 --first-kernel-size 3",
    "pixelvae": "--latent-size 3 --hidden 8 --channels 4 --num-blocks 1 --first-kernel-size 3",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of every model on small images of 5 levels."""
    folder, random = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    images = {f"x_{part}": random.integers(0, 5, (30, 4, 5), dtype=np.uint8) for part in ("train", "test")}
    np.savez(folder / "data.npz", **images, num_levels=5)
    np.savez(folder / "wide.npz", **{key: value.repeat(2, axis=2) for key, value in images.items()}, num_levels=5)
    np.savez(folder / "deep.npz", **images, num_levels=9)
    for model, options in SMALL.items():
        argv = ["train", "--model", model, "--data", str(folder / "data.npz"), "--out", str(folder / model)]
        assert main([*argv, "--epochs", "3", *options.split()]) == 0
    return folder


def evaluated(runs: Path, model: str, out: Path, *argv: str) -> dict[str, Any]:
    assert main(["evaluate", str(runs / model), "--num-samples", "300", "--out", str(out), *argv]) == 0
    return json.loads(out.read_text())


def in_library(runs: Path, model: str, part: Any = "test") -> tuple[Any, torch.Tensor, Problem]:
    problem = Problem.from_options(checkpoint.read_config(runs / model)["info"]["options"])
    return checkpoint.load_model(runs / model, CLASSES), problem.frozen(part), problem


@pytest.mark.parametrize(("model", "refine"), [("vae", 0), ("vae", 4), ("iwae", 0), ("pixelvae", 0)])
def test_figures_are_those_of_log_likelihood(model: str, refine: int, runs: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--seed", "5", "--limit", "12", "--refine", str(refine)]
    report = evaluated(runs, model, tmp_path / "report.json", *options)
    net, images, problem = in_library(runs, model)
    want = log_likelihood_distributed(images[:12], net, num_samples=300, refine=refine, seed=5)
    mean = want.mean()
    assert report["log p(x)"] == pytest.approx(mean.value, rel=1e-9)
    assert report["ELBO"] == pytest.approx(float(want.elbo.mean()), rel=1e-9)
    assert report["Monte-Carlo error"] == pytest.approx(mean.monte_carlo_error, rel=1e-6)
    assert report["data error"] == pytest.approx(mean.data_error, rel=1e-6)
    assert report["ELBO"] <= report["log p(x)"]
    assert report["curve"] == want.curve.to_dict()
    assert report["curve"]["log_prob"][-1] == pytest.approx(mean.value, rel=1e-12)
    assert report["jackknife error"] == pytest.approx(want.jackknife.mean_std_error, rel=1e-6)
    unknown = want.jackknife.log_prob.isnan().any()
    assert report["jackknife"] == (None if unknown else pytest.approx(float(want.jackknife.log_prob.mean())))
    assert (report["images"], report["split"], report["importance samples"]) == (12, "test", 300)
    assert report["protocol"] == problem.data.protocol
    assert 0 <= report["active units"] <= 3
    table = capsys.readouterr().out
    assert all(name in table for name in ("ELBO", "Monte-Carlo error", "data error", "ESS", "k-hat", "active units"))
    assert f"{report['log p(x)']:.4f}  nats" in table
    assert f"{report['ELBO']:.2f} (1), " in table


def test_an_interrupted_evaluation_goes_on_and_is_drawn(
    runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    argv = ["evaluate", str(runs / "vae"), "--num-samples", "6000", "--resume", str(tmp_path / "state")]
    update, left = fastvae.LogWeights.update, 1

    def interrupted(self: Any, *args: Any, **options: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        update(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(fastvae.LogWeights, "update", interrupted)
        assert main(argv) == 130
    assert "state keeps what was done: the same command goes on from there" in capsys.readouterr().err
    assert main([*argv, "--plot", str(tmp_path / "a.png"), "--out", str(tmp_path / "a.json")]) == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "a.json").read_text())
    net, images, _ = in_library(runs, "vae")
    want = log_likelihood_distributed(images, net, num_samples=6000).mean().value
    assert report["log p(x)"] == pytest.approx(want, rel=1e-9)
    whole = LogLikelihood.load(tmp_path / "state" / "result.safetensors")
    assert whole.mean().value == report["log p(x)"]
    assert main([*argv, "--seed", "3"]) == 2
    assert "is the checkpoint of another evaluation: its seed is 0, not 3" in capsys.readouterr().err


def test_a_pixelcnn_is_evaluated_exactly(runs: Path, tmp_path: Path, capsys: Any) -> None:
    report = evaluated(runs, "pixelcnn", tmp_path / "report.json")
    net, images, _ = in_library(runs, "pixelcnn")
    log_prob = net.log_prob(images).double()
    assert report["log p(x)"] == pytest.approx(log_prob.mean().item(), rel=1e-6)
    assert report["data error"] == pytest.approx((log_prob.std() / 30**0.5).item(), rel=1e-5)
    assert report["bits per dim"] == pytest.approx(-log_prob.mean().item() / (20 * math.log(2)), rel=1e-6)
    assert "ELBO" not in report
    assert "nats, exact" in capsys.readouterr().out


def test_bits_per_dim_of_densities_count_the_volume_of_a_level(runs: Path, tmp_path: Path, capsys: Any) -> None:
    report = evaluated(runs, "vae", tmp_path / "report.json")
    want = -(report["log p(x)"] - 20 * math.log(5)) / (20 * math.log(2))
    assert report["bits per dim"] == pytest.approx(want, rel=1e-9)
    printed = capsys.readouterr().out
    assert "an upper bound: dequantised" in printed
    assert report["log P(levels)"] == pytest.approx(-want * 20 * math.log(2), rel=1e-9)
    assert "a lower bound: dequantised" in printed


def test_validation_images_and_last_weights_can_be_asked_for(runs: Path, tmp_path: Path) -> None:
    report = evaluated(runs, "pixelcnn", tmp_path / "a.json", "--split", "valid", "--weights", "last")
    _, images, _ = in_library(runs, "pixelcnn", "valid")
    net = checkpoint.load_model(runs / "pixelcnn", CLASSES, weights="last")
    assert report["images"] == 5
    assert report["log p(x)"] == pytest.approx(net.log_prob(images).mean().item(), rel=1e-6)


def test_one_image_has_no_data_error_and_the_report_stays_json(runs: Path, tmp_path: Path) -> None:
    assert evaluated(runs, "pixelcnn", tmp_path / "a.json", "--limit", "1")["data error"] is None
    report = evaluated(runs, "iwae", tmp_path / "b.json", "--limit", "1")
    assert report["active units"] is None


def test_data_that_moved_can_be_named(runs: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.npz"
    moved.write_bytes((runs / "data.npz").read_bytes())
    ours = evaluated(runs, "pixelcnn", tmp_path / "a.json", "--data", str(moved))
    assert ours["log p(x)"] == evaluated(runs, "pixelcnn", tmp_path / "b.json")["log p(x)"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("{runs}/nowhere", "nowhere is not a checkpoint"),
        ("{runs}/library", "was not made by 'fastvae train'"),
        ("{runs}/other", "holds a model of class Other, expected one of NADE, VAE, GatedPixelCNN"),
        ("{runs}/vae --refine -1", "--refine must be between 0 and 2^29 - 1, got -1"),
        ("{runs}/vae --limit 0", "--limit must be at least 1, got 0"),
        ("{runs}/vae --num-samples 0", "--num-samples must be between 1 and 2^32 - 1, got 0"),
        ("{runs}/vae --out {runs}/no/such/x.json", "there is no folder"),
        ("{runs}/vae --out {runs}/data.npz", "data.npz exists already; nothing was overwritten"),
        ("{runs}/vae --data {runs}/gone.npz", "gone.npz does not exist"),
        ("{runs}/vae --data {runs}/wide.npz", "wide.npz has images of (1, 4, 10)"),
        ("{runs}/pixelcnn --data {runs}/deep.npz", "deep.npz has 9 levels"),
        ("{runs}/vae --seed -1", "seed must be"),
        ("{runs}/vae --plot {runs}/data.npz", "--plot {runs}/data.npz exists already"),
        ("{runs}/vae --resume {runs}/data.npz", "checkpoint must name a folder, "),
        ("{runs}/pixelcnn --plot {runs}/a.png", "the log-likelihood of a PixelCNN is exact"),
    ],
)
def test_bad_input_is_one_clear_line(argv: str, says: str, runs: Path, capsys: Any) -> None:
    if "library" in argv:
        checkpoint.save(runs / "library", models.VAE((1, 2, 2), latent_size=1, hidden_sizes=(2,)))
    if "other" in argv:
        config = checkpoint.read_config(runs / "vae") | {"model": "Other"}
        (runs / "other").mkdir()
        (runs / "other" / "config.json").write_text(json.dumps(config))
    before = (runs / "data.npz").read_bytes()
    assert main(["evaluate", *argv.format(runs=runs).split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("fastvae evaluate: error: ")
    assert says.format(runs=runs) in captured.err
    assert (runs / "data.npz").read_bytes() == before


def copied(source: Path, folder: Path, change: Any) -> Path:
    """A copy of a checkpoint whose weights went through ``change``."""
    shutil.copytree(source, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    name = next(key for key, tensor in weights.items() if tensor.ndim > 1 and ("net" in key or "weight" in key))
    weights[name] = change(weights[name])
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    return folder


def with_two_nans(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten().index_fill(0, torch.tensor([0, 1]), math.nan).view_as(weight)


@pytest.mark.parametrize("model", SMALL)
def test_weights_that_are_not_finite_are_named_and_nothing_is_written(
    model: str, runs: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = copied(runs / model, tmp_path / "run", with_two_nans)
    for command, out in (("evaluate", "a.json"), ("sample", "a.png")):
        assert main([command, str(folder), "--out", str(tmp_path / out)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert re.search(r"run: 2 of \d+ values of the best \S+ are not finite", captured.err)
        assert not (tmp_path / out).exists()


def test_finite_weights_with_an_infinite_likelihood_are_an_error(runs: Path, tmp_path: Path, capsys: Any) -> None:
    folder = copied(runs / "pixelcnn", tmp_path / "run", lambda weight: torch.full_like(weight, 3e38))
    assert main(["evaluate", str(folder), "--out", str(tmp_path / "a.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"log p\(x\) of \d+ of 30 images is not finite under the model of .*run", captured.err)
    assert not (tmp_path / "a.json").exists()


def test_samples_that_are_not_finite_are_an_error(runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from fastvae.commands import sample

    draw = sample._at_once
    monkeypatch.setattr(sample, "_at_once", lambda *args: draw(*args) + math.inf)
    assert main(["sample", str(runs / "vae"), "--num", "3", "--out", str(tmp_path / "a.png")]) == 2
    assert "the sample of 3 of 3 images is not finite under the model of" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_draws_of_logits_that_overflow_are_an_error(runs: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(runs / "iwae", tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: torch.full_like(tensor, 3e38) for name, tensor in weights.items()}, path)
    assert main(["sample", str(tmp_path / "run"), "--num", "9", "--out", str(tmp_path / "a.png")]) == 2
    assert "must be finite, got nan or infinity: check the model's weights" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_the_work_is_announced_with_the_options_that_make_it_less(runs: Path, tmp_path: Path, capsys: Any) -> None:
    evaluated(runs, "pixelvae", tmp_path / "a.json", "--limit", "4")
    error = capsys.readouterr().err
    assert "4 images x 300 importance samples: 1,200 rows through the decoder; --limit and --num-samples" in error


def test_an_empty_data_path_is_not_the_current_folder(runs: Path, capsys: Any) -> None:
    assert main(["evaluate", str(runs / "vae"), "--data", ""]) == 2
    assert "--data must be 'digits' or a path, got an empty text" in capsys.readouterr().err


def test_options_of_another_model_than_the_weights_are_refused(runs: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(runs / "pixelvae", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["info"]["options"] |= {"model": "pixelcnn", "order": "raster", "num_orders": 1}
    path.write_text(json.dumps(config))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "its model is a PixelVAE, its options are of pixelcnn" in capsys.readouterr().err
