"""The convolution whose masked taps keep their gradient is that of an overwritten weight, for any mask."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastvae.acceleration.masked_gradient import convolve_keeping_gradient
from fastvae.ops.masked_conv2d_taps import taps_of


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, int, tuple[int, int]]:
    """A mask with at least one live tap, in some shape that broadcasts; dilation; size of the image."""
    rows, columns = draw(st.sampled_from([1, 3, 5, 7])), draw(st.sampled_from([1, 3, 5]))
    top, left = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
    bottom, right = draw(st.integers(top + 1, rows)), draw(st.integers(left + 1, columns))
    lead = draw(st.sampled_from([(), (1, 1), (2, 3), (2, 1), (1, 3)]))
    mask = torch.zeros(*lead, rows, columns)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    mask[..., top:bottom, left:right] = torch.rand(*lead, bottom - top, right - left, generator=generator).round()
    mask[..., top, left] = 1
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    return mask, draw(st.integers(1, 3)), size


def outputs_and_gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    grad_y = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return [y, *torch.autograd.grad(y, inputs, grad_y)]


@settings(deadline=None, max_examples=60)
@given(cases())
def test_equals_the_convolution_with_an_overwritten_weight(case: tuple[Tensor, int, tuple[int, int]]) -> None:
    mask, dilation, size = case
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 3, *size), (2, 3, *mask.shape[-2:]), (2,))
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    x, weight, bias = inputs
    padding = [k // 2 * dilation for k in mask.shape[-2:]]
    taps = taps_of(mask != 0, (mask.shape[-2], mask.shape[-1]))

    overwritten = weight - (weight * (1 - mask)).detach()
    want = F.conv2d(x, overwritten, bias, padding=padding, dilation=dilation)
    ours = convolve_keeping_gradient(x, weight, bias, taps, mask, dilation)
    torch.testing.assert_close(outputs_and_gradients(ours, inputs), outputs_and_gradients(want, inputs))
