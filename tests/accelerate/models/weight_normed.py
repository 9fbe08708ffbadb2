"""Weight norm of both generations over masked convolutions of both styles."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


class Masked(nn.Conv2d):
    def __init__(self, kind, *args, **kwargs):
        super().__init__(*args, **kwargs)
        k = self.kernel_size[0]
        m = torch.ones(self.out_channels, self.in_channels, k, k, dtype=torch.uint8)
        m[:, :, k // 2, k // 2 + (1 if kind == "B" else 0) :] = 0
        m[:, :, k // 2 + 1 :] = 0
        self.register_buffer("mask", m)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Overwritten(Masked):
    def forward(self, x):
        with torch.no_grad():
            self.weight.mul_(self.mask)
        return nn.Conv2d.forward(self, x)


class WeightNormed(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.a = torch.nn.utils.weight_norm(Masked("A", 1, width, 5, padding=2))
        self.b = parametrizations.weight_norm(Masked("B", width, width, 5, padding=2))
        self.c = torch.nn.utils.weight_norm(Overwritten("B", width, width, 5, padding=2))
        self.d = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        h = F.relu(self.a(x))
        h = h + F.relu(self.b(h))
        h = h + F.relu(self.c(h))
        return self.d(h)


def build(width=64, size=28, batch=8):
    return WeightNormed(width), torch.rand(batch, 1, size, size).round()
