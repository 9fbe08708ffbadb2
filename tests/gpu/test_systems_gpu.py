"""Priors, proposals and autoregressive models on a card: trained, evaluated, sampled, as on the CPU."""

import copy
from typing import Any

import pytest
import torch

from fastvae import log_likelihood
from fastvae.models import NADE, VAE, GatedPixelCNN, HierarchicalVAE, OrderedPixelCNN
from fastvae.objectives import elbo

pytestmark = pytest.mark.gpu

SHAPE = (1, 5, 6)
SMALL: dict[str, Any] = {"latent_size": 3, "hidden_sizes": (8,)}
PARTS = [
    *({"prior": {"name": "mixture", "num_components": 5}}, {"prior": {"name": "vamp", "num_components": 4}}),
    *({"prior": "autoregressive"}, {"proposal": "full"}, {"proposal": "planar"}, {"proposal": "coupling"}),
    *({"proposal": "iaf"}, {"proposal": "autoregressive"}),
]


@pytest.mark.parametrize("parts", [*PARTS, None], ids=str)
def test_latent_variable_models(parts: Any) -> None:
    if parts is None:
        model: Any = HierarchicalVAE(SHAPE, latent_sizes=(3, 2), hidden_sizes=((8,), (6,)))
    else:
        model = VAE(SHAPE, **SMALL, **parts)
    x = torch.rand(4, *SHAPE).round()
    want = log_likelihood(x, model, num_samples=50, seed=1).log_prob
    model.cuda()
    elbo(model, x.cuda()).mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    found = log_likelihood(x.cuda(), model, num_samples=50, seed=1).log_prob
    torch.testing.assert_close(found.cpu(), want, rtol=1e-3, atol=1e-2)
    with torch.no_grad():
        assert model.likelihood(model.prior().sample((7,))).sample().shape == (7, *SHAPE)


@pytest.mark.parametrize(
    "build",
    [
        lambda: NADE(SHAPE, hidden_features=8, order="random", num_orders=2),
        lambda: OrderedPixelCNN(SHAPE, channels=8, num_blocks=1, order="s_curve", num_orders=2),
        lambda: GatedPixelCNN(SHAPE, channels=8, num_blocks=1),
    ],
)
def test_autoregressive_models(build: Any) -> None:
    model, x = build(), torch.rand(4, *SHAPE).round()
    card = copy.deepcopy(model).cuda()
    torch.testing.assert_close(card.log_prob(x.cuda()).cpu(), model.log_prob(x), rtol=1e-3, atol=1e-2)
    card.log_prob(x.cuda()).mean().backward()
    if not isinstance(model, GatedPixelCNN):
        assert card.sample(5, seed=1).shape == (5, *SHAPE)
