"""``fastvae reproduce``: recipes that train accepts, one run from end to end, and one that is interrupted."""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvae import checkpoint
from fastvae.__main__ import main
from fastvae.commands import evaluate, sample
from fastvae.commands.options import rate_of, resumed, with_defaults
from fastvae.commands.problem import CLASSES
from fastvae.commands.recipe import BUDGETS, read_recipe, recipe_names
from fastvae.evaluation import LogLikelihood

ROOT = Path(__file__).parent.parent.parent
PUBLISHED = {"nade": 88.33, "pixelcnn": 81.30, "gated-pixelcnn": 80.10, "pixelvae": 80.64, "iaf": 79.77}
NAMES = ["gated-pixelcnn", "iaf", "iwae-table1", "nade", "pixelcnn", "pixelvae", "vampprior"]
SMALL = {
    "iwae-table1": {"epochs": 2, "hidden": [8]},
    "pixelcnn": {"epochs": 2, "batch_size": 7, "channels": 4, "num_blocks": 1},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets of a test: one epoch of a small net."""
    from fastvae.commands import reproduce

    def smaller(name: str) -> Any:
        recipe = read_recipe(name)
        recipe.budget["cpu"]["train"] |= SMALL.get(name, {})
        if name == "iwae-table1":
            recipe.budget["cpu"]["evaluate"] |= {"num_samples": 20, "limit": 4}
        return recipe

    monkeypatch.setattr(reproduce, "read_recipe", smaller)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    images = {f"x_{part}": random.integers(0, 5, (60, 5, 4), dtype=np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "five.npz", **images, num_levels=5)
    return tmp_path / "five.npz"


def test_there_is_a_recipe_for_each_system() -> None:
    assert recipe_names() == NAMES
    assert {name: read_recipe(name).plan([], "full").published for name in PUBLISHED} == PUBLISHED
    assert read_recipe("vampprior").plan(["prior=normal"], "full").published is None


@pytest.mark.parametrize("name", NAMES)
def test_the_options_of_a_recipe_are_those_of_the_commands(name: str) -> None:
    recipe = read_recipe(name)
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    for choice, values in recipe.choices.items():
        for value in values:
            for budget in BUDGETS:
                plan = recipe.plan([f"{choice}={value}"], budget)
                options = with_defaults({"binarize": "sample"} | plan.train)
                assert plan.train.items() <= options.items()
                assert vars(parser.parse_args(["run"])).keys() >= plan.evaluate.keys()
    for entry in recipe.published:  # each can be had
        given = entry.get("choices", {})
        assert recipe.plan([f"{key}={value}" for key, value in given.items()], "cpu").published == entry["nats"]


def test_the_full_schedule_of_iwae_is_the_published_one() -> None:
    options = with_defaults(read_recipe("iwae-table1").plan(["k=50"], "full").train)
    assert (options["num_samples"], options["batch_size"], options["epsilon"], options["latent_size"]) == (
        50,
        20,
        1e-4,
        50,
    )
    rate = rate_of(options)
    assert callable(rate)
    rates = [rate(epoch) for epoch in range(options["epochs"])]
    for stage in range(8):
        assert rates.count(rates[(3**stage - 1) // 2]) == 3**stage
        assert rates[(3**stage - 1) // 2] == pytest.approx(1e-3 * 10 ** (-stage / 7))
    assert len(rates) == 3280


def test_a_cosine_goes_from_the_rate_towards_zero_and_keeps_its_epochs(tmp_path: Path) -> None:
    options = with_defaults({"schedule": "cosine", "epochs": 4, "learning_rate": 0.1})
    rate = rate_of(options)
    assert callable(rate)
    assert [rate(epoch) for epoch in (0, 2, 4)] == pytest.approx([0.1, 0.05, 0.0])
    with pytest.raises(ValueError, match="--epochs 5 differs from 4, along which --schedule cosine"):
        resumed(options, {"epochs": 5}, tmp_path)
    assert rate_of(with_defaults({"learning_rate": 0.1})) == 0.1


def test_a_run_leaves_everything_and_says_what_it_is(small: None, data: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    argv = ["reproduce", "iwae-table1", "k=5", "--data", str(data), "--out", str(out)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["choices"] == {"k": "5", "layers": "1"}
    assert report["published"] == 85.54
    assert report["figures"]["importance samples"] == 20
    assert "M = 20" in report["comparison"]
    assert "sampled binarisation" in report["comparison"]
    assert "published 85.54 (Burda" in report["comparison"]
    assert "the published figure is of another data set" in report["comparison"]
    assert report["comparison"] in printed
    assert (out / "log.txt").read_text() == printed
    for name in ("config.json", "run/model.safetensors", "samples.png", "bound.png", "importance/result.safetensors"):
        assert (out / name).stat().st_size > 0
    assert not list(out.glob("*.partial*"))
    assert main(argv) == 2
    assert "exists already; choose a new name, or add --resume" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0  # nothing is left to do
    assert json.loads((out / "report.json").read_text()) == report
    assert main([*argv, "--resume", "--seed", "1"]) == 2
    assert "--resume takes the same command" in capsys.readouterr().err


def test_two_runs_are_compared_image_by_image(small: None, data: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["reproduce", "iwae-table1", "k=5", "--data", str(data), "--out"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*argv, str(one)]) == 0
    capsys.readouterr()
    assert main([*argv, str(two), "--seed", "1", "--against", str(one)]) == 0
    printed = capsys.readouterr().out
    values = [LogLikelihood.load(run / "importance" / "result.safetensors").log_prob.double() for run in (two, one)]
    gain = values[0] - values[1]
    assert f"log p higher by {gain.mean():.2f} +- {gain.std() / 2:.2f} nats" in printed  # of 4 images
    assert main([*argv, str(one), "--resume", "--against", str(one)]) == 0
    assert "log p higher by 0.00 +- 0.00 nats" in capsys.readouterr().out
    assert main([*argv, str(tmp_path / "three"), "--against", str(tmp_path)]) == 2
    assert "holds no finished run of 'fastvae reproduce'" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


def test_a_choice_may_have_a_budget_of_its_own() -> None:
    plans = [read_recipe("pixelvae").plan([f"decoder={name}"], "cpu") for name in ("pixelcnn", "independent")]
    assert plans[1].train["epochs"] > 10 * plans[0].train["epochs"]
    assert [plan.evaluate["num_samples"] for plan in plans] == [100, 5000]
    assert all(plan.evaluate["limit"] == 200 for plan in plans)
    assert "budget" not in plans[1].train
    full = read_recipe("pixelvae").plan(["decoder=independent"], "full")
    assert (full.train["epochs"], full.evaluate) == (400, {"num_samples": 1000})


def test_grey_images_stay_grey_for_a_likelihood_of_levels(
    data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvae.commands import reproduce

    def smaller(name: str) -> Any:
        recipe = read_recipe(name)
        if name == "pixelvae":
            budget = recipe.choices["decoder"]["gaussian"]["budget"]["cpu"]
            budget["train"] |= {"epochs": 1, "hidden": [8]}
            budget["evaluate"] |= {"num_samples": 20, "limit": 4}
        return recipe

    monkeypatch.setattr(reproduce, "read_recipe", smaller)
    argv = ["reproduce", "pixelvae", "decoder=gaussian", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(argv) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["train"]["binarize"] == "none"
    assert f"-log P(levels) {-report['figures']['log P(levels)']:.2f} nats" in report["comparison"]
    assert "a lower bound of log P: dequantised" in report["comparison"]


def test_interrupted_anywhere_and_resumed_gives_the_same_figures(
    small: None, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvae.training.run import Run

    def argv(out: str) -> list[str]:
        return ["reproduce", "pixelcnn", "--data", str(data), "--out", str(tmp_path / out)]

    assert main(argv("whole")) == 0
    step, draw = Run._step, sample.run

    def stopping(self: Run, batch: Any) -> float:
        self.ctrl_c.requested = self.state.step == 4
        return step(self, batch)

    def interrupted(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", stopping)
        assert main(argv("parts")) == 130
    said = capsys.readouterr().err
    assert "interrupted in epoch 1 after step 5" in said
    assert f"go on with: python -m fastvae {' '.join(argv('parts')[:2])}" in said
    assert "--resume" in said
    assert not (tmp_path / "parts" / "report.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(sample, "run", interrupted)
        assert main([*argv("parts"), "--resume"]) == 130
    assert sample.run is draw
    assert main([*argv("parts"), "--resume"]) == 0
    whole, parts = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("whole", "parts"))
    assert whole["figures"].pop("checkpoint") != parts["figures"].pop("checkpoint")
    assert whole == parts
    assert (tmp_path / "whole/samples.png").read_bytes() == (tmp_path / "parts/samples.png").read_bytes()


def test_a_limit_can_be_spread_over_a_sorted_file() -> None:
    images = torch.arange(10)
    assert evaluate._chosen(images, 4, True).tolist() == [0, 2, 5, 7]
    assert evaluate._chosen(images, 4, False).tolist() == [0, 1, 2, 3]
    assert evaluate._chosen(images, None, True).tolist() == evaluate._chosen(images, 12, True).tolist() == [*range(10)]


def test_the_binarisation_is_that_of_the_data_and_a_difference_is_told(tmp_path: Path) -> None:
    from fastvae.commands.reproduce import _differs

    recipe = read_recipe("nade")
    assert _differs(recipe, (1, 28, 28), "file.npz", "fixed") is None
    assert _differs(recipe, (1, 28, 28), "file.npz", "sample") == (
        "binarisation: sample; the published figure has another protocol, fixed"
    )
    assert "another data set" in str(_differs(recipe, (1, 8, 8), "digits", "sample"))
    assert "another data set" in str(_differs(recipe, (1, 5, 4), "file.npz", "fixed"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("iwae-table1 k=7", "iwae-table1 has the choices k=1|5|50; layers=1|2, got k=7"),
        ("iwae-table1 k=5 k=50", "k was given twice, as 5 and 50"),
        ("nade k=5", "nade has the choices none, got k=5"),
        ("nade --data nowhere.npz", "nowhere.npz does not exist"),
        ("nade --resume", "holds no run of 'fastvae reproduce'"),
        ("nade --seed -1", "--seed must be in [0, 2^63)"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left_behind(
    argv: str, says: str, data: Path, tmp_path: Path, capsys: Any
) -> None:
    small = [] if "--data" in argv else ["--data", str(data)]
    assert main(["reproduce", *argv.split(), *small, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_processes_give_the_figures_of_one_and_write_once(
    small: None, data: Path, tmp_path: Path, capsys: Any
) -> None:
    # no noise in the loss: the same up to rounding; 50 images in batches of 7 leave uneven shares
    argv = ["reproduce", "pixelcnn", "--data", str(data), "--device", "cpu", "--out"]
    assert main([*argv, str(tmp_path / "one")]) == 0
    # what torchrun does, but everything is imported once: one process becomes two
    code = f"""
import os, sys
from fastvae.__main__ import main
from fastvae.commands import recipe, reproduce
def small(name):
    found = recipe.read_recipe(name)
    found.budget["cpu"]["train"] |= {SMALL["pixelcnn"]}
    return found
reproduce.read_recipe = small
child = os.fork()
os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(int(child == 0))
status = main(sys.argv[1:])
sys.stdout.flush()
if child == 0:
    os._exit(status)
sys.exit(status or os.waitpid(child, 0)[1])
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-c", code, *argv, str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report and pictures") == 1
    assert "2 processes" in done.stdout
    assert (tmp_path / "two" / "log.txt").read_text() == done.stdout
    one, two = (checkpoint.load_model(tmp_path / name / "run", CLASSES) for name in ("one", "two"))
    for (name, ours), theirs in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5, msg=name)
    figures = [json.loads((tmp_path / name / "report.json").read_text())["figures"] for name in ("one", "two")]
    assert figures[1]["log p(x)"] == pytest.approx(figures[0]["log p(x)"], rel=1e-5)
