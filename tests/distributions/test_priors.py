"""Priors and mixtures: known densities, draws of what is trained, other people's distributions, learning."""

from typing import Any

import pytest
import torch
import zuko
from torch import nn
from torch.distributions import AffineTransform, Categorical, Independent, MixtureSameFamily, Normal
from torch.distributions import TransformedDistribution as Transformed

from fastvae import log_likelihood, objectives
from fastvae.distributions import (
    AutoregressivePrior,
    DiagonalGaussian,
    FullGaussian,
    Mixture,
    MixturePrior,
    StandardNormal,
    VampPrior,
    as_prior,
)
from fastvae.models import VAE, PixelVAE

SHAPE = (1, 3, 4)
SMALL: dict[str, Any] = {"latent_size": 3, "hidden_sizes": (8,)}
PRIORS: dict[str, Any] = {
    "normal": "normal",
    "mixture": {"name": "mixture", "num_components": 5},
    "vamp": {"name": "vamp", "num_components": 4},
    "autoregressive": {"name": "autoregressive", "num_flows": 2, "hidden_features": [8]},
}


def test_a_mixture_of_gaussians_is_torchs() -> None:
    loc, scale, logits = 3 * torch.randn(6, 4).double(), torch.rand(6, 4).double(), torch.randn(6).double()
    ours = Mixture(DiagonalGaussian(loc, scale.log()), logits)
    theirs = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(loc, scale), 1))
    z = 3 * torch.randn(7, 5, 4).double()
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.mean, theirs.mean)
    equal = Mixture(DiagonalGaussian(loc, scale.log()))
    torch.testing.assert_close(equal.log_prob(z), Mixture(ours.components, torch.zeros(6).double()).log_prob(z))


def test_components_far_out_and_narrow_do_not_cancel() -> None:
    loc, log_scale = 100 * torch.randn(5, 3), torch.full((5, 3), -5.0)
    z = loc + log_scale.exp() * torch.randn(5, 3)
    wide = Independent(Normal(loc.double(), log_scale.double().exp()), 1)
    want = MixtureSameFamily(Categorical(torch.ones(5)), wide).log_prob(z.double())
    got = Mixture(DiagonalGaussian(loc, log_scale)).log_prob(z)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_draws_of_a_mixture_have_its_moments(full: bool, weighted: bool) -> None:
    loc = torch.tensor([[-2.0, 0.0], [3.0, 1.0]])
    tril = torch.tensor([[0.5, 0.0], [0.3, 1.0]])
    components = FullGaussian(loc, tril.expand(2, 2, 2)) if full else DiagonalGaussian(loc, torch.zeros(2, 2))
    weights = torch.tensor([0.2, 0.8])
    mixture = Mixture(components, weights.log() + 1.0 if weighted else None)
    z = mixture.sample((20_000,))
    torch.testing.assert_close(z.mean(0), mixture.mean, atol=0.08, rtol=0)
    share = (z[:, 0] > 0.5).float().mean()
    torch.testing.assert_close(share, torch.tensor(0.8 if weighted else 0.5), atol=0.03, rtol=0)
    mixture.sample()


def test_a_full_gaussian_is_torchs_with_draws_from_noise() -> None:
    tril = torch.randn(6, 3, 3).double().tril(-1) + torch.diag_embed(torch.rand(6, 3).double() + 0.1)
    q = FullGaussian(torch.randn(6, 3).double(), tril)
    noise = torch.randn(5, 6, 3).double()
    z, log_q = q.from_noise(noise)
    torch.testing.assert_close(z[2, 1], q.loc[1] + tril[1] @ noise[2, 1])
    torch.testing.assert_close(log_q, q.log_prob(z))
    assert q.expand((2, 6)).log_prob(z[:2]).shape == (2, 6)
    p = DiagonalGaussian(torch.randn(3).double(), torch.randn(3).double())
    theirs = torch.distributions.MultivariateNormal(p.loc, torch.diag_embed(p.variance))
    want = torch.distributions.kl_divergence(torch.distributions.MultivariateNormal(q.loc, scale_tril=tril), theirs)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, p), want)
    with pytest.raises(ValueError, match=r"\(\.\.\., d\) and \(\.\.\., d, d\), got \(6, 3\) and \(6, 3\)"):
        FullGaussian(q.loc, q.loc)


