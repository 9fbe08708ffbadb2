"""Completion, rows and temperature with the other schedules: by rows, ordered channels, orders that are no raster."""

from collections.abc import Callable

import pytest
import test_channels
import test_orders
import torch
from networks_in_the_wild import plain, randomized

from fastvae import compile_sampler
from fastvae.sampling import Sampler

MAKE: dict[str, Callable[[], Sampler]] = {
    "row": lambda: compile_sampler(
        randomized(plain(channels=2, params=3), gain=0.8), (2, 6, 5), "categorical", schedule="row"
    ),
    **{
        f"colours: {name}, {schedule}": lambda name=name, schedule=schedule: compile_sampler(
            randomized(test_channels.NETS[name](), gain=1.5), test_channels.SHAPE, "categorical", schedule=schedule
        )
        for name in test_channels.NETS
        for schedule in ("wavefront", "row")
    },
    **{
        f"order: {name}": lambda name=name: compile_sampler(
            randomized(test_orders.ours(name), gain=2.0), (1, *test_orders.SIZES[name]), "bernoulli"
        )
        for name in test_orders.SIZES
    },
}


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("name", MAKE)
def test_any_part_can_be_known(name: str, share: float) -> None:
    sampler = MAKE[name]()
    shape = (4, *sampler.event_shape)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(shape, generator=generator) < share
    mask |= torch.rand(1, *shape[1:], generator=generator) < share  # most are known in all images
    values = torch.rand(shape, generator=generator).round().masked_fill(~mask, torch.nan)
    rows = torch.full(shape, torch.nan, dtype=torch.float64)

    def collect(first_image: int, first_row: int, part: torch.Tensor) -> None:
        target = rows[first_image : first_image + len(part), :, first_row : first_row + part.shape[2]]
        assert target.isnan().all()
        target.copy_(part)

    ours = sampler(4, seed=3, observed=(mask, values), temperature=0.8, verify=True, on_rows=collect)
    naive = sampler.naive(4, seed=3, observed=(mask, values), temperature=0.8)
    assert torch.equal(ours.samples, naive.samples)
    assert torch.equal(rows, ours.samples)
    assert (ours.certificate.values, ours.certificate.mismatches) == (int((~mask).sum()), 0)
    torch.testing.assert_close(ours.log_prob, naive.log_prob)
    steps = len(next(reversed(sampler._engine.programs.values()))._steps)
    assert steps < sampler.plan.num_steps or share < 0.5
    assert torch.equal(sampler(4, seed=3, verify=True).samples, sampler.naive(4, seed=3).samples)
