"""Everything is a torch.distributions object; the encoder forgot Independent, the decoder did not."""

import torch
import torch.distributions as dist
from torch import nn


class DistVAE(nn.Module):
    def __init__(self, channels=2, size=4, z_dim=3):
        super().__init__()
        self.shape = (channels, size, size)
        n = channels * size * size
        self.inference = nn.Sequential(nn.Flatten(), nn.Linear(n, 16), nn.SiLU(), nn.Linear(16, 2 * z_dim))
        self.generative = nn.Sequential(nn.Linear(z_dim, 16), nn.SiLU(), nn.Linear(16, 2 * n))
        self.mixture = nn.Parameter(torch.randn(4, z_dim))

    @property
    def p_z(self):
        components = dist.Independent(dist.Normal(self.mixture, 1.0), 1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.mixture.new_zeros(4)), components)

    def q_z(self, x):
        loc, raw = self.inference(x).chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(raw) + 1e-3)

    def p_x(self, z):
        loc, log_scale = self.generative(z).unflatten(-1, (2, *self.shape)).unbind(-4)
        return dist.Independent(dist.Normal(loc, log_scale.exp()), 3)


def build(batch=5):
    return DistVAE(), torch.randn(batch, 2, 4, 4)
