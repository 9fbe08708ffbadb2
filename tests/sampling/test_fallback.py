"""The naive fallback: serves causal models that cannot be planned, and refuses those it would sample wrongly."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import MaskedWeight, randomized
from torch import Tensor, nn

from fastvae import compile_sampler
from fastvae.sampling import Sampler, UnsupportedModelError


class Around(nn.Module):
    """A causal layer, a body that planning does not know, and a head."""

    def __init__(self, body: Callable[[Tensor], Tensor], kind: str = "A", params: int = 1) -> None:
        super().__init__()
        self.body, self.first = body, MaskedWeight(kind, 1, 4, 3, padding=1)
        self.last = nn.Conv2d(4, params, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))


def naive_sampler(model: nn.Module, likelihood: Any = "bernoulli", **options: Any) -> Sampler:
    channels = options.pop("channels", 1)
    return compile_sampler(model, (channels, 5, 5), likelihood, fallback="naive", **options)


def ordered(h: Tensor) -> Tensor:
    """Outside the vocabulary, within pixels."""
    return h.sort(1).values


def test_naive_fallback_serves_what_cannot_be_planned() -> None:
    model = randomized(Around(ordered), gain=2.0)
    with pytest.raises(UnsupportedModelError, match="in forward: return self"):
        compile_sampler(model, (1, 5, 5), "bernoulli")
    sampler = naive_sampler(model)
    assert sampler.plan is None
    assert "outside the vocabulary" in sampler.reason
    assert sampler(4, verify=True).certificate.mismatches == 0
    with pytest.raises(ValueError, match="no steps to decode by"):
        sampler.decode(torch.zeros(2, 1, 5, 5))


def quantile(u: Tensor, params: Tensor) -> Tensor:
    return params[..., 0] + u


@pytest.mark.parametrize(("likelihood", "params"), [("categorical", 5), ("gaussian", 2), (quantile, 1)])
def test_causal_models_pass_the_probe_with_any_likelihood(likelihood: Any, params: int) -> None:
    for dtype in (torch.float64, torch.float32):
        model = randomized(Around(ordered, params=params), gain=0.3).to(dtype)
        assert naive_sampler(model, likelihood)(3, verify=True).certificate.ok


@pytest.mark.parametrize(
    ("likelihood", "params"), [("bernoulli", 1), ("categorical", 5), ("gaussian", 2), (quantile, 1)]
)
def test_leaks_are_found_with_any_likelihood(likelihood: Any, params: int) -> None:
    for dtype in (torch.float64, torch.float32):
        model = randomized(Around(ordered, kind="B", params=params)).to(dtype)
        with pytest.raises(UnsupportedModelError, match=r"pixel \(0, 0\) change with the pixel itself"):
            naive_sampler(model, likelihood)


def test_a_convolution_without_a_mask_is_refused_with_the_fallback_too() -> None:
    with pytest.raises(UnsupportedModelError, match=r"not causal in raster order.*by way of operator"):
        naive_sampler(nn.Conv2d(1, 1, 3, padding=1))


LEAKS = {
    "every token attends to all": (
        lambda h: F.scaled_dot_product_attention(*[h.flatten(2).transpose(1, 2)] * 3).transpose(1, 2).reshape(h.shape),
        "not causal in any order of the pixels",
    ),
    "group norm": (lambda h: F.group_norm(h, 2), "pixels that come after it"),
    "mean over pixels": (lambda h: h - h.mean((2, 3), keepdim=True), "pixels that come after it"),
    "the transposed image": (lambda h: h + h.transpose(2, 3), "pixels that come after it"),
    "mean over images": (lambda h: h - h.mean(0, keepdim=True), "other images of the batch"),
    "random numbers": (lambda h: h + torch.randn_like(h), "draws random numbers"),
    "random numbers behind an if": (
        lambda h: h + torch.randn_like(h) if h.isfinite().all() else h, "runs again: it draws random numbers"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LEAKS)
def test_a_leak_is_found_where_the_operators_do_not_tell(what: str) -> None:
    body, says = LEAKS[what]
    with pytest.raises(UnsupportedModelError, match=says):
        naive_sampler(randomized(Around(body)))


def test_a_leak_from_the_last_pixel_to_the_one_before_is_found() -> None:
    def last(h: Tensor) -> Tensor:
        h = h.sort(1).values
        return torch.cat([h.flatten(2)[..., :-2], h.flatten(2)[..., -1:], h.flatten(2)[..., -1:]], 2).view_as(h)

    with pytest.raises(UnsupportedModelError, match=r"pixel \(4, 3\) change with the pixel itself"):
        naive_sampler(randomized(Around(last)))


def test_batch_statistics_are_refused_and_stay_as_they_are() -> None:
    model = nn.Sequential(MaskedWeight("A", 1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)).train()
    with pytest.raises(UnsupportedModelError, match="statistics of the batch"):
        naive_sampler(model)
    assert int(model[1].num_batches_tracked) == 0


class ColourMasked(nn.Conv2d):
    """At the centre, green reads red, and blue reads both; everything else is mask A."""

    def __init__(self, circle: bool = False) -> None:
        super().__init__(3, 3, 3, padding=1)
        mask = torch.ones_like(self.weight)
        mask[:, :, 2] = mask[:, :, 1, 1:] = 0.0
        mask[:, :, 1, 1] = torch.ones(3, 3).tril(-1)
        mask[0, 2, 1, 1] = float(circle)  # red reads blue, too
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


@pytest.mark.parametrize("fallback", [None, "naive"])
@pytest.mark.parametrize(
    "behind", [nn.Identity(), nn.Sequential(nn.Flatten(2), nn.Softplus(), nn.Unflatten(2, (5, 5)))]
)
def test_channels_that_are_ordered_within_a_pixel_are_planned_unless_in_a_circle(
    fallback: Any, behind: nn.Module
) -> None:
    model = randomized(nn.Sequential(ColourMasked(), behind))
    sampler = compile_sampler(model, (3, 5, 5), "bernoulli", fallback=fallback)
    assert len(sampler.plan.groups) == 3
    assert torch.equal(sampler(4, verify=True).samples, sampler.naive(4).samples)
    with pytest.raises(UnsupportedModelError, match="not causal in raster order"):
        compile_sampler(randomized(ColourMasked(circle=True)), (3, 5, 5), "bernoulli", fallback=fallback)


def test_ordered_channels_are_found_where_the_operators_do_not_tell() -> None:
    class Unknown(ColourMasked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.isfinite().all() else x

    with pytest.raises(UnsupportedModelError, match="channels of a pixel are ordered in this model"):
        naive_sampler(randomized(Unknown()), channels=3)


def test_a_leak_that_a_zero_condition_hides_is_found() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.causal, self.leak = MaskedWeight("A", 1, 1, 3, padding=1), MaskedWeight("B", 1, 1, 3, padding=1)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return ordered(self.causal(x)) + ordered(self.leak(x)) * z[:, :, None, None]

    with pytest.raises(UnsupportedModelError, match="change with the pixel itself"):
        naive_sampler(randomized(Gated()), condition_shape=(1,))


def test_the_probe_leaves_the_global_random_numbers_alone() -> None:
    model = randomized(Around(ordered))
    state = torch.get_rng_state()
    naive_sampler(model)
    assert torch.equal(torch.get_rng_state(), state)
