"""Residual blocks in a ModuleList; the weight is multiplied by its mask where it is used; a subclass for each mask."""

import torch
import torch.nn.functional as F
from torch import nn


class CausalConv(nn.Conv2d):
    include_centre = True

    def __init__(self, c_in, c_out, kernel_size):
        super().__init__(c_in, c_out, kernel_size, padding=kernel_size // 2)
        k = kernel_size
        mask = torch.ones(k, k)
        mask[k // 2, k // 2 + int(self.include_centre) :] = 0
        mask[k // 2 + 1 :] = 0
        self.register_buffer("mask", mask[None, None])  # (1, 1, k, k)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StrictlyCausalConv(CausalConv):
    include_centre = False


class Block(nn.Module):
    def __init__(self, width, kernel_size):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width // 2, 1)
        self.conv2 = CausalConv(width // 2, width // 2, kernel_size)
        self.conv3 = nn.Conv2d(width // 2, width, 1)

    def forward(self, x):
        h = self.conv1(F.relu(x))
        h = self.conv2(F.relu(h))
        return x + self.conv3(F.relu(h))


class ResidualPixelCNN(nn.Module):
    def __init__(self, width=128, blocks=4, kernel_size=5):
        super().__init__()
        self.first = StrictlyCausalConv(3, width, 7)
        self.blocks = nn.ModuleList([Block(width, kernel_size) for _ in range(blocks)])
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 3 * 16, 1))

    def forward(self, x):
        h = self.first(x / 7.5 - 1)
        for block in self.blocks:
            h = block(h)
        n, _, rows, columns = x.shape
        return self.head(h).view(n, 3, 16, rows, columns)


def build(width=128, size=24, batch=4):
    return ResidualPixelCNN(width), torch.randint(0, 16, (batch, 3, size, size)).float()
