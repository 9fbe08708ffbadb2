"""``fastvae sample``: completion of images, the settings of a draw, and the picture of a plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvae.__main__ import main

pytest.importorskip("matplotlib")

SMALL = {
    "vae": "--latent-size 3 --hidden 8 --likelihood gaussian",
    "pixelvae": "--latent-size 3 --hidden 8 --channels 4 --num-blocks 1 --first-kernel-size 3",
    "pixelcnn": "--channels 4 --num-blocks 1 --first-kernel-size 3",
    "colours": "--model pixelcnn --channels 4 --num-blocks 1 --first-kernel-size 3 --likelihood logistic_mixture",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of models of small images of 5 levels, grey or in colour."""
    folder, random = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for name, shape in (("grey", (30, 4, 5)), ("colour", (30, 4, 5, 3))):
        images = {f"x_{part}": random.integers(0, 5, shape, dtype=np.uint8) for part in ("train", "test")}
        np.savez(folder / f"{name}.npz", **images, num_levels=5)
    for model, options in SMALL.items():
        data = folder / ("colour.npz" if model == "colours" else "grey.npz")
        kind = [] if model == "colours" else ["--model", model]
        argv = ["train", *kind, "--data", str(data), "--out", str(folder / model), "--epochs", "1"]
        assert main([*argv, *options.split()]) == 0
    return folder


def sample(runs: Path, model: str, out: Path, *argv: str) -> int:
    return main(["sample", str(runs / model), "--out", str(out), *argv])


def test_settings_change_what_is_drawn(runs: Path, tmp_path: Path, shown: list[torch.Tensor], capsys: Any) -> None:
    for number, argv in enumerate(["", "--temperature 0.3", "--top-k 2", "--greedy"]):
        assert sample(runs, "pixelcnn", tmp_path / f"{number}.png", "--num", "40", "--verify", *argv.split()) == 0
    plain, cold, two, mode = shown
    assert not torch.equal(plain, cold)
    assert plain.unique().numel() == 5
    assert not torch.equal(two, plain)
    assert (mode == mode[:1]).all()
    assert capsys.readouterr().out.count("exact: all 800 values") == 4


@pytest.mark.parametrize("model", ["pixelcnn", "colours"])
def test_test_images_are_completed(model: str, runs: Path, tmp_path: Path, shown: list[torch.Tensor]) -> None:
    argv = ["--complete", "test", "--num", "24", "--verify"]
    assert sample(runs, model, tmp_path / "top.png", *argv) == 0
    assert sample(runs, model, tmp_path / "left.png", *argv, "--keep", "left") == 0
    for images, half in zip(shown, (np.s_[:, :, :2], np.s_[..., :3]), strict=True):
        rows = images.view(8, 5, 3, 4, 5)  # what is known, three completions, the original
        original = rows[:, -1]
        assert all(torch.equal(rows[:, column][half], original[half]) for column in range(4))
        assert not torch.equal(rows[:, 1], rows[:, 2])
        blue = (original[:, 0] != rows[:, 0, 0]) | (original[:, 2] != rows[:, 0, 2])
        assert blue.any()
        if model == "pixelcnn":
            assert not (rows[:, 0, 0] == rows[:, 0, 2]).all()
            assert (rows[:, 1:, :1] == rows[:, 1:]).all()  # grey


def test_a_file_says_what_is_known(runs: Path, tmp_path: Path, shown: list[torch.Tensor]) -> None:
    from matplotlib.image import imsave

    values = np.random.default_rng(1).integers(0, 5, (2, 4, 5))
    mask = np.random.default_rng(2).random((2, 4, 5)) < 0.5
    np.savez(tmp_path / "mine.npz", values=np.where(mask, values, np.nan), mask=mask)
    rgba = np.stack([*[values[0] * 255 // 4] * 3, mask[0] * 255], -1).astype(np.uint8)
    imsave(tmp_path / "mine.png", rgba)
    for number, name in enumerate(("mine.npz", "mine.png")):
        argv = ["--complete", str(tmp_path / name), "--num", "6", "--verify"]
        assert sample(runs, "pixelcnn", tmp_path / f"{number}.png", *argv) == 0
    for images, count in zip(shown, (2, 1), strict=True):
        rows = images.view(count, -1, 3, 4, 5)
        wanted = torch.from_numpy(values[:count] / 4).float()
        known = torch.from_numpy(mask[:count])
        assert rows.shape[1] == 1 + 6 // count
        for column in range(rows.shape[1]):
            torch.testing.assert_close(rows[:, column, 0][known], wanted[known])
        assert rows[:, 1:].isfinite().all()


def test_the_plan_is_drawn(runs: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["--num", "4", "--plot-plan", str(tmp_path / "plan.png")]
    assert sample(runs, "pixelcnn", tmp_path / "a.png", *argv) == 0
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "the plan: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("vae --temperature 0.5", "--temperature is for models with a PixelCNN in raster order, not for a VAE"),
        ("vae --top-k 2", "--top-k is for models with a PixelCNN"),
        ("vae --complete test", "--complete is for models with a PixelCNN"),
        ("pixelvae --complete test", "--complete is for a pixelcnn: a pixelvae would first need latents"),
        ("pixelcnn --temperature 0", "temperature must be positive"),
        ("pixelcnn --top-k 9", "top_k must be in [1, 6), got 9"),
        ("pixelcnn --greedy --temperature 0.5", "greedy takes the most probable value"),
        ("pixelcnn --keep top", "give --complete too"),
        ("pixelcnn --complete mine.jpg", "--complete must be test, valid, or a file that ends in .npz or .png"),
        ("pixelcnn --complete {folder}/nothing.npz", "nothing.npz"),
        ("pixelcnn --complete {folder}/other.npz", "holds ['X']; expected values, and mask"),
        ("pixelcnn --complete {folder}/unmasked.npz", "does not say what is known: add a mask or --keep"),
        ("pixelcnn --complete {folder}/large.npz", "has images of shape (1, 6, 5), the model's are (1, 4, 5)"),
        ("pixelcnn --complete {folder}/numbers.npz", "mask must be boolean, True for known pixels"),
        ("pixelcnn --complete {folder}/grey.npz", "known values must be integers in 0..4"),
        ("pixelcnn --complete {folder}/unmasked.npz --keep top --num 2", "has 3 images, but --num allows for 2"),
        ("pixelcnn --plot-plan {folder}/plan.jpg", "--plot-plan must end in .png"),
        ("pixelcnn --plot-plan {folder}/mine.png", "mine.png exists already; nothing was overwritten"),
        ("pixelcnn --plot-plan {folder}/a.png", "--out and --plot-plan must be two files"),
    ],
)
def test_bad_input_is_one_clear_line(argv: str, says: str, runs: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.png").write_text("mine")
    some = np.zeros((3, 4, 5))
    np.savez(tmp_path / "other.npz", X=some)
    np.savez(tmp_path / "unmasked.npz", values=some)
    np.savez(tmp_path / "large.npz", values=np.zeros((3, 6, 5)), mask=np.zeros((6, 5), dtype=bool))
    np.savez(tmp_path / "numbers.npz", values=some, mask=np.zeros((4, 5)))
    np.savez(tmp_path / "grey.npz", values=some + 0.5, mask=np.ones((4, 5), dtype=bool))
    model, *options = argv.format(folder=tmp_path).split()
    assert sample(runs, model, tmp_path / "a.png", *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fastvae sample: error: ")
    assert says in error
    assert not (tmp_path / "a.png").exists()
    assert (tmp_path / "mine.png").read_text() == "mine"
