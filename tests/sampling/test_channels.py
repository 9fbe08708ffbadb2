"""Channels that are ordered within a pixel (colour masks): drawn one after the other, equal to naive sampling."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import MaskedWeight, randomized
from torch import Tensor, nn

from fastvae import compile_sampler
from fastvae.sampling import CertificateError, UnsupportedModelError
from fastvae.sampling import channels as ordering

SHAPE = (3, 5, 6)


def colour(index: Tensor, size: int, interleaved: bool) -> Tensor:
    """The colour that a feature belongs to."""
    return index % 3 if interleaved else index * 3 // size


class ColourMasked(nn.Conv2d):
    """At the centre a feature sees those of earlier colours, and with mask B of its own."""

    def __init__(
        self, kind: str, source: int, out: int, kernel: int, interleaved: bool = False, order: int = 1
    ) -> None:
        super().__init__(source, out, kernel, padding=kernel // 2)
        middle = kernel // 2
        mask = torch.ones_like(self.weight)
        mask[:, :, middle + 1 :] = mask[:, :, middle, middle + 1 :] = 0.0
        mine = colour(torch.arange(out), out, interleaved)[:, None]
        theirs = colour(torch.arange(source), source, interleaved and source > 3)[None]
        ahead = order * (mine - theirs)
        mask[:, :, middle, middle] = ((ahead > 0) if kind == "A" else (ahead >= 0)).float()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class GatedColours(nn.Module):
    """Values and gates are halves of the channels, each with its colours; features are concatenated per colour."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = ColourMasked("A", 3, 6, 3), ColourMasked("A", 3, 6, 3)
        self.above = nn.Conv2d(3, 6, (1, 3), padding=(0, 1))
        self.last = ColourMasked("B", 12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        above = F.pad(self.above(x), (0, 0, 1, 0))[:, :, :-1]  # sees all colours of the row above
        h = torch.cat([self.value(x) + above, self.gate(x)], 1)
        h = torch.tanh(h[:, :6]) * h[:, 6:].sigmoid()
        parts = [part for pair in zip(h.chunk(3, 1), (-h).chunk(3, 1), strict=True) for part in pair]
        return self.last(F.elu(torch.cat(parts, 1)))


NETS = {
    "blocks": lambda: nn.Sequential(
        ColourMasked("A", 3, 12, 5), nn.Tanh(), ColourMasked("B", 12, 12, 3), nn.Tanh(), ColourMasked("B", 12, 6, 1)
    ),
    "residual": lambda: nn.Sequential(
        ColourMasked("A", 3, 6, 3), Residual(nn.Sequential(nn.Tanh(), ColourMasked("B", 6, 6, 3))), nn.ELU(),
        ColourMasked("B", 6, 6, 1),
    ),
    "interleaved": lambda: nn.Sequential(
        ColourMasked("A", 3, 12, 3, interleaved=True), nn.Tanh(), Sorted(), nn.Tanh(), ColourMasked("B", 12, 6, 1)
    ),
    "blue first": lambda: nn.Sequential(
        ColourMasked("A", 3, 6, 3, order=-1), nn.Tanh(), ColourMasked("B", 6, 6, 3, order=-1)
    ),
    "gated": GatedColours,
}  # fmt: skip


class Sorted(nn.Module):
    """From colours in turn to colours in blocks, by a view."""

    def forward(self, h: Tensor) -> Tensor:
        return h.unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize("schedule", ["wavefront", "row"])
@pytest.mark.parametrize("name", NETS)
def test_ordered_channels_equal_naive_sampling(name: str, schedule: Any) -> None:
    model = randomized(NETS[name](), gain=2.0, seed=3)
    sampler = compile_sampler(model, SHAPE, "categorical", schedule=schedule)
    assert len(sampler.plan.groups) == 3
    ours, naive = sampler(5, seed=1, verify=True), sampler.naive(5, seed=1)
    assert ours.certificate.mismatches == 0
    assert torch.equal(ours.samples, naive.samples)
    torch.testing.assert_close(ours.log_prob, naive.log_prob, rtol=1e-10, atol=1e-10)
    assert 0 < ours.samples.mean() < 1
    images = torch.rand(4, *SHAPE, dtype=torch.float64).round()
    with torch.no_grad():
        torch.testing.assert_close(sampler.decode(images), model(images), rtol=1e-12, atol=1e-12)


def test_the_plan_tells_of_the_groups() -> None:
    plan = compile_sampler(randomized(NETS["blocks"]()), SHAPE, "categorical").plan
    assert plan.skew == 3
    assert plan.num_steps == 3 * (6 + 3 * 4)
    assert "drawn one after the other, in 3 groups" in str(plan)
    assert "of 90" in str(plan)
    assert plan.groups == (slice(0, 1), slice(1, 2), slice(2, 3))
    assert compile_sampler(randomized(NETS["blue first"]()), SHAPE, "categorical").plan.groups[0] == slice(2, 3)


def test_channels_of_one_level_are_drawn_together() -> None:
    class Pairs(nn.Conv2d):
        """Channels 2 and 3 depend on 0 and 1 of the same pixel."""

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros_like(self.weight)
            mask[:, :, 0] = 1.0
            mask[2:, :2, 1, 1] = 1.0
            return F.conv2d(x, self.weight * mask, self.bias, padding=1)

    sampler = compile_sampler(randomized(Pairs(4, 4, 3)), (4, 4, 4), "bernoulli")
    assert sampler.plan.groups == (slice(0, 2), slice(2, 4))
    assert torch.equal(sampler(9, verify=True).samples, sampler.naive(9).samples)


def test_what_does_not_depend_on_the_pixel_runs_once() -> None:
    plan = compile_sampler(randomized(GatedColours()), SHAPE, "categorical", schedule="row").plan
    passes = {
        op.features[0]: len(plan.passes[op]) for op in plan.linear if op.node.args[1].meta["val"].shape[2:] == (1, 3)
    }
    assert passes == {6: 1}
    assert max(len(each) for each in plan.passes.values()) == 3


def test_a_pass_that_waits_for_too_little_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ordering._links

    def blind(op: Any, read: Any, weights: Any) -> Any:
        links = real(op, read, weights)
        if op.features == (6,) and read.value.operator.features == (3,):
            links[:1] = False  # nothing depends on red
        return links

    monkeypatch.setattr(ordering, "_links", blind)
    sampler = compile_sampler(randomized(NETS["residual"](), gain=0.7), SHAPE, "gaussian")
    with pytest.raises(CertificateError, match="NOT EXACT"):
        sampler(16, verify=True)


def test_channels_in_a_circle_are_refused() -> None:
    for model in (
        nn.Sequential(MaskedWeight("B", 3, 3, 3, padding=1)),
        nn.Sequential(ColourMasked("A", 3, 3, 3), Permuted()),
    ):
        with pytest.raises(UnsupportedModelError, match=r"depend on pixel \(i\+0, j\+0\)"):
            compile_sampler(randomized(model), SHAPE, "bernoulli")


class Permuted(nn.Module):
    """The parameters of a colour come from those that see it."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h[:, 1:], h[:, :1]], 1)


def test_normalised_colours_mix_and_are_refused() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = ColourMasked("A", 3, 6, 3), ColourMasked("B", 6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.layer_norm(self.first(x).permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2))

    with pytest.raises(UnsupportedModelError, match=r"depend on pixel \(i\+0, j\+0\)"):
        compile_sampler(randomized(Normed()), SHAPE, "bernoulli")
