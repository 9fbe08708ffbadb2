"""The definition of locally masked convolution: with raster bits the masked one, and cut taps have no effect at all."""

import pytest
import torch

from fastvae import ops, reference


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 2), (5, 1), (7, 1)])
def test_in_raster_order_it_is_the_masked_convolution(kernel_size: int, dilation: int, mask: str) -> None:
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    weight = torch.randn(4, 3, kernel_size, kernel_size, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    bits = ops.tap_bits(ops.generation_order("raster", (6, 7)), (6, 7), kernel_size, mask=mask, dilation=dilation)
    want = reference.masked_conv2d(x, weight, bias, mask, dilation)
    torch.testing.assert_close(reference.locally_masked_conv2d(x, weight, bias, bits, dilation), want)


def test_each_pixel_sums_over_its_own_taps() -> None:
    x, weight, bias = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 3, 3), torch.randn(2)
    mask = torch.randint(0, 1 << 9, (2, 4, 5))
    y = reference.locally_masked_conv2d(x, weight, bias, mask)
    for n in range(2):
        for i in range(4):
            for j in range(5):
                want = bias.clone()
                for tap in range(9):
                    u, v = i + tap // 3 - 1, j + tap % 3 - 1
                    if mask[n, i, j].item() >> tap & 1 and 0 <= u < 4 and 0 <= v < 5:
                        want += weight[:, :, tap // 3, tap % 3] @ x[n, :, u, v]
                torch.testing.assert_close(y[n, :, i, j], want)


def test_bits_are_unpacked_in_raster_order_of_taps() -> None:
    taps = reference.unpack_tap_bits(torch.tensor([[1 << 48, 3]]), 7)
    assert taps.shape == (49, 1, 2)
    assert taps[:, 0, 0].nonzero().flatten().tolist() == [48]
    assert taps[:, 0, 1].nonzero().flatten().tolist() == [0, 1]


def test_an_invalid_number_behind_a_cut_tap_spoils_nothing() -> None:
    x = torch.randn(1, 1, 3, 3)
    x[0, 0, 1, 1] = float("nan")
    y = reference.locally_masked_conv2d(x, torch.ones(1, 1, 3, 3), None, torch.full((3, 3), 0b111101111))
    assert y.isnan().sum() == 8  # all neighbours see it, the pixel itself does not
    assert not y[0, 0, 1, 1].isnan()
