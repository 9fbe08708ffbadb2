"""Put masked layers into a model of your own: by writing them, or into one that exists, in place.

Run: python examples/faster_layers.py
"""

import torch
from torch import nn

import fastvae
from fastvae.timing import interleaved


class YourMaskedConv2d(nn.Conv2d):
    """As found in many repositories: the mask is multiplied into the weight at every call."""

    def __init__(self, kind: str, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        mask = torch.ones_like(self.weight)
        centre = self.kernel_size[0] // 2
        mask[:, :, centre, centre + (kind == "B") :] = 0
        mask[:, :, centre + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def your_model(channels: int = 64, layers: int = 4) -> nn.Sequential:
    parts: list[nn.Module] = [YourMaskedConv2d("A", 1, channels, 7, padding=3)]
    for _ in range(layers):
        parts += [nn.ReLU(), YourMaskedConv2d("B", channels, channels, 5, padding=2)]
    return nn.Sequential(*parts, nn.ReLU(), nn.Conv2d(channels, 1, 1))


def main(batch: int = 16, rounds: int = 9) -> None:
    torch.manual_seed(0)
    model, x = your_model(), torch.rand(batch, 1, 28, 28)
    before = model(x)

    # a new layer: the arguments of nn.Conv2d and a mask
    layer = fastvae.nn.MaskedConv2d(64, 64, 5, padding=2, mask="B")
    print(layer)

    # a model that exists: the same parameters and state dict, verified on the example, undone by report.restore()
    original = your_model()
    original.load_state_dict(model.state_dict())
    print(fastvae.accelerate(model, x))
    print(f"largest difference of the outputs: {(model(x) - before).abs().max().item():.1e}")

    def step(net: nn.Module) -> None:
        net(x).square().mean().backward()

    times = interleaved(lambda: step(model), lambda: step(original), rounds=rounds)
    print(f"forward and backward: {times['candidate_s'] * 1e3:.1f} ms, {times['ratio']:.2f} times faster than before")


if __name__ == "__main__":
    main()
