"""Any net, shape, likelihood, temperature and mask: planned samples are naive ones and certified, twice in a row."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import networks

from fastvae import compile_sampler


@settings(deadline=None, max_examples=40)
@given(
    model=networks(),
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    batch=st.integers(1, 4),
    how=st.sampled_from([{}, {"temperature": 0.3}, {"temperature": 1e-8}, {"temperature": 3.0}, {"greedy": True}]),
    known=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_any_call_is_exact(model, rows: int, columns: int, batch: int, how: dict, known: float, seed: int) -> None:  # type: ignore[no-untyped-def]
    channels = model[0].in_channels
    sampler = compile_sampler(model, (channels, rows, columns), "categorical")
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, rows, columns)
    for first_id in (0, batch):
        mask = torch.rand(shape, generator=generator) < known
        values = torch.rand(shape, generator=generator).round().masked_fill(~mask, torch.nan)
        given = {"seed": seed, "first_id": first_id, "observed": (mask, values), **how}
        ours, naive = sampler(batch, verify=True, **given), sampler.naive(batch, **given)
        assert torch.equal(ours.samples, naive.samples)
        assert (ours.certificate.values, ours.certificate.mismatches) == (int((~mask).sum()), 0)
        torch.testing.assert_close(ours.log_prob, naive.log_prob, rtol=1e-9, atol=1e-9)
        for program in sampler._engine.programs.values():
            for storage in [*program._storage.values(), program._noise, *program._scratch.values()]:
                storage[1:] = torch.nan  # row 0 stands for the outside
