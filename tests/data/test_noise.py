"""Binarisation and dequantisation: frozen where figures are reported, fresh where models are trained."""

import pytest
import torch

from fastvae.data import Data, binarize, dequantize, frozen_noise, load


def ramp(count: int = 2000) -> Data:
    """Images of four pixels with the levels 0, 1, 3, 4 of 5."""
    images = torch.tensor([0, 1, 3, 4], dtype=torch.uint8).view(1, 1, 2, 2).expand(count, 1, 2, 2).contiguous()
    return Data("ramp", "as it comes", num_levels=5, train=images, valid=images, test=images)


def test_threshold_is_half_of_the_top_level() -> None:
    data = binarize(ramp(3), "threshold")
    assert data.test[0].flatten().tolist() == [0, 0, 1, 1]
    assert data.num_levels == 2
    assert "threshold 2" in data.protocol
    assert torch.equal(data.train_in_epoch(0), data.train_in_epoch(5))


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_sampled_pixels_are_one_with_probability_level_over_top(part: str) -> None:
    frequencies = getattr(binarize(ramp(), "sample"), part).float().mean(0).flatten()
    assert frequencies[0] == 0
    assert frequencies[3] == 1
    error = 4 * (0.25 * 0.75 / 2000) ** 0.5
    torch.testing.assert_close(frequencies[1:3], torch.tensor([0.25, 0.75]), atol=error, rtol=0)


def test_training_draws_are_fresh_in_each_epoch_and_reproducible() -> None:
    data = binarize(ramp(), "sample")
    assert torch.equal(data.train_in_epoch(0), data.train)
    assert not torch.equal(data.train_in_epoch(0), data.train_in_epoch(1))
    torch.manual_seed(5)  # nothing but (seed, epoch) matters
    assert torch.equal(data.train_in_epoch(1), binarize(ramp(), "sample").train_in_epoch(1))
    frequencies = data.train_in_epoch(7).float().mean(0).flatten()
    torch.testing.assert_close(frequencies, torch.tensor([0.0, 0.25, 0.75, 1.0]), atol=0.04, rtol=0)


def test_draws_of_the_three_sets_and_of_other_seeds_differ() -> None:
    data, other = binarize(ramp(), "sample"), binarize(ramp(), "sample", seed=1)
    assert not torch.equal(data.train, data.valid)
    assert not torch.equal(data.valid, data.test)
    assert not torch.equal(data.test, other.test)


def test_each_protocol_is_named() -> None:
    protocols = {binarize(load("digits"), how).protocol for how in ("none", "threshold", "sample")}
    assert len(protocols) == 3
    assert any("a fresh draw of train in each epoch, one frozen draw of valid and test" in text for text in protocols)


def test_frozen_draw_is_pinned_so_that_figures_stay_comparable() -> None:
    assert int(binarize(load("digits"), "sample").test.sum()) == 5747


def test_dequantised_levels_fill_their_cells_and_stay_inside_the_unit_interval() -> None:
    levels = torch.arange(5)
    for u in (0.0, 0.5, 1 - 2**-24):
        values = dequantize(levels, 5, torch.full((5,), u))
        assert torch.equal((values * 5 - 1e-6 * u).floor(), levels.float())
    noise = frozen_noise(ramp(), "test")
    assert noise.shape == ramp().test.shape
    values = dequantize(ramp().test, 5, noise)
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() <= 1


def test_frozen_noise_is_the_same_each_time_and_differs_between_the_sets() -> None:
    assert torch.equal(frozen_noise(ramp(), "test"), frozen_noise(ramp(), "test"))
    assert not torch.equal(frozen_noise(ramp(), "test"), frozen_noise(ramp(), "valid"))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"how must be one of .* got 'round'"):
        binarize(ramp(3), "round")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ramp is binary already"):
        binarize(binarize(ramp(3), "threshold"), "sample")
    with pytest.raises(ValueError, match=r"noise must have the shape of levels, \(3,\), got \(2,\)"):
        dequantize(torch.zeros(3), 4, torch.zeros(2))
    with pytest.raises(ValueError, match="num_levels must be at least 2, got 1"):
        dequantize(torch.zeros(3), 1, torch.zeros(3))
