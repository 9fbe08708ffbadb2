"""Small causal networks in the styles that are found in public code, written without anything of ours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["STYLES", "Balanced", "MaskedWeight", "plain", "randomized"]


def _mask(conv: nn.Conv2d, kind: str) -> Tensor:
    mask = torch.ones_like(conv.weight)
    rows, columns = mask.shape[2:]
    mask[:, :, rows // 2, columns // 2 + (kind == "B") :] = 0
    mask[:, :, rows // 2 + 1 :] = 0
    return mask


class MaskedWeight(nn.Conv2d):
    """The weight is multiplied by a buffer in every forward."""

    def __init__(self, kind: str, *args: int, **options: int) -> None:
        super().__init__(*args, **options)
        self.register_buffer("mask", _mask(self, kind))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding, dilation=self.dilation)


class MaskedInPlace(nn.Conv2d):
    """The weight is overwritten in every forward."""

    def __init__(self, kind: str, *args: int, **options: int) -> None:
        super().__init__(*args, **options)
        self.register_buffer("mask", _mask(self, kind))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


def plain(
    channels: int = 1, width: int = 8, first: int = 7, later: int = 3, layers: int = 2, params: int = 1,
    conv: type[nn.Conv2d] = MaskedWeight,
) -> nn.Sequential:  # fmt: skip
    """Convolution A, then B with ReLU between, then 1x1."""
    modules: list[nn.Module] = [conv("A", channels, width, first, padding=first // 2)]
    for _ in range(layers - 1):
        modules += [nn.ReLU(inplace=True), conv("B", width, width, later, padding=later // 2)]
    return nn.Sequential(*modules, nn.ReLU(inplace=True), nn.Conv2d(width, channels * params, 1))


class Residual(nn.Module):
    """The bottleneck block of the first PixelCNN: 1x1, masked 3x3, 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width // 2, 1),
            nn.ReLU(), MaskedWeight("B", width // 2, width // 2, 3, padding=1),
            nn.ReLU(), nn.Conv2d(width // 2, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class ShiftAndCrop(nn.Module):
    """No masks: pads above and to the left, crops below and to the right; the old weight norm; ELU of both signs."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.down = nn.utils.weight_norm(nn.Conv2d(2, width, (2, 3)))
        self.right = nn.utils.weight_norm(nn.Conv2d(2, width, (2, 2)))
        self.later = nn.utils.parametrizations.weight_norm(nn.Conv2d(2 * width, width, (2, 2)))
        self.last = nn.Conv2d(2 * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([2.0 * x - 1.0, torch.ones_like(x)], 1)  # the added channel tells images from padding
        down = F.pad(self.down(F.pad(x, (1, 1, 1, 0))), (0, 0, 1, 0))[:, :, :-1]
        right = F.pad(self.right(F.pad(x, (1, 0, 1, 0))), (1, 0, 0, 0))[:, :, :, :-1]
        h = down + right
        h = self.later(F.pad(torch.cat([F.elu(h), F.elu(-h)], 1), (1, 0, 1, 0)))
        return self.last(torch.cat([F.elu(h), F.elu(-h)], 1))


class Gated(nn.Module):
    """Two stacks: the vertical one reads rows above only, the horizontal one pixels to the left; tanh and sigmoid."""

    def __init__(self, channels: int = 1, width: int = 4, layers: int = 3, params: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for index in range(layers):
            source = channels if index == 0 else width
            layer = nn.ModuleDict({
                "vertical": nn.Conv2d(source, 2 * width, (2, 3), padding=(2, 1)),
                "horizontal": nn.Conv2d(source, 2 * width, (1, 2), padding=(0, 2 if index == 0 else 1)),
                "link": nn.Conv2d(2 * width, 2 * width, 1),
                "out": nn.Conv2d(width, width, 1),
            })  # fmt: skip
            self.layers.append(layer)
        self.last = nn.Conv2d(width, channels * params, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        vertical = horizontal = x
        for index, layer in enumerate(self.layers):
            # two rows of padding above a kernel of two rows: row i reads rows i - 2 and i - 1
            v = layer["vertical"](vertical)[:, :, :rows]
            h = layer["horizontal"](horizontal)[:, :, :, :columns] + layer["link"](v)
            gate, value = h.chunk(2, dim=1)
            new = layer["out"](torch.tanh(gate) * torch.sigmoid(value))
            horizontal = new if index == 0 else horizontal + new
            first, second = torch.split(v, v.shape[1] // 2, dim=1)
            vertical = torch.tanh(first) * torch.sigmoid(second)
        return self.last(F.relu(horizontal))


class CurrentRowGated(nn.Module):
    """Two stacks as in the first gated PixelCNN: the vertical one includes its row and is shifted down at the link."""

    def __init__(self, width: int = 4, layers: int = 3) -> None:
        super().__init__()
        sources = [1] + [width] * (layers - 1)
        self.vertical = nn.ModuleList(nn.Conv2d(source, 2 * width, (2, 3), padding=(1, 1)) for source in sources)
        self.horizontal = nn.ModuleList(
            nn.Conv2d(source, 2 * width, (1, 2), padding=(0, 1 + (i == 0))) for i, source in enumerate(sources)
        )
        self.link = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 1) for _ in sources)
        self.out = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in sources)
        self.last = nn.Conv2d(width, 1, 1)

    @staticmethod
    def gate(h: Tensor) -> Tensor:
        first, second = h.chunk(2, dim=1)
        return first.tanh() * second.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        v = h = x
        for index, (vertical, horizontal) in enumerate(zip(self.vertical, self.horizontal, strict=True)):
            v = vertical(v)[:, :, :rows]
            link = self.link[index](F.pad(v, (0, 0, 1, 0))[:, :, :-1])
            new = self.out[index](self.gate(horizontal(h)[:, :, :, :columns] + link))
            h = new if index == 0 else h + new
            v = self.gate(v)
        return self.last(F.relu(h))


class ChannelsLast(nn.Module):
    """Layer norm and linear heads on (N, H, W, C); a slice assignment as the shift; positions as parameters."""

    def __init__(self, rows: int, columns: int, width: int = 6) -> None:
        super().__init__()
        self.first = MaskedWeight("A", 1, width, 5, padding=2)
        self.second = MaskedWeight("B", width, width, 3, padding=1)
        self.position = nn.Parameter(torch.randn(1, width, rows, columns))
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, 1)
        self.scale = torch.tensor([0.5, 1.0, 1.5, 0.5, 1.0, 1.5])[:width]  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + self.position
        above = torch.zeros_like(h)
        above[:, :, 1:] = h[:, :, :-1]
        left = torch.cat([torch.zeros(x.shape[0], h.shape[1], h.shape[2], 1, dtype=x.dtype), h[:, :, :, :-1]], dim=3)
        h = self.second(F.gelu(h + above - left))
        h = self.norm(h.permute(0, 2, 3, 1)) * self.scale.to(x.dtype)
        return self.narrow(F.silu(self.wide(h))).permute(0, 3, 1, 2)


class BatchNormed(nn.Module):
    """Batch norm with fixed statistics, residual blocks with doubled layers, a padded and cropped ending."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            MaskedWeight("A", 1, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), Residual(8), nn.Dropout(0.5)
        )
        self.last = nn.Conv2d(8, 1, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        return self.last(F.leaky_relu(h, 0.1))[:, :, 1:-1, 1:-1] + 0.5 * h.mean(1, keepdim=True)


def randomized(model: nn.Module, gain: float = 1.0, seed: int = 0) -> nn.Module:
    """The model in float64 with all parameters and statistics random, biases too: zeros hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel() if parameter.ndim > 1 else 4)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / fan_in**0.5)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


class Balanced(nn.Module):
    """A network with its logits brought to mean 0 and deviation 2 over random images: both values occur."""

    def __init__(self, model: nn.Module, rows: int, columns: int) -> None:
        super().__init__()
        self.model = model
        images = torch.rand(50, 1, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            logits = model(images.round())
        self.register_buffer("mean", logits.mean())
        self.register_buffer("gain", 2.0 / logits.std().clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.model(x) - self.mean) * self.gain


# style -> (rows, columns) -> a network for images with one channel
STYLES = {
    "masked weight": lambda rows, columns: plain(),
    "masked in place": lambda rows, columns: plain(conv=MaskedInPlace),
    "bottleneck blocks": lambda rows, columns: nn.Sequential(
        MaskedWeight("A", 1, 8, 7, padding=3), Residual(8), Residual(8), nn.ReLU(), nn.Conv2d(8, 1, 1)
    ),
    "shift and crop": lambda rows, columns: ShiftAndCrop(),
    "gated stacks": lambda rows, columns: Gated(),
    "gated stacks, current row": lambda rows, columns: CurrentRowGated(),
    "channels last": lambda rows, columns: ChannelsLast(rows, columns),
    "batch norm": lambda rows, columns: BatchNormed().eval(),
    "dilated": lambda rows, columns: nn.Sequential(
        MaskedWeight("A", 1, 8, 3, padding=1), nn.Tanh(), MaskedWeight("B", 8, 8, 3, padding=2, dilation=2),
        nn.Tanh(), nn.Conv2d(8, 1, 1),
    ),
    "one layer": lambda rows, columns: MaskedWeight("A", 1, 1, 3, padding=1),
    "later kernels larger": lambda rows, columns: plain(first=3, later=5, layers=3),
    "grouped": lambda rows, columns: nn.Sequential(
        MaskedWeight("A", 1, 8, 3, padding=1), nn.ReLU(), GroupedMasked(8), nn.ReLU(), nn.Conv2d(8, 1, 1)
    ),
}  # fmt: skip


class GroupedMasked(nn.Conv2d):
    """A depthwise masked convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width // 2)
        self.register_buffer("mask", _mask(self, "B"))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1, groups=self.groups)
