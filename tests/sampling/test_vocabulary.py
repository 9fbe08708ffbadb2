"""Operators that causal networks use: between two masked convolutions, each decodes to what the parallel pass gives."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import MaskedWeight, randomized
from torch import Tensor, nn

from fastvae import compile_sampler

VOCABULARY = {
    "activations": lambda h: F.relu(h) + F.elu(h) + h.tanh() * h.sigmoid() + F.silu(h) - F.gelu(h) + F.mish(h),
    "softplus and bounds": lambda h: F.softplus(h).clamp(0.1, 2.0) + F.hardtanh(h) + F.leaky_relu(h, 0.3) - F.selu(h),
    "powers": lambda h: (h.square() + 1.0).sqrt() + (1.0 + h.abs()).log() + h.pow(3) - 2.0 / (1.0 + h * h),
    "concatenated elu": lambda h: F.elu(torch.cat([h, -h], 1)).unflatten(1, (2, 6)).sum(1),
    "gate by chunk": lambda h: torch.tanh(h.chunk(2, 1)[0]).repeat_interleave(1, 0).mul(h.chunk(2, 1)[1].sigmoid()),
    "gate by glu": lambda h: F.glu(h, 1),
    "gate by slices": lambda h: h[:, :3].tanh() * h[:, 3:].sigmoid(),
    "gate by indices": lambda h: h[:, 0:1] * h.select(1, 2).unsqueeze(1) + h[:, -1:, :, :],
    "gate by views": lambda h: (lambda g: g[:, 0].tanh() * g[:, 1].sigmoid())(h.view(h.shape[0], 2, 3, *h.shape[2:])),
    "unbind and stack": lambda h: torch.stack([a.exp().clamp(max=3) for a in h[:, :4].unbind(1)], 1),
    "stacked channels": lambda h: torch.stack([h, h.tanh()], 2).amax(2) + torch.stack([h, -h, h], 1).sum(1),
    "channel shuffle": lambda h: h.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2),
    "layer norm": lambda h: F.layer_norm(h.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2),
    "norm by hand": lambda h: (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True) + 1e-3).sqrt(),
    "softmax over channels": lambda h: (
        h.softmax(1) - h.log_softmax(1) + h.logsumexp(1, keepdim=True) * h.amax(1)[:, None]
    ),
    "cumulated channels": lambda h: h.cumsum(1),
    "comparisons": lambda h: torch.where(h > 0, h, h * h).masked_fill(h > 1.5, 1.5) + (h >= 0.3).to(h.dtype),
    "extremes": lambda h: torch.maximum(h, -0.5 * h) + torch.minimum(h, torch.full_like(h, 0.2)),
    "shift down": lambda h: F.pad(h, (0, 0, 1, 0))[:, :, :-1],
    "shift right by negative pad": lambda h: h + F.pad(h, (2, -2)),
    "shift of one channel": lambda h: (
        h + F.pad(h[:, 1:2], (1, 0))[..., :-1] - F.pad(h[:, 2:5], (0, 0, 1, 0))[:, 1:2, :-1]
    ),
    "shift of permuted features": lambda h: h - shuffled_and_shifted(h),
    "pad by a number": lambda h: h + F.pad(h, (1, 0, 2, 0), value=0.7)[:, :, :-2, :-1],
    "pad channels": lambda h: F.pad(h, (0, 0, 0, 0, 1, 2)) * 0.5,
    "shift by assignment": lambda h: h - assigned(h),
    "shift by concatenation": lambda h: h * torch.cat([torch.zeros_like(h[:, :, :1]), h[:, :, :-1]], 2),
    "pooling of the past by shifts": lambda h: torch.maximum(h, F.pad(h, (1, 0))[..., :-1]),
    "copies": lambda h: h.clone().contiguous().detach() + h.to(torch.float32).to(h.dtype),
    "in place": lambda h: h.clone().add_(1.0).mul_(h).relu_(),
}


def assigned(h: Tensor) -> Tensor:
    result = torch.zeros_like(h)
    result[:, :, 1:, 1:] = h[:, :, :-1, :-1]
    return result


def shuffled_and_shifted(h: Tensor) -> Tensor:
    shuffled = h.unflatten(1, (2, 3)).transpose(1, 2)  # (N, 3, 2, H, W): a view with permuted features
    return F.pad(shuffled, (1, 0, 1, 0))[..., :-1, :-1].transpose(1, 2).flatten(1, 2)


class Between(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body, self.first = body, MaskedWeight("A", 1, 6, 5, padding=2)
        with torch.no_grad():
            width = body(torch.randn(2, 6, 4, 5)).shape[1]
        self.second = MaskedWeight("B", width, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(self.body(self.first(x)))))


def equals_the_parallel_pass(model: nn.Module, images: Tensor) -> None:
    sampler = compile_sampler(model, images.shape[1:], "bernoulli")
    with torch.no_grad():
        want = model(images)
    assert want.std() > 1e-3
    torch.testing.assert_close(sampler.decode(images), want, rtol=1e-12, atol=1e-12)
    assert sampler(3, verify=True).certificate.mismatches == 0


@pytest.mark.parametrize("name", VOCABULARY)
def test_operator_is_planned_exactly(name: str) -> None:
    images = torch.rand(3, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).round()
    equals_the_parallel_pass(randomized(Between(VOCABULARY[name])), images)


def test_embedded_levels() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 5)
            self.first, self.last = MaskedWeight("A", 5, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(self.table(x[:, 0].long()).permute(0, 3, 1, 2)).tanh())

    sampler = compile_sampler(randomized(Embedded()), (1, 4, 5), "categorical")
    out = sampler(20, verify=True)
    assert out.certificate.mismatches == 0
    assert out.samples.unique().numel() == 4


def test_linear_layers_on_pixels_as_rows_of_a_matrix() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.wide = MaskedWeight("A", 1, 6, 3, padding=1), nn.Linear(6, 9)
            self.narrow = nn.Linear(9, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.first(x).permute(0, 2, 3, 1).reshape(-1, 6)
            return self.narrow(self.wide(rows).relu()).view(x.shape[0], *x.shape[2:], 1).permute(0, 3, 1, 2)

    images = torch.rand(3, 1, 4, 5, dtype=torch.float64).round()
    equals_the_parallel_pass(randomized(Rows()), images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("likelihood", "channels"), [("bernoulli", 6), ("categorical", 1), ("gaussian", 3)])
def test_half_precision_is_drawn_in_single_precision(dtype: torch.dtype, likelihood: str, channels: int) -> None:
    model = randomized(nn.Sequential(MaskedWeight("A", channels, 6, 3, padding=1)), gain=0.5).to(dtype)
    out = compile_sampler(model, (channels, 6, 6), likelihood)(8, verify=True)
    assert out.samples.dtype == dtype
    assert out.log_prob.dtype == torch.float32
    assert out.certificate.ok


def test_autocast_is_part_of_the_plan() -> None:
    model = randomized(Between(VOCABULARY["gate by slices"])).float()
    sampler = compile_sampler(model, (1, 6, 6), "bernoulli")
    images = torch.rand(2, 1, 6, 6).round()
    outside = sampler.decode(images)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        inside = sampler.decode(images)
        torch.testing.assert_close(inside, model(images), rtol=2e-2, atol=2e-2)
    assert inside.dtype == torch.bfloat16
    torch.testing.assert_close(sampler.decode(images), outside)


def test_calls_in_inference_mode_leave_later_calls_alone() -> None:
    sampler = compile_sampler(randomized(Between(VOCABULARY["shift down"])), (1, 5, 5), "bernoulli")
    with torch.inference_mode():
        first = sampler(3, seed=1).samples.clone()
    assert torch.equal(sampler(3, seed=1, verify=True).samples, first)


class Normalized(nn.Module):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        h = (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 0.1)
        return h / (h.norm(dim=1, keepdim=True) + 0.1)


@pytest.mark.parametrize("function", [nn.PReLU(), nn.PReLU(6), nn.LogSigmoid(), nn.Hardswish(), Normalized()])
def test_functions_that_are_taken_apart(function: nn.Module) -> None:
    model = randomized(nn.Sequential(MaskedWeight("A", 1, 6, 3, padding=1), function, nn.Conv2d(6, 1, 1)), gain=2.0)
    sampler = compile_sampler(model, (1, 4, 5), "bernoulli")
    assert torch.equal(sampler(5, seed=1, verify=True).samples, sampler.naive(5, seed=1).samples)
