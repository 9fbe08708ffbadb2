"""Conditions: vectors and maps, one for each image, evaluated once and not per step."""

import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import MaskedWeight, randomized
from torch import Tensor, nn

from fastvae import compile_sampler
from fastvae.models import PixelCNN, PixelVAE


class ByVector(nn.Module):
    """Labels or codes enter by a linear layer, as a bias and as a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MaskedWeight("A", 1, 6, 5, padding=2), MaskedWeight("B", 6, 6, 3, padding=1)
        self.bias, self.gate, self.last = nn.Linear(3, 6), nn.Linear(3, 6, bias=False), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        bias = self.bias(z).view(z.size(0), 6, 1, 1)
        h = torch.tanh(self.first(x) + bias.expand(-1, -1, x.shape[2], x.shape[3]))
        return self.last(self.second(h) * torch.sigmoid(self.gate(z))[:, :, None, None])


class ByMap(nn.Module):
    """A small picture is upsampled, convolved without any mask, and joined to the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 4, 2, stride=2)
        self.first, self.second = MaskedWeight("A", 1, 6, 3, padding=1), MaskedWeight("B", 10, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor, picture: Tensor) -> Tensor:
        maps = F.relu(self.up(picture))
        h = torch.cat([self.first(x), maps + maps.mean((2, 3), keepdim=True)], 1)
        return self.last(F.elu(self.second(h)))


@pytest.mark.parametrize(("network", "shape"), [(ByVector, (3,)), (ByMap, (2, 3, 4))])
@pytest.mark.parametrize("num_samples", [1, 2, 5])
def test_conditioned_samples_are_those_of_naive_sampling(
    network: type, shape: tuple[int, ...], num_samples: int
) -> None:
    model = randomized(network(), gain=2.0)
    sampler = compile_sampler(model, (1, 6, 8), "bernoulli", condition_shape=shape)
    condition = torch.randn(num_samples, *shape, dtype=torch.float64)
    for turn in (1, -2):  # the second call must not see the condition of the first
        ours = sampler(num_samples, condition=turn * condition, verify=True)
        naive = sampler.naive(num_samples, condition=turn * condition)
        assert torch.equal(ours.samples, naive.samples)
        torch.testing.assert_close(ours.log_prob, naive.log_prob)


def test_each_image_has_its_own_condition_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomized(ByVector(), gain=2.0)
    condition = torch.randn(7, 3, dtype=torch.float64)
    sampler = compile_sampler(model, (1, 6, 6), "bernoulli", example_condition=condition)
    whole = sampler(7, condition=condition)
    monkeypatch.setattr("fastvae.sampling.engine._MOST_CACHE_BYTES", 3 * sampler.plan.cache_bytes)
    parts = sampler(7, condition=condition, verify=True)
    assert torch.equal(parts.samples, whole.samples)
    one = sampler(1, condition=condition[4:5], first_id=4)
    assert torch.equal(one.samples, whole.samples[4:5])


def test_decoding_takes_a_condition() -> None:
    model = randomized(ByMap())
    images = torch.rand(3, 1, 6, 8, dtype=torch.float64).round()
    condition = torch.randn(3, 2, 3, 4, dtype=torch.float64)
    sampler = compile_sampler(model, (1, 6, 8), "bernoulli", condition_shape=(2, 3, 4))
    with torch.no_grad():
        want = model(images, condition)
    torch.testing.assert_close(sampler.decode(images, condition), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["bernoulli", {"name": "categorical", "num_levels": 5}, "gaussian"])
def test_our_pixelcnn_and_pixelvae_need_no_further_arguments(likelihood: str | dict[str, object]) -> None:
    torch.manual_seed(0)
    net = PixelCNN((2, 6, 5), likelihood, channels=8, num_blocks=2)
    out = compile_sampler(net)(4, verify=True)
    assert out.certificate.ok
    if likelihood != "gaussian":  # trained values are dequantised there; any real number is a sample
        torch.testing.assert_close(net.log_prob(out.samples), out.log_prob, rtol=1e-4, atol=1e-4)
    model = PixelVAE((1, 8, 8), likelihood, latent_size=3, channels=8, num_blocks=1)
    z = torch.randn(4, 3)
    out = compile_sampler(model, condition_shape=(3,))(4, condition=z, verify=True)
    assert out.certificate.ok
    assert out.samples.shape == (4, 1, 8, 8)


def test_our_models_draw_from_a_logistic_mixture() -> None:
    family = {"name": "logistic_mixture", "num_components": 3, "num_levels": 17}
    model = PixelVAE((1, 6, 5), family, latent_size=3, channels=8, num_blocks=1)
    out = compile_sampler(model)(20, condition=torch.randn(20, 3), verify=True)
    assert out.certificate.ok
    net = PixelCNN((1, 6, 5), family, channels=8, num_blocks=1)
    sampler = compile_sampler(net)
    out = sampler(20, seed=1)
    assert torch.equal(out.samples, sampler.naive(20, seed=1).samples)
    torch.testing.assert_close(net.log_prob(out.samples), out.log_prob, rtol=1e-4, atol=1e-4)
    colours = PixelCNN((3, 4, 4), family, channels=8, num_blocks=1)
    out = compile_sampler(colours)(20, verify=True)
    torch.testing.assert_close(colours.log_prob(out.samples), out.log_prob, rtol=1e-4, atol=1e-4)
    assert out.certificate.ok


def test_a_learned_scale_is_read_at_every_call() -> None:
    torch.manual_seed(0)
    net = PixelCNN((1, 5, 5), "gaussian", channels=4, num_blocks=1)
    sampler = compile_sampler(net)
    before = sampler(50).samples.std()
    with torch.no_grad():
        net.family.log_scale.add_(2.0)
    out = sampler(50, verify=True)
    assert out.samples.std() > 5 * before
    naive = sampler.naive(50)
    torch.testing.assert_close(out.log_prob, naive.log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("condition", "says"),
    [(None, "condition is missing"), (torch.zeros(4, 2), r"condition must have shape \(4, 3\), got \(4, 2\)")],
)
def test_a_wrong_condition_is_an_error(condition: Tensor | None, says: str) -> None:
    sampler = compile_sampler(ByVector(), (1, 4, 4), "bernoulli", condition_shape=(3,))
    with pytest.raises(ValueError, match=says):
        sampler(4, condition=condition)


def test_a_condition_that_is_no_tensor_is_an_error() -> None:
    sampler = compile_sampler(ByVector(), (1, 4, 4), "bernoulli", condition_shape=(3,))
    with pytest.raises(TypeError, match=r"condition must be a torch\.Tensor, got list"):
        sampler(1, condition=[[0.0, 0.0, 0.0]])


def test_an_unexpected_condition_is_an_error() -> None:
    sampler = compile_sampler(MaskedWeight("A", 1, 1, 3, padding=1), (1, 4, 4), "bernoulli")
    with pytest.raises(ValueError, match="without a condition"):
        sampler(4, condition=torch.zeros(4, 3))
