"""Proposals: densities of their own draws, addressed noise, every estimator, learning what is not Gaussian."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.distributions.transforms import AffineTransform, TanhTransform

from fastvae import log_likelihood, objectives
from fastvae.distributions import AutoregressiveGaussian, DiagonalGaussian, Flow, FullProposal, Proposal, as_proposal
from fastvae.models import VAE, PixelVAE

SHAPE = (1, 3, 4)
SMALL: dict[str, Any] = {"latent_size": 3, "hidden_sizes": (8,)}
PROPOSALS: dict[str, Any] = {
    "diagonal": "diagonal",
    "full": "full",
    "planar": {"name": "planar", "num_flows": 2},
    "coupling": {"name": "coupling", "num_flows": 2, "hidden_features": [8], "context_features": 2},
    "iaf": {"name": "iaf", "num_flows": 2, "hidden_features": [8], "context_features": 2},
    "autoregressive": {"name": "autoregressive", "hidden_features": [8], "context_features": 2},
    "iaf, no gate, one order": {
        "name": "iaf",
        "hidden_features": [8],
        "context_features": 2,
        "gate_bias": None,
        "reverse": False,
    },
}


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


@pytest.mark.parametrize("name", PROPOSALS)
def test_draws_have_the_density_of_the_distribution(name: str) -> None:
    family = as_proposal(PROPOSALS[name], 3).double()
    randomised(family)
    q = family(torch.randn(6, family.num_params).double())
    assert (q.batch_shape, q.event_shape, q.noise_size) == ((6,), (3,), 3)
    z, log_q = q.rsample_and_log_prob((5,))
    torch.testing.assert_close(q.log_prob(z), log_q, rtol=1e-6, atol=1e-5)
    noise = torch.randn(5, 6, 3).double()
    z, log_q = q.from_noise(noise)
    jacobian = torch.autograd.functional.jacobian(lambda u: q.from_noise(u)[0], noise)
    assert isinstance(jacobian, Tensor)
    log_det = torch.linalg.slogdet(jacobian[2, 4, :, 2, 4])[1]
    want = DiagonalGaussian(torch.zeros(3).double(), torch.zeros(3).double()).log_prob(noise[2, 4]) - log_det
    torch.testing.assert_close(log_q[2, 4], want)
    others = jacobian[2, 4].clone()
    others[:, 2, 4] = 0
    assert not others.any()  # a draw depends on its own noise alone


@pytest.mark.parametrize("name", ["coupling", "iaf", "iaf, no gate, one order", "autoregressive"])
def test_a_new_flow_is_the_gaussian_of_the_encoder(name: str) -> None:
    family = as_proposal(PROPOSALS[name], 3).double()
    params, noise = torch.randn(6, family.num_params).double(), torch.randn(5, 6, 3).double()
    want = DiagonalGaussian(params[:, :3], params[:, 3:6]).from_noise(noise)
    torch.testing.assert_close(family(params).from_noise(noise), want)


def test_the_autoregressive_proposal_is_the_autoregressive_gaussian_of_the_same_network() -> None:
    family = randomised(as_proposal(PROPOSALS["autoregressive"], 3)).double()
    params, noise = torch.randn(6, family.num_params).double(), torch.randn(5, 6, 3).double()
    q = family(params)
    assert type(q) is AutoregressiveGaussian
    z, log_q = q.from_noise(noise)
    by_hand = torch.zeros_like(noise)
    for _ in range(3):  # a pass of the network for every dimension
        loc, log_scale = family.net(by_hand, params).unbind(-1)
        by_hand = loc + log_scale.exp() * noise
    torch.testing.assert_close(z, by_hand)
    torch.testing.assert_close(log_q, torch.distributions.Normal(loc, log_scale.exp()).log_prob(z).sum(-1))


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize("build", [VAE, PixelVAE])
def test_every_proposal_trains_with_every_estimator_and_evaluates(name: str, build: Any) -> None:
    options = {"channels": 4, "num_blocks": 1, "first_kernel_size": 3} if build is PixelVAE else {}
    model = build(SHAPE, **SMALL, **options, proposal=PROPOSALS[name])
    x = (torch.rand(5, *SHAPE) < 0.5).float()
    for bound in (
        objectives.elbo(model, x),
        *(objectives.iwae(model, x, 3, estimator=estimator) for estimator in ("iwae", "stl", "dreg")),
        *([objectives.iwae(model, x, 30, estimator="dreg", max_bytes=2000, seed=1)] if build is VAE else []),
    ):
        model.zero_grad()
        bound.mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())
    found = log_likelihood(x, model, num_samples=30, seed=1)
    want = objectives.iwae(model, x, 30, seed=1)
    torch.testing.assert_close(found.log_prob.float(), want, rtol=1e-3, atol=1e-3)
    again = build(**model.config())
    again.load_state_dict(model.state_dict())
    noise = torch.randn(2, 5, 3)
    torch.testing.assert_close(again.proposal(x).from_noise(noise), model.proposal(x).from_noise(noise))


def test_a_full_gaussian_has_the_analytic_kl_and_the_covariance_of_its_parameters() -> None:
    model = VAE(SHAPE, **SMALL, proposal="full").double()
    x = (torch.rand(4, *SHAPE) < 0.5).double()
    torch.manual_seed(1)
    exact = objectives.elbo(model, x, 5000, analytic_kl=True)
    torch.manual_seed(1)
    estimate = objectives.elbo(model, x, 5000, analytic_kl=False)
    torch.testing.assert_close(exact, estimate, rtol=0, atol=0.1)
    params = torch.tensor([[1.0, 2.0, 0.0, 0.5, 3.0]])
    q = FullProposal(2)(params)
    tril = torch.tensor([[1.0, 0.0], [3.0, torch.tensor(0.5).exp()]])
    torch.testing.assert_close(q.covariance_matrix[0], tril @ tril.T)


@pytest.mark.parametrize("name", ["full", "planar", "iaf", "autoregressive"])
def test_flows_fit_what_a_diagonal_gaussian_cannot(name: str) -> None:
    """A banana, z1 ~ N(0, 1), z2 ~ N(z1^2 - 1, 0.3^2); for the full covariance a tilted Gaussian."""

    def log_p(z: Tensor) -> Tensor:
        middle = z[..., 0] if name == "full" else z[..., 0].square() - 1
        return -0.5 * z[..., 0].square() - 0.5 * ((z[..., 1] - middle) / 0.3).square()

    bounds = {}
    for kind in ("diagonal", name):
        torch.manual_seed(3)
        options = {"num_flows": 8} if kind == "planar" else {}
        family = as_proposal({"name": kind, **options}, 2)
        params = nn.Parameter(0.1 * torch.randn(1, family.num_params))
        adam = torch.optim.Adam([params, *family.parameters()], lr=0.02)
        for step in range(250):
            adam.zero_grad()
            z, log_q = family(params).rsample_and_log_prob((128 if step < 240 else 4000,))
            bound = (log_p(z) - log_q).mean()
            (-bound).backward()
            adam.step()
        bounds[kind] = bound.item()
    assert bounds[name] > bounds["diagonal"] + (0.08 if name == "planar" else 0.3), bounds  # planar steps learn slowly


def test_an_encoder_of_ones_own_is_taken_as_it_is() -> None:
    encoder = nn.Linear(12, 6)
    model = VAE(SHAPE, **SMALL, proposal=lambda x: DiagonalGaussian(*encoder(x.flatten(1)).chunk(2, -1)))
    x = torch.zeros(4, *SHAPE)
    assert kl_divergence(model.proposal(x), model.prior()).shape == (4,)
    with pytest.raises(TypeError, match="proposal is a function, which config"):
        model.config()


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("gauss", ValueError, "proposal must be one of .* got 'gauss'"),
        (None, TypeError, "proposal must be a name or a config with a name, got None"),
        ({"name": "planar", "flows": 3}, TypeError, r"has options \['num_flows'\], got \['flows'\]"),
        (FullProposal(4), ValueError, "proposal must have latent_size 3, got 4"),
        ({"name": "iaf", "num_flows": 0}, ValueError, "num_flows must be a positive integer, got 0"),
        ({"name": "iaf", "hidden_features": [0]}, ValueError, "hidden_features must be a positive integer, got 0"),
    ],
)
def test_bad_proposals_say_what_is_wrong(value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        as_proposal(value, 3)


def test_a_conditional_flow_of_zuko_is_a_proposal() -> None:
    flow = zuko.flows.MAF(3, context=12, transforms=1, hidden_features=(8,))
    model, x = VAE(SHAPE, **SMALL, proposal=lambda x: flow(x.flatten(1))), (torch.rand(4, *SHAPE) < 0.5).float()
    objectives.iwae(model, x, 3, modules=[flow]).mean().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())
    assert log_likelihood(x, model, num_samples=20, modules=[flow]).log_prob.shape == (4,)


def test_transforms_of_torch_and_zuko_after_the_gaussian_of_an_encoder_are_a_proposal() -> None:
    spline = zuko.transforms.MonotonicRQSTransform(torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 7))
    for transforms in ([TanhTransform(), AffineTransform(torch.zeros(3), 4.0)], [spline]):
        net = nn.Linear(12, 6)

        def encoder(x: Tensor, net: nn.Linear = net, transforms: Any = transforms) -> Flow:
            return Flow(DiagonalGaussian(*net(x.flatten(1)).chunk(2, -1)), transforms)

        model = VAE(SHAPE, **SMALL, proposal=encoder)
        x = (torch.rand(4, *SHAPE) < 0.5).float()
        objectives.iwae(model, x, 3, modules=[net]).mean().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
        found = log_likelihood(x, model, num_samples=30, seed=1, modules=[net])
        assert found.log_prob.isfinite().all()


def test_a_family_of_ones_own_ends_the_encoder() -> None:
    class Narrow(Proposal):
        name = "narrow"
        num_params = 3

        def forward(self, params: Tensor) -> DiagonalGaussian:
            return DiagonalGaussian(params, torch.full_like(params, -3.0))

    model = VAE(SHAPE, **SMALL, proposal=Narrow(3))
    assert model.proposal(torch.zeros(4, *SHAPE)).stddev.max() < 0.06
    assert isinstance(SimpleNamespace(**model.config()).proposal, dict)
