"""Any shape, kernel, dilation, depth and batch: planned samples equal naive ones, and decoding the parallel pass."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_in_the_wild import MaskedWeight, randomized
from torch import nn

from fastvae import compile_sampler


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    channels, width, params = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 16])), 2
    kernel, dilation = draw(st.sampled_from([1, 3, 5, 7])), draw(st.integers(1, 2))
    reach = kernel // 2 * dilation
    layers: list[nn.Module] = [MaskedWeight("A", channels, width, kernel, padding=reach, dilation=dilation)]
    for _ in range(draw(st.integers(0, 2))):
        kernel, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 3))
        layers += [nn.ELU(), MaskedWeight("B", width, width, kernel, padding=kernel // 2 * dilation, dilation=dilation)]
    layers += [nn.Tanh(), nn.Conv2d(width, channels * params, 1)]
    return randomized(nn.Sequential(*layers), gain=2.0, seed=draw(st.integers(0, 100)))


@settings(deadline=None, max_examples=40)
@given(model=networks(), rows=st.integers(1, 8), columns=st.integers(1, 8), batch=st.integers(1, 4), data=st.data())
def test_planned_sampling_is_exact(model: nn.Module, rows: int, columns: int, batch: int, data: st.DataObject) -> None:
    channels = model[0].in_channels
    sampler = compile_sampler(model, (channels, rows, columns), "categorical")
    seed = data.draw(st.integers(0, 2**64 - 1))
    ours = sampler(batch, seed=seed, verify=True)
    assert ours.certificate.mismatches == 0
    assert torch.equal(ours.samples, sampler.naive(batch, seed=seed).samples)
    images = torch.rand(batch, channels, rows, columns, dtype=torch.float64).round()
    with torch.no_grad():
        torch.testing.assert_close(sampler.decode(images), model(images), rtol=1e-12, atol=1e-12)
