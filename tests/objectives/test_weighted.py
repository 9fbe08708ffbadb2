"""``weighted_elbo``: the ELBO where nothing is weighted, and gradients that free bits switch off."""

import pytest
import torch
from torch import Tensor

from fastvae.distributions import Bernoulli, DiagonalGaussian, Flow
from fastvae.models import VAE, LatentVariableModel
from fastvae.objectives import elbo, weighted_elbo

SHAPE = (1, 2, 2)
X = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]).view(2, *SHAPE)


def model_of(loc: Tensor, flow: bool = False) -> LatentVariableModel:
    """q(z | x) of the given means (d,), whatever x."""

    def proposal(x: Tensor) -> DiagonalGaussian | Flow:
        base = DiagonalGaussian(loc.expand(len(x), -1), torch.zeros(len(loc)))
        return Flow(base, []) if flow else base

    flat = torch.zeros(*SHAPE)
    return LatentVariableModel(proposal, lambda z: Bernoulli(flat.expand(*z.shape[:-1], *SHAPE)), len(loc))


@pytest.mark.parametrize("proposal", ["diagonal", "full", "iaf"])
def test_without_weights_it_is_the_elbo(proposal: str) -> None:
    torch.manual_seed(0)
    model = VAE(SHAPE, latent_size=3, hidden_sizes=(8,), proposal=proposal)
    torch.manual_seed(1)
    expected = elbo(model, X, num_samples=4)
    torch.manual_seed(1)
    torch.testing.assert_close(weighted_elbo(model, X, num_samples=4), expected)


def test_beta_weighs_the_kl() -> None:
    loc = torch.tensor([1.0, 2.0])
    one, three = (weighted_elbo(model_of(loc), X, beta=beta) for beta in (1.0, 3.0))
    torch.testing.assert_close(one - three, torch.full((2,), 2.0 * 2.5))


@pytest.mark.parametrize(("num_groups", "paid", "moving"), [(None, 2.5, [1]), (2, 2.5, [1]), (1, 2.005, [0, 1])])
def test_a_group_below_the_bar_costs_the_bar_and_has_no_gradient(
    num_groups: int | None, paid: float, moving: list[int]
) -> None:
    loc = torch.tensor([0.1, 2.0], requires_grad=True)  # KL 0.005 and 2
    plain = weighted_elbo(model_of(loc), X, beta=0.0)
    free = weighted_elbo(model_of(loc), X, free_bits=0.5, num_groups=num_groups)
    torch.testing.assert_close(plain - free, torch.full((2,), paid))
    free.mean().backward()
    assert loc.grad is not None
    assert loc.grad.nonzero().flatten().tolist() == moving


def test_the_bar_is_the_mean_of_the_batch() -> None:
    scale = torch.tensor([0.0, 2.0])  # KL 0 and 2, 1 on average

    def proposal(x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(scale[:, None], torch.zeros(1))

    flat = torch.zeros(*SHAPE)
    model = LatentVariableModel(proposal, lambda z: Bernoulli(flat.expand(*z.shape[:-1], *SHAPE)), 1)
    base = weighted_elbo(model, X, beta=0.0)
    torch.testing.assert_close(base - weighted_elbo(model, X, free_bits=0.9), torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(base - weighted_elbo(model, X, free_bits=1.1), torch.tensor([1.1, 1.1]))


def test_a_flow_has_one_group() -> None:
    torch.manual_seed(0)
    flat = weighted_elbo(model_of(torch.tensor([0.1, 2.0]), flow=True), X, num_samples=200, free_bits=5.0)
    torch.testing.assert_close(weighted_elbo(model_of(torch.zeros(2)), X, beta=0.0) - flat, torch.full((2,), 5.0))
    with pytest.raises(ValueError, match="num_groups must be 1 or None, got 2: the KL between Flow"):
        weighted_elbo(model_of(torch.zeros(2), flow=True), X, num_groups=2)


def test_bad_numbers_are_refused() -> None:
    model = model_of(torch.zeros(3))
    with pytest.raises(ValueError, match="beta must be finite and at least 0, got -1"):
        weighted_elbo(model, X, beta=-1)
    with pytest.raises(TypeError, match="free_bits must be a number, got '1'"):
        weighted_elbo(model, X, free_bits="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_groups must divide the 3 dimensions of z, got 2"):
        weighted_elbo(model, X, num_groups=2)
