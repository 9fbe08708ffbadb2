"""The definition of masked convolution sees exactly the past: nothing of the future, all of what is in reach."""

import pytest
import torch

from fastvae import reference


@pytest.mark.parametrize(("kernel_size", "count_a"), [(1, 0), (3, 4), (5, 12), (7, 24)])
def test_live_taps_are_those_before_the_centre(kernel_size: int, count_a: int) -> None:
    assert reference.count_live_taps(kernel_size, "A") == count_a
    assert reference.count_live_taps(kernel_size, "B") == count_a + 1
    for mask in ("A", "B"):
        taps = reference.raster_mask(kernel_size, mask).flatten()
        live = reference.count_live_taps(kernel_size, mask)
        assert taps[:live].all()
        assert not taps[live:].any()


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_an_output_depends_on_exactly_the_past_in_reach(kernel_size: int, mask: str, dilation: int) -> None:
    height, width, reach = 5, 6, kernel_size // 2
    weight = torch.rand(1, 1, kernel_size, kernel_size) + 0.5  # no zeros, nothing cancels
    x = torch.rand(1, 1, height, width)
    jacobian = torch.func.jacrev(lambda x: reference.masked_conv2d(x, weight, None, mask, dilation))(x)
    jacobian = jacobian.view(height, width, height, width)
    for i in range(height):
        for j in range(width):
            for u in range(height):
                for v in range(width):
                    dy, dx = u - i, v - j
                    on_grid = dy % dilation == 0 and dx % dilation == 0
                    in_reach = on_grid and max(abs(dy), abs(dx)) <= reach * dilation
                    earlier = (dy, dx) < (0, 0) or (mask == "B" and (dy, dx) == (0, 0))
                    assert (jacobian[i, j, u, v] != 0) == (in_reach and earlier), (i, j, u, v)
