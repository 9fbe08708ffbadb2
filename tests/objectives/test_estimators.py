"""Every estimator against its formula in float64, and against what theory says of it on a model that is solved."""

import math
from typing import Any

import pytest
import torch
from small_models import LinearGaussian, SmallVAE
from torch import Tensor

from fastvae import ops
from fastvae.distributions import DiagonalGaussian
from fastvae.objectives import elbo, iwae

K = 7
IWAE: dict[str, dict[str, Any]] = {
    "iwae": {"estimator": "iwae"},
    "stl": {"estimator": "stl"},
    "dreg": {"estimator": "dreg"},
    "vr 0.3": {"estimator": "vr", "alpha": 0.3},
    "vr 1": {"estimator": "vr", "alpha": 1},
}
ELBO: dict[str, dict[str, Any]] = {
    "elbo": {"analytic_kl": False},
    "elbo stl": {"estimator": "stl"},
}


def value(name: str, model: Any, x: Tensor, **options: Any) -> Tensor:
    bound = iwae if name in IWAE else elbo
    return bound(model, x, K, **(IWAE | ELBO)[name], **options)


def formula(name: str, model: SmallVAE, x: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Bound and gradient of its sum over the datapoints, written out from the papers."""
    alpha = {"vr 0.3": 0.3, "vr 1": 1.0, "elbo": 1.0, "elbo stl": 1.0}.get(name, 0.0)
    noise = ops.normal(seed, torch.arange(len(x)), torch.arange(K), 2, dtype=torch.float64).transpose(0, 1)
    q = model.proposal(x)
    z, log_q = q.from_noise(noise)
    log_w = model.likelihood(z).log_prob(x) + model.prior().log_prob(z) - log_q
    if alpha == 1.0:
        bound, weights = log_w.mean(0), torch.full_like(log_w, 1 / K)
    else:
        scaled = (1 - alpha) * log_w
        bound = (scaled.logsumexp(0) - math.log(K)) / (1 - alpha)
        weights = scaled.softmax(0)
    weights = weights.detach()
    parameters = list(model.parameters())
    if name in ("iwae", "elbo"):
        return bound, grads((weights * log_w).sum(), parameters)
    factor = weights if name.endswith("stl") else alpha * weights + (1 - alpha) * weights**2
    leaf = z.detach().requires_grad_()
    constant_q = DiagonalGaussian(q.loc.detach(), q.log_scale.detach())
    log_joint = model.likelihood(leaf).log_prob(x) + model.prior().log_prob(leaf)
    (slope,) = torch.autograd.grad((log_joint - constant_q.log_prob(leaf)).sum(), leaf, retain_graph=True)
    surrogate = (weights * log_joint).sum() + (factor[..., None] * slope * z).sum()
    return bound, grads(surrogate, parameters)


def grads(total: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(total, parameters))


@pytest.mark.parametrize("name", [*IWAE, *ELBO])
@pytest.mark.parametrize("max_bytes", [None, 2**10], ids=["one pass", "chunks"])
def test_value_and_gradient_are_those_of_the_formula(name: str, max_bytes: int | None) -> None:
    model, x = SmallVAE(), torch.randn(3, 5, dtype=torch.float64)
    got = value(name, model, x, seed=3, max_bytes=max_bytes)
    want, want_grads = formula(name, model, x, seed=3)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(grads(got.sum(), list(model.parameters())), want_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("max_bytes", [None, 2**10], ids=["one pass", "chunks"])
def test_the_second_weight_of_dreg_is_really_applied(max_bytes: int | None) -> None:
    """A hook on a tensor made after the log-weights never runs, and leaves STL."""
    model, x = SmallVAE(), torch.randn(3, 5, dtype=torch.float64)
    stl, dreg = (value(name, model, x, seed=0, max_bytes=max_bytes) for name in ("stl", "dreg"))
    assert torch.equal(stl, dreg)
    names = [name for name, _ in model.named_parameters()]
    of_stl, of_dreg = (grads(bound.sum(), list(model.parameters())) for bound in (stl, dreg))
    for name, ours, theirs in zip(names, of_dreg, of_stl, strict=True):
        if name.startswith("encoder"):
            assert ours.norm() < 0.9 * theirs.norm()
        else:
            torch.testing.assert_close(ours, theirs)


def per_datapoint_gradients(options: dict[str, Any], copies: int) -> Tensor:
    """(copies, 4): gradients in mean and log-scale of the proposal of one datapoint, each copy with its own noise."""
    linear = LinearGaussian(proposal_scale=1.4)
    x = torch.randn(1, 6, 1, 1, dtype=torch.float64).expand(copies, -1, -1, -1)
    exact = linear.model().proposal(x)
    loc, log_scale = (exact.loc + 0.3).detach().requires_grad_(), exact.log_scale.detach().clone().requires_grad_()
    model = linear.model()
    bound = iwae(
        None,
        x,
        5,
        proposal=lambda x: DiagonalGaussian(loc, log_scale),
        log_joint=lambda x, z: model.likelihood(z).log_prob(x) + model.prior().log_prob(z),
        **options,
    )
    return torch.cat(torch.autograd.grad(bound.sum(), [loc, log_scale]), dim=1)


def test_dreg_has_the_mean_of_iwae_with_less_noise_and_stl_has_another_mean() -> None:
    found = {}
    for name in ("iwae", "dreg", "stl"):
        torch.manual_seed(0)
        found[name] = per_datapoint_gradients(IWAE[name], copies=20_000)
    means = {name: gradients.mean(0) for name, gradients in found.items()}
    errors = {name: gradients.std(0) / 20_000**0.5 for name, gradients in found.items()}
    apart = (means["dreg"] - means["iwae"]).abs() / (errors["dreg"] ** 2 + errors["iwae"] ** 2).sqrt()
    assert (apart < 4.5).all()
    assert ((means["stl"] - means["iwae"]).abs() > 20 * errors["iwae"]).any()
    assert (found["dreg"].var(0) < 0.5 * found["iwae"].var(0)).all()


@pytest.mark.parametrize("name", ["stl", "dreg", "vr 0.3", "vr 1"])
def test_noise_of_path_gradients_vanishes_at_the_posterior(name: str) -> None:
    linear = LinearGaussian()
    x = torch.randn(4, 6, 1, 1, dtype=torch.float64)
    exact = linear.model().proposal(x)
    loc, log_scale = exact.loc.detach().requires_grad_(), exact.log_scale.detach().clone().requires_grad_()
    model = linear.model()
    model.encoder = lambda x: DiagonalGaussian(loc, log_scale)
    for gradient in torch.autograd.grad(iwae(model, x, 5, **IWAE[name]).sum(), [loc, log_scale]):
        assert gradient.abs().max() < 1e-12
    noisy = torch.autograd.grad(iwae(model, x, 5).sum(), log_scale)[0]
    assert noisy.abs().max() > 1e-2


def test_alpha_goes_from_iwae_to_the_elbo() -> None:
    model, x = SmallVAE(), torch.randn(3, 5, dtype=torch.float64)
    parameters = list(model.parameters())
    pairs = [
        (value("dreg", model, x, seed=1), iwae(model, x, K, estimator="vr", alpha=0, seed=1)),
        (value("elbo stl", model, x, seed=1), value("vr 1", model, x, seed=1)),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one, other)
        for ours, theirs in zip(grads(one.sum(), parameters), grads(other.sum(), parameters), strict=True):
            torch.testing.assert_close(ours, theirs)
    bounds = torch.stack([iwae(model, x, K, estimator="vr", alpha=a, seed=1) for a in (0, 0.3, 0.7, 0.99, 1)])
    assert (bounds.diff(dim=0) < 0).all()


def test_the_elbo_with_and_without_stl_has_one_mean() -> None:
    linear = LinearGaussian(proposal_scale=1.4)
    x = torch.randn(1, 6, 1, 1, dtype=torch.float64)
    exact = linear.model().proposal(x)
    found = []
    for options in ({"analytic_kl": True}, {"estimator": "stl"}):
        log_scale = exact.log_scale.detach().expand(20_000, -1).clone().requires_grad_()
        model = linear.model()
        model.encoder = lambda x, log_scale=log_scale: DiagonalGaussian(exact.loc.detach() + 0.3, log_scale)
        bound = elbo(model, x.expand(20_000, -1, -1, -1), **options)
        found.append(torch.autograd.grad(bound.sum(), log_scale)[0])
    error = sum(gradients.var(0) / 20_000 for gradients in found).sqrt()
    assert ((found[0].mean(0) - found[1].mean(0)).abs() < 4.5 * error).all()


class OnlySamples:
    """A flow that knows the density of its own samples alone."""

    def __init__(self, base: DiagonalGaussian) -> None:
        self.base = base

    def rsample_and_log_prob(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        return self.base.rsample_and_log_prob(shape)


def test_a_flow_without_density_is_served_by_the_plain_estimator_alone() -> None:
    model, x = SmallVAE(), torch.randn(3, 5, dtype=torch.float64)
    whole = model.proposal
    model.proposal = lambda x: OnlySamples(whole(x))
    assert iwae(model, x, K).requires_grad
    with pytest.raises(TypeError, match=r"needs proposal\(x\).log_prob\(z\).* OnlySamples has none"):
        iwae(model, x, K, estimator="dreg")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"estimator": "best"}, ValueError, "estimator must be one of iwae, dreg, stl, vr, got 'best'"),
        ({"estimator": "vr"}, TypeError, "alpha must be a number between 0 and 1 for estimator='vr', got None"),
        ({"estimator": "vr", "alpha": 1.5}, ValueError, r"alpha must be between 0 \(IWAE\) and 1 \(ELBO\), got 1.5"),
        ({"alpha": 0.5}, ValueError, "alpha belongs to estimator='vr', got alpha=0.5 and estimator='iwae'"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be at least 1, got 0"),
        ({"max_bytes": 1e9}, TypeError, "max_bytes must be an integer, got 1000000000.0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 2**64}, ValueError, "seed must be at most 18446744073709551615"),
        ({"ids": torch.arange(2)}, ValueError, r"ids must have shape \(3,\)"),
        ({"modules": [3]}, TypeError, "modules must be torch.nn.Module objects, got int"),
        ({"log_joint": print}, TypeError, "either a model or proposal= and log_joint="),
    ],
)
def test_bad_arguments_say_what_is_wrong(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        iwae(SmallVAE(), torch.randn(3, 5, dtype=torch.float64), K, **options)


def test_bad_arguments_of_the_elbo_say_what_is_wrong() -> None:
    model, x = SmallVAE(), torch.randn(3, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="estimator must be one of elbo, stl, got 'dreg'"):
        elbo(model, x, estimator="dreg")
    with pytest.raises(ValueError, match="analytic_kl=True, but estimator='stl' estimates the KL"):
        elbo(model, x, analytic_kl=True, estimator="stl")
    with pytest.raises(ValueError, match="analytic_kl=True, but log_joint= gives no prior of its own"):
        elbo(x=x, analytic_kl=True, proposal=model.proposal, log_joint=lambda x, z: z.sum(-1))
    with pytest.raises(TypeError, match="x must be a tensor, got NoneType"):
        elbo(model)
    model.proposal = lambda x: torch.distributions.Independent(torch.distributions.Bernoulli(torch.rand(3, 2)), 1)
    with pytest.raises(TypeError, match=r"must have rsample and log_prob.*Independent has none to differentiate"):
        elbo(model, x)
    with pytest.raises(ValueError, match=r"log p\(x \| z\) must be .* shape \(1, 3\).*got \(1, 3, 5\)"):
        elbo(NotSummed(), x)


class NotSummed(SmallVAE):
    def likelihood(self, z: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Normal(self.decoder(z), 1.0)
