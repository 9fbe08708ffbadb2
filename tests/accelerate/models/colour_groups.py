"""RGB in order: the centre tap is masked by groups of channels; a conditional decoder with one layer used twice."""

import torch
import torch.nn.functional as F
from torch import nn


class ColourMasked(nn.Conv2d):
    def __init__(self, in_channels, out_channels, kernel_size, kind, groups_of=3):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        k = kernel_size // 2
        source = torch.arange(in_channels) * groups_of // in_channels
        target = torch.arange(out_channels) * groups_of // out_channels
        mask = torch.zeros(out_channels, in_channels, kernel_size, kernel_size, dtype=torch.bool)
        mask[:, :, :k] = True
        mask[:, :, k, :k] = True
        allowed = source[None] < target[:, None] if kind == "A" else source[None] <= target[:, None]
        mask[:, :, k, k] = allowed
        self.register_buffer("mask", mask)

    def forward(self, x, condition=None):
        h = F.conv2d(x, self.weight.masked_fill(~self.mask, 0.0), self.bias, padding=self.padding)
        return h if condition is None else h + condition[:, :, None, None]


class Decoder(nn.Module):
    def __init__(self, width=48, latent=8):
        super().__init__()
        self.embed = nn.Linear(latent, width)
        self.first = ColourMasked(3, width, 7, "A")
        self.tower = [nn.ReLU(), ColourMasked(width, width, 5, "B")]
        self.body = nn.Sequential(*self.tower)
        self.again = self.tower[1]  # the same layer at a third path
        self.last = nn.Sequential(nn.ReLU(), ColourMasked(width, 6, 1, "B"))

    def forward(self, x, z):
        h = self.first(x, self.embed(z))
        h = h + self.body(h)
        return self.last(self.again(torch.relu(h)))


def build(width=48, size=20, batch=4):
    return Decoder(width), (torch.rand(batch, 3, size, size), torch.randn(batch, 8))
