"""Heads of 1x1 convolutions: the distribution of the convolution's output, and of use at the end of any decoder."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import fastvae
from fastvae.distributions import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ConvBernoulli,
    ConvCategorical,
    ConvGaussian,
    ConvLogisticMixture,
    LinearLogisticMixture,
    last_layers,
    likelihood_of_conv1x1,
)
from fastvae.ops import likelihood_rows, linear_operators, linear_rows

HEADS: list[tuple[Any, int, dict]] = [
    (ConvBernoulli, 2, {}),
    (ConvBernoulli, 9, {}),
    (ConvGaussian, 7, {}),
    (ConvGaussian, 5, {"scale": "pixel"}),
    (ConvGaussian, 7, {"scale": 0.5}),
    (ConvCategorical, 2, {"num_levels": 4}),
    (ConvLogisticMixture, 1, {"num_components": 3, "num_levels": 4}),
    (ConvLogisticMixture, 3, {"num_components": 2, "num_levels": 4}),
]


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small cases run as one operator, in several chunks."""
    monkeypatch.setattr(likelihood_rows, "FEW", 0)
    monkeypatch.setattr(last_layers, "_SMALL", 0)
    monkeypatch.setattr(linear_operators, "_KEPT", 0)
    monkeypatch.setattr(linear_rows, "_FEWEST_ROWS", 1)
    monkeypatch.setitem(linear_rows._CHUNK, "cpu", 30 * 24)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("head_type", "channels", "options"), HEADS)
def test_a_head_is_a_convolution_and_its_family(
    head_type: Any, channels: int, options: dict, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    head = head_type(6, channels, **options)
    torch.manual_seed(0)
    conv = nn.Conv2d(6, head.out_channels, 1)
    assert torch.equal(head.weight, conv.weight)
    assert torch.equal(head.bias, conv.bias)
    head.load_state_dict(conv.state_dict(), strict=False)
    h = torch.randn(15, 6, 3, 4).to(memory_format=memory_format).unflatten(0, (5, 3)).requires_grad_()
    x = torch.randint(0, 2, (3, channels, 3, 4)).float()
    got, want = head(h), head.family(conv(h.flatten(0, 1)).unflatten(0, (5, 3)))
    assert (got.batch_shape, got.event_shape) == (want.batch_shape, want.event_shape)
    grads = []
    for distribution in (got, want):
        value = distribution.log_prob(x)
        layer = head if distribution is got else conv
        leaves = [h, layer.weight, layer.bias, *head.family.parameters()]
        grads.append((value, *torch.autograd.grad((0.01 * value).sin().sum(), leaves)))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert ("formed" in vars(got)) == (head.out_channels <= 6)
    torch.testing.assert_close(got.mean, want.mean)
    torch.manual_seed(1)
    sample = got.sample((2,))
    torch.manual_seed(1)
    torch.testing.assert_close(sample, want.sample((2,)))
    torch.testing.assert_close(got.log_prob(x), want.log_prob(x))  # now from the parameters that exist


@pytest.mark.parametrize("batch", [(), (3,)])
def test_batches_of_any_number_of_dimensions(batch: tuple[int, ...]) -> None:
    head, x = ConvCategorical(2, 1, num_levels=4), torch.randint(0, 4, (1, 2, 2))
    h = torch.randn(*batch, 2, 2, 2)
    want = head.family(nn.functional.conv2d(h, head.weight, head.bias))
    torch.testing.assert_close(head(h).log_prob(x), want.log_prob(x))
    assert head(h).sample().shape == (*batch, 1, 2, 2)


class ForeignVAE(nn.Module):
    """As people write them: a convolutional decoder whose last layer gives logits, here that of the head."""

    def __init__(self, head: nn.Module, channels: int, last: list[nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
        self.to_mean, self.to_log_var = nn.Linear(4 * 4 * 4, 2), nn.Linear(4 * 4 * 4, 2)
        self.decoder = nn.Sequential(nn.Linear(2, 6 * 16), nn.ReLU(), *last)
        self.head = head

    def proposal(self, x: Tensor) -> Independent:
        h = self.encoder(x)
        return Independent(Normal(self.to_mean(h), (0.5 * self.to_log_var(h)).exp()), 1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        return self.head(self.decoder(z)).log_prob(x) + prior.log_prob(z)


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_foreign_decoders_train_and_are_evaluated(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 4, (3, 3, 8, 8)).float()
    if kind == "convolution":
        last: list[nn.Module] = [nn.Unflatten(-1, (6, 4, 4)), _Upsample()]
        model = ForeignVAE(ConvLogisticMixture(6, 3, num_components=2, num_levels=4), 3, last)
    else:
        model = ForeignVAE(LinearLogisticMixture(96, (3, 8, 8), num_components=2, num_levels=4), 3, [])
    z = model.proposal(x).rsample((5,))
    log_joint = model.log_joint(x, z)
    assert log_joint.shape == (5, 3)
    (-log_joint.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    result = fastvae.log_likelihood(x, proposal=model.proposal, log_joint=model.log_joint, num_samples=20, seed=0)
    params = nn.functional.linear if kind == "linear" else nn.functional.conv2d

    def plain(x: Tensor, z: Tensor) -> Tensor:
        h = model.decoder(z)
        lead = h.shape[:2]
        out = params(h.flatten(0, 1), model.head.weight, model.head.bias).view(*lead, 20, 8, 8)
        prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        return model.head.family(out).log_prob(x) + prior.log_prob(z)

    want = fastvae.log_likelihood(x, proposal=model.proposal, log_joint=plain, num_samples=20, seed=0)
    torch.testing.assert_close(result.log_prob, want.log_prob)


class _Upsample(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ConvBernoulli(4, 0), "num_channels must be at least 1"),
        (lambda: ConvBernoulli(4, 1)(torch.zeros(2, 3, 5, 5)), r"h must have shape \(..., 4, height, width\)"),
        (lambda: ConvLogisticMixture(4, 2), "1 or 3 channels"),
        (
            lambda: likelihood_of_conv1x1(
                BernoulliLikelihood(), torch.zeros(1, 4, 5, 5), torch.zeros(1, 4, 3, 3), None, 1
            ),
            r"weight must have shape \(P, H, 1, 1\)",
        ),
        (
            lambda: likelihood_of_conv1x1(
                CategoricalLikelihood(5), torch.zeros(1, 4, 5, 5), torch.zeros(9, 4), None, 2
            ),
            "weight must have 10 outputs",
        ),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
