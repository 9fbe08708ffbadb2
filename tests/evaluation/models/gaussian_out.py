"""Continuous data: encoder and decoder both return mean and log-variance, in a dictionary and in a list."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.inner, self.outer = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], 2 * sizes[2])

    def forward(self, v):
        return self.outer(nn.functional.gelu(self.inner(v))).split(self.outer.out_features // 2, -1)


class RealVAE(nn.Module):
    def __init__(self, size=12, latent=3):
        super().__init__()
        self.down, self.up = Net([size, 16, latent]), Net([latent, 16, size])

    def encode(self, x):
        mean, logvar = self.down(x)
        return {"mean": mean, "logvar": logvar.clamp(-8, 8)}

    def decode(self, z):
        mean, logvar = self.up(z)
        return [mean, logvar.clamp(min=-6)]


def build(batch=5):
    return RealVAE(), torch.randn(batch, 12)