def test_an_autoregressive_prior_starts_standard_and_draws_what_it_trains() -> None:
    prior = AutoregressivePrior(3, hidden_features=(8,)).double()
    z = torch.randn(5, 3).double()
    torch.testing.assert_close(prior().log_prob(z), StandardNormal(3).double()().log_prob(z))
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.4)
    z, log_r = prior().rsample_and_log_prob((50,))
    torch.testing.assert_close(prior().log_prob(z), log_r, rtol=1e-8, atol=1e-8)
    jacobian = torch.autograd.functional.jacobian(lambda z: prior.flows[0]().to_noise(z)[0], z[0].detach())
    assert torch.equal(jacobian != 0, torch.ones(3, 3).tril() != 0)


def test_a_vampprior_is_the_mixture_of_the_models_own_proposals() -> None:
    model = VAE(SHAPE, {"name": "categorical", "num_levels": 5}, **SMALL, prior=PRIORS["vamp"]).double()
    prior = model._prior
    assert isinstance(prior, VampPrior)
    with torch.no_grad():
        prior.pseudo_inputs[0] += 3.0  # clamped to the range of the data
    pseudo = 4 * prior.pseudo_inputs.clamp(0, 1)
    assert pseudo.max() == 4
    z = torch.randn(7, 3).double()
    want = torch.stack([model.proposal(u[None]).log_prob(z) for u in pseudo]).logsumexp(0) - torch.tensor(4.0).log()
    torch.testing.assert_close(model.prior().log_prob(z), want)
    assert [name for name in model.state_dict() if "prior" in name] == ["_prior.pseudo_inputs"]
    with pytest.raises(TypeError, match="call it as prior"):
        prior()


class ZukoPrior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flow = zuko.flows.MAF(3, transforms=1, hidden_features=(8,))

    def forward(self) -> Any:
        return self.flow()


OTHERS: dict[str, Any] = {
    "torch": lambda: Independent(Normal(torch.zeros(3), torch.ones(3)), 1),
    "torch mixture": lambda: MixtureSameFamily(
        Categorical(torch.ones(2)), Independent(Normal(torch.randn(2, 3), torch.ones(2, 3)), 1)
    ),
    "zuko": lambda: zuko.flows.MAF(3, transforms=1, hidden_features=(8,)),
    "zuko in a module": ZukoPrior,
    "torch, transformed": lambda: Transformed(
        Independent(Normal(torch.zeros(3), torch.ones(3)), 1), [AffineTransform(1.0, 2.0, event_dim=1)]
    ),
}


