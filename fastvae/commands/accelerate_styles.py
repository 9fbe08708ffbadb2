"""Small models in the styles of public code, for ``fastvae accelerate-report``; none of them knows this library."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["STYLES"]


def _raster(kernel_size: int, kind: str) -> Tensor:
    taps = torch.zeros(kernel_size * kernel_size)
    taps[: kernel_size * kernel_size // 2 + (kind == "B")] = 1
    return taps.view(kernel_size, kernel_size)


class _MaskedWeight(nn.Conv2d):
    """The weight is multiplied by a buffer."""

    mask: Tensor

    def __init__(self, kind: str, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.register_buffer("mask", _raster(kernel_size, kind).expand_as(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class _InPlace(_MaskedWeight):
    """The weight is overwritten in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return nn.Conv2d.forward(self, x)


class _Attribute(nn.Conv2d):
    """The mask is a plain attribute."""

    def __init__(self, kind: str, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.m = _raster(kernel_size, kind)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.m.to(x.device), self.bias)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width // 2, width, 1)
        self.masked = _MaskedWeight("B", width // 2, width // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.wide(F.relu(self.masked(F.relu(self.narrow(F.relu(x))))))


class _RowsAbove(nn.Conv2d):
    """The vertical stack of a gated net: rows above and the own one, of a square kernel."""

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        mask = torch.ones(1, 1, kernel_size, kernel_size)
        mask[:, :, kernel_size // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class _Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values, gates = x.chunk(2, 1)
        return torch.tanh(values) * torch.sigmoid(gates)


def _seven_by_seven() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for kind, source in (("A", 1), ("B", 64), ("B", 64)):
        layers += [_InPlace(kind, source, 64, 7), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(64, 1, 1)), torch.rand(8, 1, 28, 28).round()


def _residual() -> tuple[nn.Module, Tensor]:
    blocks = [_Residual(128) for _ in range(5)]
    return nn.Sequential(_MaskedWeight("A", 1, 128, 7), *blocks, nn.Conv2d(128, 1, 1)), torch.rand(8, 1, 28, 28).round()


def _attribute() -> tuple[nn.Module, Tensor]:
    layers = [_Attribute("B", 64, 64, 5) for _ in range(3)]
    chain = [module for layer in layers for module in (layer, nn.ELU())]
    return nn.Sequential(_Attribute("A", 3, 64, 5), nn.ELU(), *chain, nn.Conv2d(64, 48, 1)), torch.rand(4, 3, 32, 32)


def _weight_norm() -> tuple[nn.Module, Tensor]:
    norm = nn.utils.parametrizations.weight_norm
    layers = [norm(_MaskedWeight("B", 64, 64, 5)) for _ in range(3)]
    chain = [module for layer in layers for module in (layer, nn.ReLU())]
    model = nn.Sequential(norm(_MaskedWeight("A", 1, 64, 5)), nn.ReLU(), *chain, nn.Conv2d(64, 1, 1))
    return model, torch.rand(8, 1, 28, 28).round()


def _stacks() -> tuple[nn.Module, Tensor]:
    layers = [module for source in (1, 48, 48, 48) for module in (_RowsAbove(source, 96, 5), _Gate())]
    return nn.Sequential(*layers, nn.Conv2d(48, 1, 1)), torch.rand(8, 1, 28, 28)


def _shifted() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for source in (1, 48, 48):
        layers += [nn.ZeroPad2d((1, 1, 1, 0)), nn.Conv2d(source, 48, (2, 3)), nn.ELU()]
    return nn.Sequential(*layers, nn.Conv2d(48, 1, 1)), torch.rand(8, 1, 28, 28)


# name -> a model and an example of its input
STYLES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "7x7 layers, mask in place": _seven_by_seven,
    "residual blocks 3x3": _residual,
    "5x5, mask as attribute": _attribute,
    "5x5, weight norm": _weight_norm,
    "gated vertical stack 5x5": _stacks,
    "padded and shifted": _shifted,
}
