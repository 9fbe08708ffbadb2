"""Two stochastic layers, z a tuple: every estimator against its formula, in one pass and in chunks."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import fastvae
from fastvae import ops
from fastvae.distributions import DiagonalGaussian
from fastvae.evaluation.adapters import Chain
from fastvae.models import LatentVariableModel
from fastvae.objectives import elbo, iwae

K, IDS = 7, torch.arange(3)
ESTIMATORS: dict[str, dict[str, Any]] = {
    "iwae": {"estimator": "iwae"},
    "stl": {"estimator": "stl"},
    "dreg": {"estimator": "dreg"},
    "vr": {"estimator": "vr", "alpha": 0.3},
}


class TwoLayers(nn.Module):
    """x (N, 5), z1 (N, 3), z2 (N, 2): q(z1 | x) q(z2 | z1) and p(z2) p(z1 | z2) p(x | z1)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q1, self.q2 = nn.Linear(5, 6), nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.p1, self.px = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        self.double()

    def proposal(self, x: Tensor) -> Chain:
        return Chain(gaussian(self.q1(x)), lambda z1: gaussian(self.q2(z1)))

    def log_joint(self, x: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
        z1, z2 = z
        log_p = Independent(Normal(self.px(z1), 0.7), 1).log_prob(x) + Independent(
            Normal(self.p1(z2), 0.8), 1
        ).log_prob(z1)
        return log_p + Independent(Normal(torch.zeros_like(z2), 1.0), 1).log_prob(z2)


def gaussian(params: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(*params.chunk(2, dim=-1))


@pytest.fixture
def model() -> TwoLayers:
    return TwoLayers()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def formula(name: str, model: TwoLayers, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Bound and gradient of its sum, written out: the layers drawn one after the other, constants by copies."""
    alpha = {"vr": 0.3, "elbo": 1.0, "elbo stl": 1.0}.get(name, 0.0)
    noise = ops.normal(0, IDS, torch.arange(K), 5, dtype=torch.float64).transpose(0, 1)
    z1, log_q1 = gaussian(model.q1(x)).from_noise(noise[..., :3])
    z2, log_q2 = gaussian(model.q2(z1)).from_noise(noise[..., 3:])
    log_w = model.log_joint(x, (z1, z2)) - log_q1 - log_q2
    if alpha == 1.0:
        bound, weights = log_w.mean(0), torch.full_like(log_w, 1 / K)
    else:
        bound = (((1 - alpha) * log_w).logsumexp(0) - math.log(K)) / (1 - alpha)
        weights = ((1 - alpha) * log_w).softmax(0).detach()
    parameters = list(model.parameters())
    if name in ("iwae", "elbo"):
        return bound, list(torch.autograd.grad((weights * log_w).sum(), parameters))
    constant = copy.deepcopy(model).requires_grad_(False)
    leaves = [z.detach().requires_grad_() for z in (z1, z2)]
    log_q = gaussian(constant.q1(x)).log_prob(leaves[0]) + gaussian(constant.q2(leaves[0])).log_prob(leaves[1])
    log_joint = model.log_joint(x, (leaves[0], leaves[1]))
    slopes = torch.autograd.grad((log_joint - log_q).sum(), leaves, retain_graph=True)
    factor = weights if name.endswith("stl") else alpha * weights + (1 - alpha) * weights**2
    through_z = sum((factor[..., None] * slope * z).sum() for slope, z in zip(slopes, (z1, z2), strict=True))
    return bound, list(torch.autograd.grad((weights * log_joint).sum() + through_z, parameters))


@pytest.mark.parametrize("name", [*ESTIMATORS, "elbo", "elbo stl"])
@pytest.mark.parametrize("max_bytes", [None, 2**9], ids=["one pass", "chunks"])
def test_every_estimator_is_its_formula(name: str, max_bytes: int | None, model: TwoLayers, x: Tensor) -> None:
    use = {"proposal": model.proposal, "log_joint": model.log_joint, "seed": 0, "max_bytes": max_bytes}
    if name in ESTIMATORS:
        bound = iwae(None, x, K, **ESTIMATORS[name], **use)
    else:
        bound = elbo(None, x, K, estimator="stl" if name == "elbo stl" else "elbo", **use)
    want, want_grads = formula(name, model, x)
    torch.testing.assert_close(bound, want, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(bound.sum(), list(model.parameters()))
    for got, theirs in zip(ours, want_grads, strict=True):
        torch.testing.assert_close(got, theirs, rtol=1e-10, atol=1e-10)


def test_the_value_is_that_of_the_evaluation(model: TwoLayers, x: Tensor) -> None:
    use = {"proposal": model.proposal, "log_joint": model.log_joint, "num_samples": 500, "seed": 4}
    want = fastvae.log_likelihood(x, modules=[model], **use).log_prob
    torch.testing.assert_close(iwae(None, x, **use, max_bytes=2**12).detach(), want, rtol=1e-10, atol=0)


def test_layers_of_any_shape_that_are_drawn_together(x: Tensor) -> None:
    """Without a Chain: two tensors of two and one dimensions, drawn at once; their log_prob takes the tuple, too."""
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def proposal(x: Tensor) -> SimpleNamespace:
        q1, q2 = (
            Independent(Normal(x.view(-1, 5, 1).expand(-1, 5, 2), scale), 2),
            Independent(Normal(x[:, :1], scale), 1),
        )

        def rsample_and_log_prob(shape: torch.Size) -> tuple[tuple[Tensor, Tensor], Tensor]:
            z = q1.rsample(shape), q2.rsample(shape)
            return z, log_prob(z)

        def log_prob(z: tuple[Tensor, Tensor]) -> Tensor:
            return q1.log_prob(z[0]) + q2.log_prob(z[1])

        return SimpleNamespace(rsample_and_log_prob=rsample_and_log_prob, log_prob=log_prob)

    seen = []

    def log_joint(x: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
        seen.append([tuple(layer.shape[2:]) for layer in z])
        return -z[0].square().sum((-1, -2)) - z[1].square().sum(-1)

    found = {}
    for name, max_bytes in (("dreg", None), ("dreg", 2**8), ("iwae", None), ("iwae", 2**8)):
        bound = iwae(None, x, K, estimator=name, proposal=proposal, log_joint=log_joint, seed=0, max_bytes=max_bytes)
        found[name, max_bytes] = torch.stack([*bound.detach(), *torch.autograd.grad(bound.sum(), scale)])
    assert all(shapes == [(5, 2), (1,)] for shapes in seen)
    for name in ("dreg", "iwae"):
        torch.testing.assert_close(found[name, None], found[name, 2**8], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found["dreg", None][:3], found["iwae", None][:3])
    assert found["dreg", None][3] != found["iwae", None][3]


def test_a_model_of_layers_bound_from_its_parts(model: TwoLayers, x: Tensor) -> None:
    def likelihood(z: tuple[Tensor, Tensor]) -> Independent:
        return Independent(Normal(model.px(z[0]), 0.7), 1)

    def log_prior(z: tuple[Tensor, Tensor]) -> Tensor:
        zero = x.new_zeros(1, 5)
        return model.log_joint(zero, z) - likelihood(z).log_prob(zero)

    parts = LatentVariableModel(model.proposal, likelihood, lambda: SimpleNamespace(log_prob=log_prior))
    for options in ({}, {"estimator": "dreg", "max_bytes": 2**9}):
        torch.testing.assert_close(
            iwae(parts, x, K, seed=0, **options), formula("iwae", model, x)[0], rtol=1e-10, atol=0
        )
    torch.testing.assert_close(elbo(parts, x, K, seed=0), formula("elbo", model, x)[0], rtol=1e-10, atol=0)
    result = fastvae.log_likelihood(x, parts, num_samples=K)
    torch.testing.assert_close(result.log_prob, formula("iwae", model, x)[0], rtol=1e-10, atol=0)
