"""Generation orders other than raster order: levels of the dependencies, equal to naive sampling in that order."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import MaskedWeight, randomized
from torch import Tensor, nn

from fastvae import compile_sampler
from fastvae.nn import LocallyMaskedConv2d
from fastvae.ops import generation_order
from fastvae.sampling import CertificateError, UnsupportedModelError
from fastvae.sampling import schedule as scheduling

SIZES = {"s_curve": (6, 7), "hilbert": (8, 8), "random": (5, 6), "raster": (6, 5)}


def order_of(name: str) -> Tensor:
    options = {"seed": 3} if name == "random" else {}
    return torch.as_tensor(generation_order(name, SIZES[name], **options))


def ours(name: str, dilation: int = 1) -> nn.Module:
    options: dict[str, Any] = {"order": order_of(name), "size": SIZES[name]}
    return nn.Sequential(
        LocallyMaskedConv2d(1, 6, 5, mask="A", **options), nn.Tanh(),
        LocallyMaskedConv2d(6, 6, 3, dilation, mask="B", **options), nn.Tanh(), nn.Conv2d(6, 1, 1),
    )  # fmt: skip


class UnfoldMaskMultiply(nn.Conv2d):
    """The published style: unfold, multiply by a mask for each pixel, multiply by the weight, fold."""

    def __init__(self, name: str, kind: str, source: int, out: int, kernel: int) -> None:
        super().__init__(source, out, kernel, padding=kernel // 2)
        height, width = SIZES[name]
        rank = torch.full((1, 1, height, width), height * width)
        for number, (row, column) in enumerate(order_of(name).tolist()):
            rank[0, 0, row, column] = number
        around = F.unfold(rank.double() + 1, kernel, padding=kernel // 2)  # (1, k * k, H * W), 0 outside
        mine = rank.flatten(1)[:, None] + 1
        mask = (around > 0) & ((around < mine) if kind == "A" else (around <= mine))
        self.register_buffer("mask", mask.double())

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, self.kernel_size, padding=self.padding)
        windows = windows.view(x.shape[0], self.in_channels, -1, windows.shape[2]) * self.mask
        out = self.weight.view(self.out_channels, -1).matmul(windows.view(x.shape[0], -1, windows.shape[3]))
        return F.fold(out, x.shape[2:], (1, 1)) + self.bias.view(1, -1, 1, 1)


def wild(name: str) -> nn.Module:
    return nn.Sequential(
        UnfoldMaskMultiply(name, "A", 1, 6, 3), nn.ELU(), UnfoldMaskMultiply(name, "B", 6, 6, 3), nn.ELU(),
        nn.Conv2d(6, 1, 1),
    )  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("make", [ours, wild, lambda name: ours(name, dilation=2)], ids=["ours", "wild", "dilated"])
def test_any_order_equals_naive_sampling(make: Any, name: str) -> None:
    model, size = randomized(make(name), gain=2.0), SIZES[name]
    sampler = compile_sampler(model, (1, *size), "bernoulli")
    out, naive = sampler(6, seed=1, verify=True), sampler.naive(6, seed=1)
    assert out.certificate.mismatches == 0
    assert torch.equal(out.samples, naive.samples)
    torch.testing.assert_close(out.log_prob, naive.log_prob, rtol=1e-10, atol=1e-10)
    assert 0 < out.samples.mean() < 1
    images = torch.rand(3, 1, *size, dtype=torch.float64).round()
    with torch.no_grad():
        torch.testing.assert_close(sampler.decode(images), model(images), rtol=1e-12, atol=1e-12)


def test_levels_are_the_longest_chains() -> None:
    for name, steps in (("s_curve", 42), ("hilbert", 64)):
        plan = compile_sampler(randomized(ours(name)), (1, *SIZES[name]), "bernoulli").plan
        assert (plan.name, plan.num_steps) == ("levels", steps)  # curves: each pixel depends on the one before
    model = randomized(ours("random"))
    plan = compile_sampler(model, (1, *SIZES["random"]), "bernoulli").plan
    images = torch.rand(1, 1, 5, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(1), images)
    depends = jacobian.reshape(30, 30) != 0
    length = torch.zeros(30, dtype=torch.long)
    for pixel in plan.order:
        length[pixel] = 1 + (length[depends[pixel]].max() if depends[pixel].any() else 0)
    assert plan.num_steps == length.max() < 30
    assert "as soon as all it depends on" in str(plan)


def test_raster_order_of_locally_masked_layers_has_the_steps_of_the_wavefront() -> None:
    plan = compile_sampler(randomized(ours("raster")), (1, *SIZES["raster"]), "bernoulli").plan
    assert plan.num_steps == 5 + 3 * 5
    by_row = compile_sampler(randomized(ours("raster")), (1, *SIZES["raster"]), "bernoulli", schedule="row")
    assert by_row.plan.num_steps == 30
    assert by_row(4, verify=True).certificate.mismatches == 0


def test_columns_first_and_backwards_orders_of_ordinary_convolutions() -> None:
    class Turned(nn.Module):
        def __init__(self, turn: Any) -> None:
            super().__init__()
            self.turn, self.first, self.last = turn, MaskedWeight("A", 1, 4, 3), MaskedWeight("B", 4, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.first, self.last):
                x = F.conv2d(x, self.turn(layer.weight * layer.mask), layer.bias, padding=1).tanh()
            return 3.0 * x

    for turn in (lambda w: w.transpose(2, 3), lambda w: w.flip(2, 3)):
        sampler = compile_sampler(randomized(Turned(turn), gain=2.0), (1, 5, 6), "bernoulli")
        assert sampler.plan.num_steps in (6 + 2 * 4, 5 + 2 * 5)
        out = sampler(5, verify=True)
        assert out.certificate.mismatches == 0
        assert torch.equal(out.samples, sampler.naive(5).samples)


def test_other_masks_are_planned_again() -> None:
    model = randomized(ours("random"), gain=2.0)
    sampler = compile_sampler(model, (1, 5, 6), "bernoulli")
    steps = sampler.plan.num_steps
    for layer in (model[0], model[2]):
        layer.bits.copy_(layer.tap_bits("s_curve"))
    assert sampler(5, verify=True).certificate.mismatches == 0
    assert steps < sampler.plan.num_steps == 30


def test_pixels_that_depend_on_each_other_are_named() -> None:
    options: dict[str, Any] = {"size": (4, 4)}
    backwards = torch.as_tensor(generation_order("raster", (4, 4))).flip(0)
    orders = nn.Sequential(
        LocallyMaskedConv2d(1, 2, 3, mask="A", order="raster", **options),
        LocallyMaskedConv2d(2, 1, 3, mask="B", order=backwards, **options),
    )
    with pytest.raises(UnsupportedModelError, match=r"not causal in any order.*pixel \(\d, \d\) depend") as error:
        compile_sampler(randomized(orders), (1, 4, 4), "bernoulli")
    assert "module '0'" in str(error.value)
    twice = nn.Sequential(LocallyMaskedConv2d(1, 1, 3, mask="B", order="hilbert", **options))
    with pytest.raises(UnsupportedModelError, match=r"parameters of pixel \(\d, \d\) depend on that pixel itself"):
        compile_sampler(randomized(twice), (1, 4, 4), "bernoulli")


def test_a_level_that_is_one_too_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvae.sampling import planner

    def early(*args: Any) -> Any:
        level, depends = scheduling.levels(*args)
        return (level - 1).clip(0), depends  # the second level joins the first

    monkeypatch.setattr(planner, "levels", early)
    sampler = compile_sampler(randomized(ours("s_curve"), gain=3.0), (1, *SIZES["s_curve"]), "bernoulli")
    with pytest.raises(CertificateError, match="NOT EXACT"):
        sampler(64, verify=True)
