"""Two stochastic layers: q(h1|x) q(h2|h1) going up, p(h2) p(h1|h2) p(x|h1) going down; samples are tuples."""

import torch
import torch.distributions as D
from torch import nn


class Stochastic(nn.Module):
    def __init__(self, n_in, n_hidden, n_out):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_in, n_hidden), nn.Tanh(), nn.Linear(n_hidden, n_hidden), nn.Tanh())
        self.mu = nn.Linear(n_hidden, n_out)
        self.log_sigma = nn.Linear(n_hidden, n_out)

    def forward(self, v):
        h = self.body(v)
        return D.Normal(self.mu(h), torch.exp(self.log_sigma(h)))


class TwoLayerIWAE(nn.Module):
    def __init__(self, pixels=30, sizes=(6, 3), hidden=16):
        super().__init__()
        self.q_h1, self.q_h2 = Stochastic(pixels, hidden, sizes[0]), Stochastic(sizes[0], hidden, sizes[1])
        self.p_h1 = Stochastic(sizes[1], hidden, sizes[0])
        self.p_x = nn.Sequential(nn.Linear(sizes[0], hidden), nn.Tanh(), nn.Linear(hidden, pixels))
        self.top = sizes[1]

    def infer(self, x):
        q1 = self.q_h1(x)
        h1 = q1.rsample()
        q2 = self.q_h2(h1)
        h2 = q2.rsample()
        return (h1, h2), q1.log_prob(h1).sum(-1) + q2.log_prob(h2).sum(-1)

    def log_joint(self, x, hs):
        h1, h2 = hs
        log_h2 = D.Normal(0.0, 1.0).log_prob(h2).sum(-1)
        log_h1 = self.p_h1(h2).log_prob(h1).sum(-1)
        return D.Bernoulli(logits=self.p_x(h1)).log_prob(x).sum(-1) + log_h1 + log_h2


def build(batch=5):
    return TwoLayerIWAE(), torch.rand(batch, 30).round()
