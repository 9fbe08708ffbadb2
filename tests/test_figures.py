"""Pictures show the pixels they are given, and never overwrite a file."""

from pathlib import Path

import pytest
import torch

from fastvae import figures

pytest.importorskip("matplotlib")


def shown(figure) -> torch.Tensor:
    return torch.as_tensor(figure.axes[0].images[0].get_array())


def test_a_grid_shows_every_pixel_in_its_place() -> None:
    images = torch.rand(5, 1, 3, 4)
    picture = shown(figures.image_grid(images, columns=3))
    assert picture.shape == (2 * 4, 3 * 5)
    torch.testing.assert_close(picture[4:7, 5:9], images[4, 0])
    torch.testing.assert_close(picture[:3, 10:14], images[2, 0])
    assert (picture[4:7, 10:14] == 1).all(), "the free place stays white"


def test_inverted_ink_is_dark() -> None:
    images = torch.rand(1, 1, 3, 4)
    torch.testing.assert_close(shown(figures.image_grid(images, invert=True))[:3, :4], 1 - images[0, 0])


def test_colour_is_kept() -> None:
    images = torch.rand(1, 3, 2, 2)
    torch.testing.assert_close(shown(figures.image_grid(images))[:2, :2], images[0].permute(1, 2, 0))


def test_rows_are_labelled() -> None:
    figure = figures.image_rows({"data": torch.rand(2, 1, 2, 2), "VAE": torch.rand(2, 1, 2, 2)})
    assert [axes.get_ylabel() for axes in figure.axes] == ["data", "VAE"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    figure = figures.image_grid(torch.rand(4, 1, 2, 2))
    path = figures.save(figure, tmp_path / "grid.png")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"grid\.png exists already"):
        figures.save(figure, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("shape", [(4, 2, 2), (0, 1, 2, 2), (4, 2, 3, 3)])
def test_bad_shapes_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(N, 1 or 3, H, W\)"):
        figures.image_grid(torch.zeros(shape))
    with pytest.raises(ValueError, match="rows must have at least one entry"):
        figures.image_rows({})


def test_a_wavefront_shows_the_step_of_every_pixel_that_is_drawn() -> None:
    steps = torch.arange(4) + 2 * torch.arange(3)[:, None]
    known = torch.zeros(3, 4, dtype=torch.bool)
    known[0, :2] = True
    figure = figures.wavefront(steps, known)
    axes = figure.axes[0]
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert written == {(c, r): str(c + 2 * r) for r in range(3) for c in range(4) if not known[r, c]}
    outlined = {(int(patch.get_x() + 0.5), int(patch.get_y() + 0.5)) for patch in axes.patches}
    assert {c + 2 * r for c, r in outlined} == {5}
    assert len(outlined) == 2
    assert axes.get_title() == "6 steps draw 10 of 12 pixels; outlined: step 5"
    figures.wavefront(steps, torch.ones(3, 4, dtype=torch.bool))  # nothing is drawn
    with pytest.raises(ValueError, match="steps and known must have shape"):
        figures.wavefront(steps, known[0])
