"""Huge batches: drawn in parts, with a bar, rows handed out as they are finished, stopped at any time."""

from typing import Any

import pytest
import torch
from networks_in_the_wild import STYLES, plain, randomized

from fastvae import compile_sampler
from fastvae.sampling import Sampler

HEIGHT, WIDTH = 7, 6


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """Draws three images at a time."""
    made = compile_sampler(randomized(plain(), gain=2.0), (1, HEIGHT, WIDTH), "bernoulli")
    monkeypatch.setattr("fastvae.sampling.engine._MOST_CACHE_BYTES", 3 * made.plan.cache_bytes)
    return made


class Collected:
    """Rows put together again; every one must come once, from the top, and stay as it was."""

    def __init__(self, size: int) -> None:
        self.images = torch.full((size, 1, HEIGHT, WIDTH), torch.nan, dtype=torch.float64)
        self.calls: list[tuple[int, int, int]] = []

    def __call__(self, first_image: int, first_row: int, values: torch.Tensor) -> None:
        target = self.images[first_image : first_image + len(values), :, first_row : first_row + values.shape[2]]
        assert values.shape == target.shape
        assert target.isnan().all()
        assert self.images[first_image, :, :first_row].isfinite().all()
        assert not values.is_inference()
        target.copy_(values)
        self.calls.append((first_image, first_row, values.shape[2]))


def test_rows_are_handed_out_as_they_are_finished(sampler: Sampler) -> None:
    rows = Collected(8)
    out = sampler(8, seed=3, on_rows=rows)
    assert torch.equal(rows.images, out.samples)
    assert rows.calls == [(start, row, 1) for start in (0, 3, 6) for row in range(HEIGHT)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_rows_come_before_later_steps_are_computed(style: str) -> None:
    model = randomized(STYLES[style](HEIGHT, WIDTH))
    made = compile_sampler(model, (1, HEIGHT, WIDTH), "bernoulli")
    made(2)
    program = made._engine.programs[2]
    steps: list[int] = []
    program._steps = [
        ([lambda step=step: steps.append(step), *calls], draw, pixels)
        for step, (calls, draw, pixels) in enumerate(program._steps)
    ]
    seen: list[int] = []
    made(2, on_rows=lambda image, row, values: seen.append(steps[-1]))
    assert seen == [WIDTH - 1 + made.plan.skew * row for row in range(HEIGHT)]


@pytest.mark.parametrize("which", ["first rows", "last rows", "all"])
def test_known_rows_are_handed_out_too(which: str, sampler: Sampler) -> None:
    row = torch.arange(HEIGHT)[:, None].expand(HEIGHT, WIDTH)[None, None]
    mask = {"first rows": row < 3, "last rows": row > 3, "all": row >= 0}[which]
    rows = Collected(5)
    out = sampler(5, observed=(mask, torch.ones(1, 1, HEIGHT, WIDTH)), on_rows=rows)
    assert torch.equal(rows.images, out.samples)


def test_naive_sampling_in_parts_hands_out_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unplanned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = randomized(plain(), gain=2.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).sort(1).values  # of one channel

    monkeypatch.setattr("fastvae.sampling.engine._NAIVE_PART", 3)
    model = Unplanned()
    made = compile_sampler(model, (1, HEIGHT, WIDTH), "bernoulli", fallback="naive")
    rows = Collected(5)
    out = made(5, seed=3, on_rows=rows, verify=True)
    assert torch.equal(rows.images, out.samples)
    assert rows.calls[HEIGHT] == (3, 0, 1)
    assert torch.equal(out.samples, compile_sampler(model.inner, (1, HEIGHT, WIDTH), "bernoulli")(5, seed=3).samples)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_call_that_is_stopped_leaves_nothing_behind(error: type[BaseException], sampler: Sampler) -> None:
    wanted, threads = sampler(8, seed=1), torch.get_num_threads()

    def stop(first_image: int, first_row: int, values: torch.Tensor) -> None:
        if (first_image, first_row) == (3, 4):
            raise error

    for options in ({}, {"observed": (torch.rand(1, 1, HEIGHT, WIDTH) < 0.3, torch.ones(1, 1, HEIGHT, WIDTH))}):
        with pytest.raises(error):
            sampler(8, seed=2, on_rows=stop, progress=True, **options)
        assert torch.get_num_threads() == threads
        assert not torch.is_inference_mode_enabled()
        again = sampler(8, seed=1, verify=True)
        assert torch.equal(again.samples, wanted.samples)
        assert again.certificate.mismatches == 0


def test_the_bar_counts_images_and_hides_where_nobody_looks(sampler: Sampler, capsys: Any) -> None:
    sampler(8, progress=True)
    assert "8/8" in capsys.readouterr().err
    sampler(8)
    sampler(8, progress=False)
    assert capsys.readouterr().err == ""


def test_something_else_than_a_function_for_rows_is_named(sampler: Sampler) -> None:
    with pytest.raises(TypeError, match="on_rows must be a function of"):
        sampler(2, on_rows=[])
