"""Linear layers over the channels of every pixel, as torch traces them with and without gradients of their weights."""

import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import MaskedWeight, randomized
from torch import Tensor, nn

from fastvae import compile_sampler
from fastvae.sampling import UnsupportedModelError


class Heads(nn.Module):
    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.first, self.last = MaskedWeight("A", 1, 6, 3, padding=1), nn.Conv2d(4, 1, 1)
        self.linear, self.matrix = nn.Linear(6, 4), nn.Parameter(torch.zeros(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        rows = h.permute(0, 2, 3, 1)
        if self.style == "linear":
            y = self.linear(rows).permute(0, 3, 1, 2)
        elif self.style == "masked":
            y = F.linear(rows, self.matrix * (self.matrix > 0), self.linear.bias).permute(0, 3, 1, 2)
        elif self.style == "left":
            y = (self.matrix @ h.flatten(2)).unflatten(2, h.shape[2:])
        else:
            y = (rows @ self.matrix.t()).permute(0, 3, 1, 2)
        return self.last(y.tanh())


@pytest.mark.parametrize("size", [(4, 5), (3, 1), (1, 1)])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("style", ["linear", "masked", "left", "right"])
def test_heads_equal_naive_sampling(style: str, trains: bool, size: tuple[int, int]) -> None:
    model = randomized(Heads(style), gain=2.0).requires_grad_(trains)
    sampler = compile_sampler(model, (1, *size), "bernoulli")
    out, naive = sampler(5, seed=1, verify=True), sampler.naive(5, seed=1)
    assert torch.equal(out.samples, naive.samples)
    torch.testing.assert_close(out.log_prob, naive.log_prob)


def test_a_shift_of_the_flattened_image_is_named() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.last = nn.Embedding(2, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            tokens = F.pad(self.embed(x.long().flatten(1)), (0, 0, 1, -1))
            return self.last(tokens).transpose(1, 2).view(x.shape)

    with pytest.raises(UnsupportedModelError, match=r"shifts a dimension that joins pixels"):
        compile_sampler(Shifted(), (1, 4, 5), "bernoulli")
    sampler = compile_sampler(Shifted(), (1, 4, 5), "bernoulli", fallback="naive")
    assert sampler(3, verify=True).certificate.ok
