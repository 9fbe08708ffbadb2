"""Bounds in two passes on a card: backward runs in a thread of its own, with the noise and the backend of forward."""

import pytest
import torch
from torch import Tensor, nn

import fastvae
from fastvae.models import VAE
from fastvae.objectives import iwae

pytestmark = pytest.mark.gpu


@pytest.fixture
def model() -> VAE:
    return VAE((1, 8, 8), latent_size=4, hidden_sizes=(16,)).cuda()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 1, 8, 8).round().cuda()


@pytest.mark.parametrize("estimator", ["iwae", "dreg", "stl"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_chunks_give_the_gradient_of_one_graph(estimator: str, backend: str, model: VAE, x: Tensor) -> None:
    found = []
    with fastvae.backend(backend):
        for max_bytes in (None, 2**16):
            bound = iwae(model, x, 300, estimator=estimator, seed=1, max_bytes=max_bytes)
            found.append([bound.detach(), *torch.autograd.grad(bound.sum(), list(model.parameters()))])
    for two, one in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3)


def test_dropout_is_replayed_and_the_random_state_moves_on(model: VAE, x: Tensor) -> None:
    model.decoder.net.insert(2, nn.Dropout(0.5))
    first, second = (iwae(model, x, 300, seed=1, max_bytes=2**16) for _ in range(2))
    assert not torch.equal(first, second)  # masks of their own
    state = torch.cuda.get_rng_state()
    second.sum().backward()  # raises if the masks of the second pass were others
    assert torch.equal(state, torch.cuda.get_rng_state())


def test_memory_does_not_grow_with_the_samples() -> None:
    model, x = VAE((1, 28, 28)).cuda(), torch.zeros(20, 1, 28, 28, device="cuda")
    peaks = []
    for num_samples in (2000, 8000):
        torch.cuda.reset_peak_memory_stats()
        iwae(model, x, num_samples, estimator="dreg", max_bytes=2**26).mean().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 1.1 * peaks[0]
