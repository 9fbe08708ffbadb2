"""Strided convolutions with batch norm and dropout; the decoder views its input as one batch and returns logits."""

import torch
from torch import nn


class ConvVAE(nn.Module):
    def __init__(self, z_dim=4, width=6):
        super().__init__()
        self.z_dim, self.width = z_dim, width
        self.enc = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2), nn.Dropout(0.3),
            nn.Conv2d(width, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(),
            nn.Linear(width * 4, 2 * z_dim),
        )  # fmt: skip
        self.project = nn.Linear(z_dim, width * 4)
        self.dec = nn.Sequential(
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout2d(0.3),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
        )  # fmt: skip

    def encode(self, x):
        return self.enc(x).chunk(2, dim=1)

    def decode(self, z):
        assert z.dim() == 2
        return self.dec(self.project(z).view(-1, self.width, 2, 2))


def build(batch=5):
    net = ConvVAE()
    return net, torch.rand(batch, 1, 8, 8).round()
