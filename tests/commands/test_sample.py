"""``fastvae sample``: draws, not means; the same for the same seed; an existing picture stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvae import checkpoint
from fastvae.__main__ import main
from fastvae.commands.problem import CLASSES

SMALL = {
    "vae": "--latent-size 3 --hidden 8 --likelihood gaussian",
    "iwae": "--latent-size 3 --hidden 8 --binarize threshold",
    "pixelcnn": "--channels 4 --num-blocks 1 --first-kernel-size 3",
    "pixelvae": "--latent-size 3 --hidden 8 --channels 4 --num-blocks 1 --first-kernel-size 3 --likelihood gaussian",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of every model on small images of 5 levels."""
    folder, random = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    images = {f"x_{part}": random.integers(0, 5, (30, 4, 5), dtype=np.uint8) for part in ("train", "test")}
    np.savez(folder / "data.npz", **images, num_levels=5)
    for model, options in SMALL.items():
        argv = ["train", "--model", model, "--data", str(folder / "data.npz"), "--out", str(folder / model)]
        assert main([*argv, "--epochs", "2", *options.split()]) == 0
    return folder


def sample(runs: Path, model: str, out: Path, *argv: str) -> int:
    return main(["sample", str(runs / model), "--out", str(out), *argv])


@pytest.mark.parametrize("model", SMALL)
def test_samples_depend_on_the_seed_alone(model: str, runs: Path, tmp_path: Path, shown: list[torch.Tensor]) -> None:
    for number, seed in enumerate("001"):
        torch.manual_seed(number)
        assert sample(runs, model, tmp_path / f"{number}.png", "--num", "7", "--seed", seed) == 0
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    assert shown[0].shape == (7, 1, 4, 5)
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])
    assert all(images.min() >= 0 and images.max() <= 1 for images in shown)


def test_pictures_show_draws_of_the_likelihood_not_its_means(
    runs: Path, tmp_path: Path, shown: list[torch.Tensor]
) -> None:
    assert sample(runs, "iwae", tmp_path / "binary.png", "--num", "300") == 0
    assert set(shown[0].unique().tolist()) == {0.0, 1.0}
    model = checkpoint.load_model(runs / "iwae", CLASSES)
    with torch.no_grad():
        torch.manual_seed(1)
        mean = model.likelihood(model.prior().sample((5000,))).mean.mean(0)
    error = 5 * (0.25 / 300 + 0.25 / 5000) ** 0.5
    torch.testing.assert_close(shown[0].mean(0), mean, atol=error, rtol=0)


def test_levels_are_spread_over_the_unit_interval(runs: Path, tmp_path: Path, shown: list[torch.Tensor]) -> None:
    assert sample(runs, "pixelcnn", tmp_path / "levels.png", "--num", "20") == 0
    assert set(shown[0].unique().tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize("model", ["pixelcnn", "pixelvae"])
def test_verified_samples_come_with_their_certificate(model: str, runs: Path, tmp_path: Path, capsys: Any) -> None:
    assert sample(runs, model, tmp_path / "a.png", "--num", "5", "--verify") == 0
    text = capsys.readouterr().out
    assert "steps" in text
    assert "exact: all 100 values equal g(u, f(x))" in text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("{runs}/nowhere --out {out}/a.png", "nowhere is not a checkpoint"),
        ("{runs}/vae --out {out}/a.png --num 0", "--num must be at least 1, got 0"),
        ("{runs}/vae --out {out}/a.jpg", "--out must end in .png"),
        ("{runs}/vae --out {out}/no/a.png", "there is no folder"),
        ("{runs}/vae --out {out}/mine.png", "mine.png exists already; nothing was overwritten"),
        ("{runs}/vae --out {out}/a.png --verify", "--verify is for models with a PixelCNN"),
        ("{runs}/pixelcnn --out {out}/a.png --seed -1", "seed must be in"),
        ("{runs}/vae --out {out}/a.png --seed -1", "seed must be in"),
    ],
)
def test_bad_input_is_one_clear_line(argv: str, says: str, runs: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.png").write_text("mine")
    assert main(["sample", *argv.format(runs=runs, out=tmp_path).split()]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fastvae sample: error: ")
    assert says in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    assert (tmp_path / "mine.png").read_text() == "mine"
