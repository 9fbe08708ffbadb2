"""Two stochastic layers as one z: densities against a grid, every bound and estimator, evaluation, samples."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from fastvae import log_likelihood, objectives
from fastvae.distributions import Chained, DiagonalGaussian
from fastvae.evaluation import active_units
from fastvae.models import VAE, HierarchicalVAE

SHAPE = (1, 3, 4)
SMALL: dict[str, Any] = {"latent_sizes": (3, 2), "hidden_sizes": ((8,), (6,))}


def model(**options: Any) -> HierarchicalVAE:
    return HierarchicalVAE(SHAPE, **SMALL, **options)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_chain_is_the_product_of_its_layers(reverse: bool) -> None:
    net = nn.Linear(3, 2).double()
    first = DiagonalGaussian(torch.randn(4, 3).double(), torch.randn(4, 3).double())
    q = Chained(first, lambda a: DiagonalGaussian(net(a), torch.full((2,), -0.3).double()), 2, reverse=reverse)
    assert (q.batch_shape, q.event_shape, q.noise_size) == ((4,), (5,), 5)
    z, log_q = q.rsample_and_log_prob((6,))
    torch.testing.assert_close(q.log_prob(z), log_q)
    a, b = (z[..., 2:], z[..., :2]) if reverse else (z[..., :3], z[..., 3:])
    want = first.log_prob(a) + torch.distributions.Normal(net(a), math.exp(-0.3)).log_prob(b).sum(-1)
    torch.testing.assert_close(log_q, want)
    noise = torch.randn(6, 4, 5).double()
    z, log_q = q.from_noise(noise)
    torch.testing.assert_close(q.log_prob(z), log_q)
    with pytest.raises(ValueError, match=r"value must end in \(5,\)"):
        q.log_prob(torch.zeros(4))


def test_the_bound_is_that_of_layers_as_they_are_written_down() -> None:
    net, x = model(), (torch.rand(4, *SHAPE) < 0.5).float()
    z, log_q = net.proposal(x).rsample_and_log_prob((5,))
    z1, z2 = z.split([3, 2], dim=-1)
    upper, lower = net.encoder.upper(z1), net.encoder.lower(x)
    torch.testing.assert_close(log_q, lower.log_prob(z1) + upper.log_prob(z2))
    top = torch.distributions.Normal(0.0, 1.0).log_prob(z2).sum(-1)
    torch.testing.assert_close(net.prior().log_prob(z), top + net._prior.lower(z2).log_prob(z1))
    other = torch.cat([z1, torch.randn_like(z2)], -1)
    torch.testing.assert_close(net.likelihood(z).log_prob(x), net.likelihood(other).log_prob(x))


@pytest.mark.parametrize(
    ("prior", "proposal"),
    [
        ({"name": "mixture", "num_components": 5}, "full"),
        (
            {"name": "autoregressive", "hidden_features": [8]},
            {"name": "autoregressive", "hidden_features": [8], "context_features": 2},
        ),
    ],
)
def test_the_top_layer_has_any_prior_and_the_lower_one_any_proposal(prior: Any, proposal: Any) -> None:
    net, x = model(prior=prior, proposal=proposal), (torch.rand(4, *SHAPE) < 0.5).float()
    z, log_q = net.proposal(x).rsample_and_log_prob((5,))
    z1, z2 = z.split([3, 2], dim=-1)
    want = net.encoder.lower(x).log_prob(z1) + net.encoder.upper(z1).log_prob(z2)
    torch.testing.assert_close(log_q, want, rtol=1e-4, atol=1e-4)
    want = net._prior.top().log_prob(z2) + net._prior.lower(z2).log_prob(z1)
    torch.testing.assert_close(net.prior().log_prob(z), want)
    objectives.iwae(net, x, 6, estimator="dreg").mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    found = log_likelihood(x, net, num_samples=64, seed=1)
    assert found.log_prob.isfinite().all()
    drawn = net.prior().sample((2000,))
    torch.testing.assert_close(drawn[:, 3:].mean(0), net._prior.top().sample((2000,)).mean(0), rtol=0, atol=0.3)
    again = HierarchicalVAE(**net.config())
    again.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match=r"prior must be normal, mixture or autoregressive .* got vamp"):
        model(prior="vamp")


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
def test_it_trains_with_every_estimator_in_bounded_memory_and_evaluates(estimator: Any) -> None:
    net, x = model(), (torch.rand(5, *SHAPE) < 0.5).float()
    gradients = []
    for budget in (None, 3000):
        net.zero_grad()
        bound = objectives.iwae(net, x, 64, estimator=estimator, max_bytes=budget, seed=1)
        bound.sum().backward()
        gradients.append([p.grad for p in net.parameters()])
        assert all(grad is not None for grad in gradients[-1])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    found = log_likelihood(x, net, num_samples=64, seed=1)
    torch.testing.assert_close(found.log_prob.float(), bound.detach(), rtol=1e-4, atol=1e-3)
    assert 0 <= active_units(net, x) <= 5
    assert net.likelihood(net.prior().sample((7,))).sample().shape == (7, *SHAPE)


def test_active_units_of_proposals_without_a_mean_are_those_of_the_same_with_one() -> None:
    class Same(nn.Module):
        """The diagonal Gaussian of an encoder as a flow without steps."""

        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: torch.Tensor) -> Any:
            from fastvae.distributions import Flow

            return Flow(self.encoder(x), [])

    net, x = VAE(SHAPE, latent_size=4, hidden_sizes=(8,)), (torch.rand(60, *SHAPE) < 0.5).float()
    with torch.no_grad():
        net.encoder.net[-1].weight[:2] *= 3.0
        net.encoder.net[-1].weight[2:4] = 0.0
    assert active_units(net, x) == 2
    net.encoder = Same(net.encoder)
    assert active_units(net, x) == 2


def test_config_and_errors() -> None:
    net = model()
    again = HierarchicalVAE(**net.config())
    again.load_state_dict(net.state_dict())
    assert again.config() == net.config()
    x = (torch.rand(9, *SHAPE) < 0.3).float()
    net.start_at_marginals(x)
    torch.testing.assert_close(net.decoder.image.net[-1].bias, ((x.sum(0) + 0.5) / 10).logit().flatten())
    for options, says in (
        ({"latent_sizes": (3,)}, r"latent_sizes must be two.* got \(3,\)"),
        ({"hidden_sizes": ((8,),)}, "hidden_sizes must be two"),
        ({"latent_sizes": (3, 0)}, "latent_sizes must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=says):
            HierarchicalVAE(SHAPE, **SMALL | options)
    with pytest.raises(ValueError, match=r"z must have shape \(..., 5\), got \(3,\)"):
        net.likelihood(torch.zeros(3))
