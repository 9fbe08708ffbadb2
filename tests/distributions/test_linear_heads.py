"""Heads and the VAE's decoder: the distribution of the layer's output, whose log_prob forms no more than a chunk."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastvae
from fastvae.distributions import (
    ConvGaussian,
    LinearBernoulli,
    LinearCategorical,
    LinearGaussian,
    LinearLogisticMixture,
)
from fastvae.models import VAE
from fastvae.ops import likelihood_rows, linear_operators, linear_rows

SHAPE = (2, 3, 4)
HEADS: list[tuple[Any, dict]] = [
    (LinearBernoulli, {}),
    (LinearGaussian, {}),
    (LinearGaussian, {"scale": "pixel"}),
    (LinearGaussian, {"scale": 0.5}),
    (LinearCategorical, {"num_levels": 2}),
    (LinearLogisticMixture, {"num_components": 2, "num_levels": 4}),
]
FAMILIES = [
    "bernoulli",
    "gaussian",
    {"name": "gaussian", "scale": "pixel"},
    {"name": "categorical", "num_levels": 2},
]


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small cases run as one operator, in chunks of 20 rows at most."""
    monkeypatch.setattr(likelihood_rows, "FEW", 0)
    monkeypatch.setattr(linear_operators, "_KEPT", 0)
    monkeypatch.setattr(linear_rows, "_FEWEST_ROWS", 1)
    monkeypatch.setitem(linear_rows._CHUNK, "cpu", 20 * 24)


@pytest.mark.parametrize(("head_type", "options"), HEADS)
def test_a_head_is_a_linear_layer_and_its_family(head_type: Any, options: dict) -> None:
    torch.manual_seed(0)
    channels = 3 if head_type is LinearLogisticMixture else 2
    head = head_type(6, (channels, 3, 4), **options)
    torch.manual_seed(0)
    linear = nn.Linear(6, head.out_features)
    assert torch.equal(head.weight, linear.weight)
    assert torch.equal(head.bias, linear.bias)
    head.load_state_dict(linear.state_dict(), strict=False)
    h, x = torch.randn(5, 3, 6), torch.randint(0, 2, (3, channels, 3, 4)).float()
    got, params = head(h), linear(h).unflatten(-1, (head.family.num_maps(channels), 3, 4))
    want = head.family(params)
    assert (got.batch_shape, got.event_shape) == (want.batch_shape, want.event_shape)
    grads = []
    for distribution in (got, want):
        value = distribution.log_prob(x)
        leaves = list(head.family.parameters())
        weight = head.weight if distribution is got else linear.weight
        grads.append((value, *torch.autograd.grad(value.sum(), [weight, *leaves])))
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(got.mean, want.mean)
    torch.manual_seed(1)
    sample = got.sample((2,))
    torch.manual_seed(1)
    torch.testing.assert_close(sample, want.sample((2,)))
    torch.testing.assert_close(got.log_prob(x), want.log_prob(x))  # now from the parameters that exist


class Largest(TorchDispatchMode):
    """The most elements of a floating point tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_decoder_forms_no_more_parameters_than_a_chunk(family: Any) -> None:
    torch.manual_seed(0)
    model = VAE(SHAPE, family, latent_size=2, hidden_sizes=(5,))
    x, z = torch.randint(0, 2, (3, *SHAPE)).float(), torch.randn(100, 3, 2)
    with Largest() as largest:
        ours = model.likelihood(z).log_prob(x)
    assert largest.elements <= 300 * 5  # the hidden layer, against 300 x 24 values
    plain = model.family(model.decoder.net(z).unflatten(-1, model.decoder.params_shape)).log_prob(x)
    torch.testing.assert_close(ours, plain)
    evaluated = [fastvae.log_likelihood(x, model, num_samples=300, max_bytes=m).log_prob for m in (10_000, 10**6)]
    torch.testing.assert_close(*evaluated)


def hook(net: nn.Sequential) -> list:
    calls: list = []
    net[-1].register_forward_hook(lambda *_: calls.append(1))
    return calls


def weight_norm(net: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(net[-1])


def hook_of_net(net: nn.Sequential) -> list:
    calls: list = []
    net.register_forward_hook(lambda *_: calls.append(1))
    return calls


def other_layer(net: nn.Sequential) -> None:
    net[-1] = nn.Sequential(net[-1])


@pytest.mark.parametrize("change", [hook, weight_norm, hook_of_net, other_layer])
def test_what_stands_between_layer_and_output_is_not_passed_by(change: Any) -> None:
    torch.manual_seed(0)
    model = VAE(SHAPE, "bernoulli", latent_size=2, hidden_sizes=(5,))
    x, z = torch.ones(3, *SHAPE), torch.randn(4, 3, 2)
    want = model.likelihood(z).log_prob(x)
    calls = change(model.decoder.net)
    assert model.decoder._last_layer() is None
    torch.testing.assert_close(model.likelihood(z).log_prob(x), want)
    assert calls is None or len(calls) == 1


def test_copies_and_other_dtypes_follow() -> None:
    model = copy.deepcopy(VAE(SHAPE, "bernoulli", latent_size=2, hidden_sizes=(5,))).double()
    assert list(model.decoder.state_dict()) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    z = torch.randn(4, 2, dtype=torch.float64)
    assert model.likelihood(z).log_prob(torch.ones(SHAPE)).dtype == torch.float64


@pytest.mark.parametrize("shape", [(3,), (1, 0, 3)])
def test_bad_event_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="event_shape must be three positive integers"):
        LinearBernoulli(6, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fixed_scale_has_the_digits_of_the_layer(dtype: torch.dtype) -> None:
    for head in (LinearGaussian(4, SHAPE, scale=0.3, dtype=dtype), ConvGaussian(4, 2, scale=0.3, dtype=dtype)):
        assert torch.equal(head.family.log_scale, torch.tensor(math.log(0.3), dtype=dtype))
