"""The certificate: clean for exact samples, and tripped by every mistake a schedule can make."""

from collections.abc import Callable

import pytest
import torch
from networks_in_the_wild import Balanced, plain, randomized
from torch import nn

from fastvae import compile_sampler
from fastvae.sampling import CertificateError, Sampler
from fastvae.sampling import plan as planning
from fastvae.sampling import run as running
from fastvae.sampling.graph import Linear


def sharp() -> nn.Module:
    """A network whose every layer matters."""
    model = nn.Sequential(*[m if not isinstance(m, nn.ReLU) else nn.Tanh() for m in plain(width=12, layers=3)])
    return Balanced(randomized(model, gain=2.0), 9, 9)


def trips(sampler: Sampler) -> None:
    with pytest.raises(CertificateError, match="NOT EXACT") as error:
        sampler(16, seed=1, verify=True)
    certificate = error.value.certificate
    assert certificate.unexplained > 0
    assert certificate.values == 16 * 81
    assert not certificate.ok


def test_exact_samples_are_certified() -> None:
    certificate = compile_sampler(sharp(), (1, 9, 9), "bernoulli")(16, verify=True).certificate
    assert certificate.ok
    assert (certificate.mismatches, certificate.unexplained) == (0, 0)
    first, second = str(certificate).splitlines()
    assert first == "exact: all 1296 values equal g(u, f(x))"
    assert second == f"  margin: {certificate.margin:.1e} at least; 0 within 1e-09"
    assert 1e-9 < certificate.margin < 1e-2  # of so many numbers one comes near


def test_no_certificate_unless_asked() -> None:
    assert compile_sampler(sharp(), (1, 9, 9), "bernoulli")(2).certificate is None


def test_a_skew_that_is_one_too_small_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = compile_sampler(sharp(), (1, 9, 9), "bernoulli").plan.skew
    real = planning._leads

    def too_early(operators, reads, output, skew):
        leads = real(operators, reads, output, skew)
        if skew == right - 1:
            leads[operators[0]] = -1  # claim that it is valid
        return leads

    monkeypatch.setattr(planning, "_leads", too_early)
    sampler = compile_sampler(sharp(), (1, 9, 9), "bernoulli")
    assert sampler.plan.skew == right - 1
    trips(sampler)


def test_a_stale_cache_is_caught() -> None:
    sampler = compile_sampler(sharp(), (1, 9, 9), "bernoulli")
    sampler(16, seed=0)
    program = sampler._engine.programs[16]
    calls, draw, pixels = program._steps[20]
    program._steps[20] = (calls[:2] + calls[3:], draw, pixels)  # the cells of the call before stay
    trips(sampler)


def test_activations_outside_the_image_that_are_not_zero_are_caught() -> None:
    sampler = compile_sampler(sharp(), (1, 9, 9), "bernoulli")
    sampler(16, seed=0)
    program = sampler._engine.programs[16]
    hidden = [op for op in sampler.plan.cached if op.features == (12,)]
    assert hidden
    for op in hidden:
        program._storage[op][0] = 0.5  # as if the activation of the bias
    trips(sampler)


def test_swapped_taps_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., torch.Tensor] = running._packed

    def swapped(op: Linear, values: dict) -> torch.Tensor:
        packed = real(op, values)
        return packed.unflatten(0, (len(op.taps), -1)).flip(0).flatten(0, 1)

    monkeypatch.setattr(running, "_packed", swapped)
    trips(compile_sampler(sharp(), (1, 9, 9), "bernoulli"))


def test_a_read_one_cell_off_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = running._rows
    monkeypatch.setattr(
        running, "_rows", lambda plan, reader, reads, batch: (real(plan, reader, reads, batch) - batch).clip(0)
    )
    trips(compile_sampler(sharp(), (1, 9, 9), "bernoulli"))


def test_a_state_outside_parameters_and_buffers_is_caught() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.sign = sharp(), 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.sign * self.net(x)

    model = Hidden()
    sampler = compile_sampler(model, (1, 9, 9), "bernoulli")
    assert sampler(16, verify=True).certificate.ok
    model.sign = -1.0  # a Python number is part of the trace
    trips(sampler)


def test_rounding_is_told_from_error() -> None:
    model = sharp().float()
    sampler = compile_sampler(model, (1, 9, 9), "bernoulli")
    noise = torch.rand(4, 1, 9, 9)
    images = sampler(4, noise=noise).samples
    with torch.no_grad():
        boundary = model(images).sigmoid()  # where u meets the cdf any rounding decides
    from fastvae.sampling.certify import certify
    from fastvae.sampling.draw import Bernoulli

    for shift, ok in ((0.0, True), (1e-5, True), (1e-2, False)):
        # a u just above the cdf of a pixel that is 1, just below it for one that is 0
        u = boundary + shift * (2.0 * images - 1.0)
        certificate = certify(model, Bernoulli(), images, u.clamp(1e-6, 1 - 1e-6), None)
        assert certificate.ok is ok, (shift, certificate)
        if shift:
            assert certificate.mismatches > 0
