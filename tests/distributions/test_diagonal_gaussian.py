"""The diagonal Gaussian equals torch's, from noise, in density, entropy and KL."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from fastvae.distributions import DiagonalGaussian


def pair(*shape: int) -> tuple[DiagonalGaussian, Independent]:
    loc, log_scale = torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)
    return DiagonalGaussian(loc, log_scale), Independent(Normal(loc, log_scale.exp()), 1)


def test_density_entropy_and_kl_equal_torch_s() -> None:
    (p, torch_p), (q, torch_q) = pair(4, 3), pair(4, 3)
    z = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(p.log_prob(z), torch_p.log_prob(z))
    torch.testing.assert_close(p.entropy(), torch_p.entropy())
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(torch_p, torch_q))
    torch.testing.assert_close(p.variance, torch_p.variance)


def test_draws_from_noise_carry_their_own_density() -> None:
    p, torch_p = pair(4, 3)
    z, log_q = p.from_noise(torch.randn(7, 4, 3, dtype=torch.float64))
    torch.testing.assert_close(log_q, torch_p.log_prob(z))
    z, log_q = p.rsample_and_log_prob((2, 5))
    assert z.shape == (2, 5, 4, 3)
    torch.testing.assert_close(log_q, torch_p.log_prob(z))


def test_density_of_a_draw_survives_a_tiny_scale() -> None:
    q = DiagonalGaussian(torch.full((1, 2), 3.0), torch.full((1, 2), -46.0))  # a standard deviation of 1e-20
    noise = torch.randn(9, 1, 2)
    _, log_q = q.from_noise(noise)
    want = DiagonalGaussian(torch.zeros(1, 2), torch.zeros(1, 2)).log_prob(noise) + 92.0
    torch.testing.assert_close(log_q, want)


def test_draws_are_reparameterised() -> None:
    loc = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    log_scale = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(4, 2, 3, dtype=torch.float64)
    z, _ = DiagonalGaussian(loc, log_scale).from_noise(noise)
    grad_loc, grad_log_scale = torch.autograd.grad(z.sum(), (loc, log_scale))
    torch.testing.assert_close(grad_loc, torch.full_like(loc, 4.0))
    torch.testing.assert_close(grad_log_scale, noise.sum(0))


def test_shapes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match=r"must broadcast, got \(3, 2\) and \(3, 4\)"):
        DiagonalGaussian(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"must end in \(2,\), got shape \(3, 4\)"):
        DiagonalGaussian(torch.zeros(3, 2), torch.zeros(3, 2)).log_prob(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="scalars"):
        DiagonalGaussian(torch.tensor(0.0), torch.tensor(0.0))
