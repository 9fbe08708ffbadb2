"""Evaluate a VAE of your own: log p(x) with many importance samples, its error, and what can be trusted.

Run: python examples/evaluate_your_vae.py
"""

import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal

import fastvae
from fastvae.data import load


class YourVAE(nn.Module):
    """An encoder that returns mean and log-variance, a decoder that returns logits."""

    def __init__(self, size: int, latent: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 64), nn.Tanh(), nn.Linear(64, size))

    def proposal(self, x: torch.Tensor) -> Independent:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return Independent(Normal(mean, (0.5 * log_variance).exp()), 1)

    def log_joint(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """x (N, D), z (K, N, d) -> (K, N)."""
        prior = Independent(Normal(torch.zeros_like(z), 1.0), 1)
        return prior.log_prob(z) + Independent(Bernoulli(logits=self.decoder(z)), 1).log_prob(x)


def main(epochs: int = 20, num_samples: int = 5000, images: int = 50) -> None:
    torch.manual_seed(0)
    digits = load("digits").train.flatten(1)
    data = (digits > digits.float().mean()).float()
    train, test = data[:-images], data[-images:]
    model = YourVAE(data.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for x in train[torch.randperm(len(train))].split(50):
            # the bound of 20 samples, in the memory of a few, with the gradient of your choice
            bound = fastvae.objectives.iwae(
                x=x, num_samples=20, proposal=model.proposal, log_joint=model.log_joint, estimator="dreg"
            )
            optimizer.zero_grad()
            (-bound.mean()).backward()
            optimizer.step()

    result = fastvae.log_likelihood(
        test, proposal=model.proposal, log_joint=model.log_joint, num_samples=num_samples, modules=[model]
    )
    print(result)
    refined = fastvae.log_likelihood(
        test,
        proposal=model.proposal,
        log_joint=model.log_joint,
        num_samples=num_samples,
        modules=[model],
        refine=50,
    )
    before, after = result.ess.median().item(), refined.ess.median().item()
    print(f"after fitting the proposal to each image: median ESS {after:.0f}, was {before:.0f}")


if __name__ == "__main__":
    main()
