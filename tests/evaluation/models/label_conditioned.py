"""A conditional VAE: the label is one-hot beside x in the encoder and beside z in the decoder."""

import torch
import torch.nn.functional as F
from torch import nn


class CVAE(nn.Module):
    def __init__(self, pixels=20, classes=3, latent=3, hidden=16):
        super().__init__()
        self.classes = classes
        self.encoder = nn.Linear(pixels + classes, hidden)
        self.to_mean, self.to_logvar = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.prior = nn.Embedding(classes, latent)  # the mean of p(z | y)
        self.decoder = nn.Sequential(nn.Linear(latent + classes, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def one_hot(self, y):
        return F.one_hot(y, self.classes).to(self.prior.weight.dtype)

    def encode(self, x, y):
        h = torch.relu(self.encoder(torch.cat([x, self.one_hot(y)], 1)))
        return self.to_mean(h), self.to_logvar(h)

    def decode(self, z, y):
        return self.decoder(torch.cat([z, self.one_hot(y)], 1))


def build(batch=7):
    return CVAE(), torch.rand(batch, 20).round(), torch.randint(3, (batch,))
