"""The autoregressive Gaussian: a density that integrates to one, exact gradients of draws, a proposal and a prior."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import fastvae
from fastvae import objectives
from fastvae.distributions import AutoregressiveGaussian, Bernoulli, DiagonalGaussian
from fastvae.models import VAE, LatentVariableModel
from fastvae.nn import MADE

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def network(features: int = 4, context: int = 3, **options: Any) -> MADE:
    made = MADE(features, [9, 9], num_params=2, context_features=context, activation="tanh", **options, **DOUBLE)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)  # far from independent
    return made


def by_passes(made: MADE, noise: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draws and log-density the slow way: the parallel pass once for every dimension."""
    z = torch.zeros_like(noise)
    for _ in range(made.features):
        loc, log_scale = made(z, context).unbind(-1)
        z = loc + log_scale.exp() * noise
    loc, log_scale = made(z, context).unbind(-1)
    return z, torch.distributions.Normal(loc, log_scale.exp()).log_prob(z).sum(-1)


def test_density_integrates_to_one_over_a_grid() -> None:
    made = network(2, 1, order=[1, 0])
    q = AutoregressiveGaussian(made, torch.randn(3, 1, **DOUBLE))
    axis = torch.linspace(-12.0, 12.0, 241, **DOUBLE)
    grid = torch.cartesian_prod(axis, axis)
    total = q.log_prob(grid[:, None]).exp().sum(0) * 0.1**2
    torch.testing.assert_close(total, torch.ones(3, **DOUBLE), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("features", [1, 5])
def test_density_is_that_of_the_change_of_variables(features: int) -> None:
    q = AutoregressiveGaussian(network(features, 0, order=torch.randperm(features)))
    noise = torch.randn(features, **DOUBLE)
    jacobian = torch.autograd.functional.jacobian(lambda noise: q.from_noise(noise)[0], noise)
    zeros = torch.zeros(features, **DOUBLE)
    want = DiagonalGaussian(zeros, zeros).log_prob(noise) - torch.linalg.slogdet(jacobian).logabsdet
    z, log_q = q.from_noise(noise)
    torch.testing.assert_close(log_q, want)
    torch.testing.assert_close(q.log_prob(z), want)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("context", [0, 3])
def test_draws_and_their_gradients_are_those_of_a_pass_for_every_dimension(context: int, residual: bool) -> None:
    made = network(6, context, residual=residual, order=torch.randperm(6))
    contexts = torch.randn(4, context, **DOUBLE).requires_grad_() if context else None
    noise = torch.randn(5, 4, 6, **DOUBLE, requires_grad=True)
    inputs = [noise, *made.parameters(), *([] if contexts is None else [contexts])]
    q = AutoregressiveGaussian(made, contexts)
    ours, want = q.from_noise(noise), by_passes(made, noise, contexts)
    torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-12)
    weight = torch.randn(5, 4, 6, **DOUBLE)
    found, expected = (
        torch.autograd.grad((weight * z).sum() + log_q.square().sum(), inputs) for z, log_q in (ours, want)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_shapes_dtypes_and_expansion() -> None:
    made = MADE(3, [8], num_params=2, context_features=2)
    q = AutoregressiveGaussian(made, torch.randn(4, 2))
    assert (q.batch_shape, q.event_shape, q.noise_size) == ((4,), (3,), 3)
    z, log_q = q.rsample_and_log_prob((2, 5))
    assert (z.shape, log_q.shape, z.dtype) == ((2, 5, 4, 3), (2, 5, 4), torch.float32)
    torch.testing.assert_close(q.log_prob(z), log_q, rtol=1e-4, atol=1e-4)
    assert not q.sample((2,)).requires_grad
    assert q.rsample().requires_grad
    wide = q.expand((6, 4))
    assert wide.rsample((2,)).shape == (2, 6, 4, 3)
    assert wide.log_prob(z[0, 0]).shape == (6, 4)
    alone = AutoregressiveGaussian(MADE(3, [8], num_params=2)).expand((7,))
    assert alone.sample((2,)).shape == (2, 7, 3)
    assert alone.log_prob(torch.zeros(3)).shape == (7,)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Linear(12, 3, **DOUBLE)
        self.made = network()

    def forward(self, x: Tensor) -> AutoregressiveGaussian:
        return AutoregressiveGaussian(self.made, self.context(x.flatten(1)).tanh())


class Prior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.made = network(context=0)

    def forward(self) -> AutoregressiveGaussian:
        return AutoregressiveGaussian(self.made)


class OwnVAE(VAE):
    """A VAE with both parts of its own."""

    def __init__(self) -> None:
        super().__init__((1, 3, 4), "bernoulli", latent_size=4, hidden_sizes=(7,))
        self.own_encoder, self.own_prior = Encoder(), Prior()
        self.double()

    def proposal(self, x: Tensor) -> Distribution:
        return self.own_encoder(x)

    def prior(self) -> Distribution:
        return self.own_prior()


def from_parts() -> LatentVariableModel:
    decoder = nn.Linear(4, 12, **DOUBLE)
    model = LatentVariableModel(Encoder(), lambda z: Bernoulli(decoder(z).unflatten(-1, (1, 3, 4))), prior=Prior())
    model.register_module("net", decoder)
    return model


IMAGES = torch.bernoulli(torch.full((3, 1, 3, 4), 0.4, **DOUBLE))


@pytest.mark.parametrize("make", [from_parts, OwnVAE])
def test_is_the_proposal_and_the_prior_of_a_model(make: Any) -> None:
    model = make()
    estimates = [
        fastvae.log_likelihood(IMAGES, model, num_samples=300, seed=1, max_bytes=limit).log_prob
        for limit in (None, 5000)
    ]
    torch.testing.assert_close(*estimates, rtol=1e-6, atol=1e-6)
    for name in ("prior", "proposal"):
        assert isinstance(getattr(model, name)(*[IMAGES][: name == "proposal"]), AutoregressiveGaussian)
    value = objectives.iwae(model, IMAGES, num_samples=5, seed=3)
    value.mean().backward()
    used = {name: p for name, p in model.named_parameters() if make is from_parts or not name.startswith("encoder")}
    assert all(p.grad is not None for p in used.values())


@pytest.mark.parametrize("estimator", ["iwae", "dreg", "stl"])
def test_every_estimator_in_chunks_too(estimator: str) -> None:
    model = from_parts()
    parameters = list(model.parameters())
    found = [
        torch.autograd.grad(
            objectives.iwae(model, IMAGES, num_samples=8, seed=3, estimator=estimator, max_bytes=limit).mean(),
            parameters,
        )
        for limit in (None, 1)
    ]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: AutoregressiveGaussian(nn.Linear(2, 2)), TypeError, "net must be a fastvae.nn.MADE, got Linear"),  # type: ignore[arg-type]
    (lambda: AutoregressiveGaussian(MADE(3, [4])), ValueError, "must give 2 parameters, .* got 1"),
    (lambda: AutoregressiveGaussian(network(), None), ValueError, "context is missing"),
    (lambda: AutoregressiveGaussian(network(), torch.zeros(2, 5)), ValueError, r"context must have shape \(..., 3\)"),
    (
        lambda: AutoregressiveGaussian(network(context=0)).log_prob(torch.zeros(2, 3)),
        ValueError,
        r"value must end in \(4,\), got shape \(2, 3\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD)
def test_bad_arguments(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