@pytest.mark.parametrize(
    ("name", "build"), [*((name, VAE) for name in [*PRIORS, *OTHERS]), ("autoregressive", PixelVAE)]
)
def test_every_prior_trains_evaluates_and_samples(name: str, build: Any) -> None:
    options = {"channels": 4, "num_blocks": 1, "first_kernel_size": 3} if build is PixelVAE else {}
    model = build(SHAPE, **SMALL, **options, prior=PRIORS[name] if name in PRIORS else OTHERS[name]())
    x = (torch.rand(5, *SHAPE) < 0.5).float()
    objectives.elbo(model, x).mean().backward()
    learned = [p for n, p in model.named_parameters() if n.startswith("_prior") and p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned)
    bounds = []
    for budget in (None, 2000):
        model.zero_grad()
        bound = objectives.iwae(model, x, 64, estimator="dreg", max_bytes=budget, seed=1)
        bound.sum().backward()
        bounds.append([bound.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, two in zip(*bounds, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    found = log_likelihood(x, model, num_samples=64, seed=1)
    torch.testing.assert_close(found.log_prob.float(), bounds[0][0], rtol=1e-3, atol=1e-3)
    assert model.prior().sample((6,)).shape == (6, 3)


@pytest.mark.parametrize("name", PRIORS)
def test_models_are_rebuilt_from_their_config(name: str) -> None:
    model = VAE(SHAPE, **SMALL, prior=PRIORS[name])
    again = VAE(**model.config())
    again.load_state_dict(model.state_dict())
    z = torch.randn(4, 3)
    torch.testing.assert_close(again.prior().log_prob(z), model.prior().log_prob(z))


def test_a_mixture_prior_learns_two_clusters() -> None:
    prior = MixturePrior(1, num_components=4)
    data = torch.cat([torch.randn(200, 1) * 0.2 - 2, torch.randn(200, 1) * 0.2 + 2])
    adam = torch.optim.Adam(prior.parameters(), lr=0.1)
    for _ in range(150):
        adam.zero_grad()
        (-prior().log_prob(data).mean()).backward()
        adam.step()
    exact = Mixture(DiagonalGaussian(torch.tensor([[-2.0], [2.0]]), torch.full((2, 1), 0.2).log())).log_prob(data)
    assert prior().log_prob(data).mean() > exact.mean() - 0.05


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("uniform", ValueError, "prior must be one of .* got 'uniform'"),
        (3, TypeError, "prior must be a name or a config with a name, got 3"),
        ({"name": "mixture", "size": 3}, TypeError, r"has options \['num_components'\], got \['size'\]"),
        (StandardNormal(4), ValueError, "prior must have latent_size 3, got 4"),
        ({"name": "mixture", "num_components": 0}, ValueError, "num_components must be a positive integer, got 0"),
    ],
)
def test_bad_priors_say_what_is_wrong(value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        as_prior(value, 3, SHAPE)


def test_shapes_that_do_not_fit_and_priors_without_a_config_are_named() -> None:
    gaussians = DiagonalGaussian(torch.zeros(4, 2), torch.zeros(2))
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: Mixture(gaussians, torch.zeros(3)), ValueError, r"log_weights must have shape \(4,\), got \(3,\)"),
        (lambda: Mixture(DiagonalGaussian(torch.zeros(2), torch.zeros(2))), ValueError, "must have a batch"),
        (lambda: Mixture(gaussians).log_prob(torch.zeros(3)), ValueError, "value must end in"),
        (VAE(SHAPE, **SMALL, prior=OTHERS["torch"]()).config, TypeError, "prior is a Independent, which config"),
    ]
    for call, error, says in cases:
        with pytest.raises(error, match=says):
            call()


def test_a_bound_makes_the_prior_once() -> None:
    model, calls = VAE(SHAPE, **SMALL, prior=PRIORS["vamp"]), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    for bound in (objectives.elbo, objectives.iwae):
        calls.clear()
        bound(model, torch.zeros(2, *SHAPE))
        assert len(calls) == 2, "the images and the pseudo-inputs"


def test_stl_leaves_out_the_score_of_the_proposal_and_keeps_the_encoder_in_a_vampprior() -> None:
    model = VAE(SHAPE, **SMALL, prior=PRIORS["vamp"]).double()
    x = torch.rand(2, *SHAPE).round().double()
    grads = []
    for estimator in ("stl", "elbo"):
        model.zero_grad()
        torch.manual_seed(3)
        objectives.elbo(model, x, 5, estimator=estimator).sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    model.zero_grad()
    torch.manual_seed(3)
    q = model.proposal(x)
    q.log_prob(q.rsample((5,)).detach()).mean(0).sum().backward()
    for parameter, stl, plain in zip(model.parameters(), *grads, strict=True):
        score = torch.zeros_like(stl) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(stl - plain, score)
