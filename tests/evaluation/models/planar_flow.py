"""A posterior of planar flows: forward gives (z, log q) of one draw for each row, with its own noise or a given one."""

import math

import torch
from torch import nn


class Planar(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.u, self.w, self.b = (nn.Parameter(torch.randn(s) * 0.3) for s in (dim, dim, 1))

    def forward(self, z):
        wu = self.w @ self.u
        u = self.u + (-1 + torch.log1p(wu.exp()) - wu) * self.w / (self.w @ self.w)
        a = torch.tanh(z @ self.w + self.b)
        psi = (1 - a[:, None] ** 2) * self.w
        return z + u * a[:, None], torch.log((1 + psi @ u).abs())


class FlowVAE(nn.Module):
    def __init__(self, pixels=25, latent=4, hidden=20, flows=3):
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ELU(), nn.Linear(hidden, 2 * latent))
        self.flows = nn.ModuleList([Planar(latent) for _ in range(flows)])
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ELU(), nn.Linear(hidden, pixels))

    def push(self, eps, stats):
        mean, log_std = stats.chunk(2, dim=1)
        z = mean + log_std.exp() * eps
        log_q = (-0.5 * eps**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(1)
        for flow in self.flows:
            z, log_det = flow(z)
            log_q = log_q - log_det
        return z, log_q

    def posterior(self, x, n):
        """n draws for each x, samples first."""
        stats = self.encoder(x).repeat(n, 1)
        z, log_q = self.push(torch.randn(stats.shape[0], self.latent, dtype=x.dtype), stats)
        return z.view(n, len(x), -1), log_q.view(n, len(x))


def build(batch=5):
    return FlowVAE(), torch.rand(batch, 25).round()
