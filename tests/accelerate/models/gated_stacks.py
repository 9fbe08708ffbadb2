"""Gated PixelCNN with masked square kernels for the vertical stack and masked rows for the horizontal one."""

import torch
import torch.nn.functional as F
from torch import nn


class VerticalConv(nn.Conv2d):
    """Rows above, and the own row too unless it is the first layer."""

    def __init__(self, first, *args, **kwargs):
        super().__init__(*args, **kwargs)
        keep = torch.ones_like(self.weight)
        keep[:, :, self.kernel_size[0] // 2 + (0 if first else 1) :] = 0.0
        self.register_buffer("keep", keep.detach(), persistent=False)

    def forward(self, x):
        self.weight.data = self.weight.data * self.keep
        return super().forward(x)


class HorizontalConv(nn.Conv2d):
    """Pixels to the left, and the own one too unless it is the first layer."""

    def __init__(self, first, c_in, c_out, k):
        super().__init__(c_in, c_out, (1, k), padding=(0, k // 2))
        keep = torch.zeros(1, 1, 1, k)
        keep[..., : k // 2 + (0 if first else 1)] = 1.0
        self.keep = nn.Parameter(keep, requires_grad=False)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.keep, self.bias, padding=self.padding)


def gate(x):
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    def __init__(self, c_in, width, k, first):
        super().__init__()
        self.first = first
        self.vertical = VerticalConv(first, c_in, 2 * width, k, padding=k // 2)
        self.horizontal = HorizontalConv(first, c_in, 2 * width, k)
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, inputs):
        v, h = inputs
        v_new = self.vertical(v)
        h_new = self.out(gate(self.horizontal(h) + self.link(v_new)))
        return gate(v_new), h_new if self.first else h + h_new


class GatedPixelCNN(nn.Module):
    def __init__(self, width=48, layers=3):
        super().__init__()
        self.layers = nn.ModuleDict({
            f"layer{i}": GatedLayer(1 if i == 0 else width, width, 7 if i == 0 else 5, i == 0) for i in range(layers)
        })  # fmt: skip
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        state = (x, x)
        for layer in self.layers.values():
            state = layer(state)
        return {"logits": self.head(F.relu(state[1])), "hidden": state[1]}


def build(width=48, size=20, batch=4):
    return GatedPixelCNN(width), torch.rand(batch, 1, size, size)
