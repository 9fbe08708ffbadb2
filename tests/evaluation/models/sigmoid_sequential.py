"""Two nn.Sequential and nothing else: the decoder ends in nn.Sigmoid and a reshape to an image."""

import torch
from torch import nn


def build(batch=5, latent=3):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2 * latent))
    decoder = nn.Sequential(
        nn.Linear(latent, 12), nn.ReLU(), nn.Linear(12, 16), nn.Sigmoid(), nn.Unflatten(-1, (1, 4, 4))
    )
    return encoder, decoder, torch.rand(batch, 1, 4, 4).round()
