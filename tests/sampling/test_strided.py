"""Networks with strides (PixelCNN++ and its like): exact, by the levels of their dependencies."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import randomized
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastvae import compile_sampler
from fastvae.sampling import UnsupportedModelError


def down_shift(x: Tensor) -> Tensor:
    return F.pad(x[:, :, :-1], (0, 0, 1, 0))


def right_shift(x: Tensor) -> Tensor:
    return F.pad(x[:, :, :, :-1], (1, 0, 0, 0))


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], dim=1))


class Shifted(nn.Module):
    """A weight-normed convolution of rows up to this one ("down") or of pixels up to this one ("right")."""

    def __init__(self, kind: str, source: int, out: int, stride: int = 1) -> None:
        super().__init__()
        size = (2, 3) if kind == "down" else (2, 2)
        self.pads = (1, 1, 1, 0) if kind == "down" else (1, 0, 1, 0)
        self.conv = parametrizations.weight_norm(nn.Conv2d(source, out, size, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads))


class ShiftedUp(nn.Module):
    """The transposed one: twice as many rows and columns, cropped to where it is causal."""

    def __init__(self, kind: str, source: int, out: int) -> None:
        super().__init__()
        self.kind = kind
        size = (2, 3) if kind == "down" else (2, 2)
        self.deconv = parametrizations.weight_norm(nn.ConvTranspose2d(source, out, size, stride=2, output_padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.deconv(x)
        rows, columns = y.shape[2:]
        return y[:, :, : rows - 1, 1 : columns - 1] if self.kind == "down" else y[:, :, : rows - 1, : columns - 1]


class NetworkInNetwork(nn.Module):
    def __init__(self, source: int, out: int) -> None:
        super().__init__()
        self.linear = parametrizations.weight_norm(nn.Linear(source, out))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        sizes = x.shape
        out = self.linear(x.contiguous().view(-1, sizes[3]))
        return out.view(*sizes[:3], -1).permute(0, 3, 1, 2)


class GatedResnet(nn.Module):
    def __init__(self, kind: str, width: int, skip: int = 0) -> None:
        super().__init__()
        self.first = Shifted(kind, 2 * width, width)
        self.skip = NetworkInNetwork(2 * skip * width, width) if skip else None
        self.second = Shifted(kind, 2 * width, 2 * width)

    def forward(self, x: Tensor, a: Tensor | None = None) -> Tensor:
        h = self.first(concat_elu(x))
        if a is not None:
            h = h + self.skip(concat_elu(a))
        value, gate = torch.chunk(self.second(concat_elu(h)), 2, dim=1)
        return x + value * torch.sigmoid(gate)


class PixelCNNPP(nn.Module):
    """Two streams, once down and up again, with short cuts; a channel of ones tells the image from the padding."""

    def __init__(self, channels: int = 1, width: int = 4, params: int = 1) -> None:
        super().__init__()
        self.u_init = Shifted("down", channels + 1, width)
        self.left_init = parametrizations.weight_norm(nn.Conv2d(channels + 1, width, (2, 1)))
        self.u, self.ul = GatedResnet("down", width), GatedResnet("right", width, 1)
        self.u_down, self.ul_down = Shifted("down", width, width, 2), Shifted("right", width, width, 2)
        self.u_mid, self.ul_mid = GatedResnet("down", width, 1), GatedResnet("right", width, 2)
        self.u_up, self.ul_up = ShiftedUp("down", width, width), ShiftedUp("right", width, width)
        self.u_last, self.ul_last = GatedResnet("down", width, 1), GatedResnet("right", width, 2)
        self.out = NetworkInNetwork(width, channels * params)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        u = down_shift(self.u_init(x))
        ul = u + right_shift(self.left_init(F.pad(x, (0, 0, 1, 0))))
        u1 = self.u(u)
        ul1 = self.ul(ul, u1)
        u2, ul2 = self.u_down(u1), self.ul_down(ul1)
        u3 = self.u_mid(u2, u2)
        ul3 = self.ul_mid(ul2, torch.cat([u3, ul2], 1))
        u4, ul4 = self.u_up(u3), self.ul_up(ul3)
        u5 = self.u_last(u4, u1)
        return self.out(F.elu(self.ul_last(ul4, torch.cat([u5, ul1], 1))))


class Enlarged(nn.Module):
    """Every second pixel, then the nearest one again, shifted so that no pixel sees itself or a later one."""

    def __init__(self, slices: bool = True) -> None:
        super().__init__()
        self.slices = slices
        self.first = nn.Conv2d(1, 4, (1, 2))
        self.strided, self.last = nn.Conv2d(4, 4, 2, stride=2, groups=2), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.pad(x, (2, 0)))[..., :-1].tanh()
        small = h[:, :, ::2, ::2] if self.slices else self.strided(F.pad(h, (1, 0, 1, 0)))
        large = F.interpolate(small, scale_factor=2)[:, :, : x.shape[2], : x.shape[3]]
        return self.last(torch.cat([h, down_shift(large.relu())], 1))


NETS = {
    "pixelcnn++": (PixelCNNPP, [(8, 8), (4, 12)]),
    "slices": (Enlarged, [(6, 6), (5, 7), (1, 4)]),
    "strided": (lambda: Enlarged(False), [(6, 6), (7, 4)]),
}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, (_, sizes) in NETS.items() for size in sizes])
def test_strided_networks_equal_naive_sampling(name: str, size: tuple[int, int]) -> None:
    model = randomized(NETS[name][0](), gain=2.0)
    sampler = compile_sampler(model, (1, *size), "bernoulli")
    out, naive = sampler(4, seed=1, verify=True), sampler.naive(4, seed=1)
    assert out.certificate.mismatches == 0
    assert torch.equal(out.samples, naive.samples)
    assert 0 < out.samples.mean() < 1
    images = torch.rand(3, 1, *size, dtype=torch.float64).round()
    with torch.no_grad():
        torch.testing.assert_close(sampler.decode(images), model(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", ["levels", "row"])
def test_schedules_of_pixelcnn_pp(schedule: Any) -> None:
    model = randomized(PixelCNNPP(), gain=2.0)
    sampler = compile_sampler(model, (1, 8, 8), "bernoulli", schedule=schedule)
    plan = sampler.plan
    assert plan.num_steps <= 64
    assert sampler(4, verify=True).certificate.mismatches == 0
    if schedule == "row":  # the upper stream runs once for each of its rows, or nearly so
        first = next(op for op in plan.linear if "u_init" in str(op.node.meta.get("custom")))
        assert plan.calls[first] <= 16


def test_a_strided_network_that_looks_ahead_is_named() -> None:
    class Leaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 2, 2, stride=2), nn.ConvTranspose2d(2, 1, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.down(x))

    with pytest.raises(UnsupportedModelError, match=r"not causal in any order.*depend on that pixel itself") as error:
        compile_sampler(randomized(Leaks()), (1, 4, 4), "bernoulli")
    assert "module 'down'" in str(error.value)
