"""With an example the whole model is compared before and after; a difference undoes everything."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastvae


class Masked(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)
        self.register_buffer("mask", torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class OtherwiseOnLargeImages(Masked):
    """What no small image can show."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.001 if x.shape[-1] > 20 else 1.0)


class Gradientless(Masked):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.detach() if x.shape[-1] > 20 else y


def test_a_difference_is_named_and_undone() -> None:
    model = nn.Sequential(Masked(), nn.ReLU(), OtherwiseOnLargeImages(), Masked())
    assert len(fastvae.accelerate(model, torch.randn(1, 3, 12, 12)).swapped) == 3
    fastvae.restore(model)
    with pytest.raises(RuntimeError, match=r"the output of '2' differs first, by .*e-0.*; it was restored"):
        fastvae.accelerate(model, torch.randn(1, 3, 24, 24))
    assert [type(module) for module in model] == [Masked, nn.ReLU, OtherwiseOnLargeImages, Masked]


def test_gradients_are_compared_too() -> None:
    model = nn.Sequential(Masked(), Gradientless(), nn.Conv2d(3, 1, 1))
    with pytest.raises(RuntimeError, match=r"the gradient of '0\.weight' differs, by one of the two not being there"):
        fastvae.accelerate(model, torch.randn(1, 3, 24, 24))
    assert type(model[0]) is Masked


def test_an_error_of_the_accelerated_model_undoes_the_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Tensor:
        raise ArithmeticError("broken")

    monkeypatch.setattr(fastvae.acceleration.layer, "masked_conv2d_by_taps", broken)
    model = nn.Sequential(Masked())
    with pytest.raises(ArithmeticError, match="broken"):
        fastvae.accelerate(model, torch.randn(1, 3, 5, 5))
    assert type(model[0]) is Masked


def test_the_model_is_left_bit_for_bit_as_it_was() -> None:
    class InPlace(Masked):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data *= self.mask
            return nn.Conv2d.forward(self, x)

    model = nn.Sequential(InPlace(), nn.BatchNorm2d(3), nn.Dropout(0.5), Masked())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    kept = x.detach().clone()
    random = torch.get_rng_state()
    assert fastvae.accelerate(model, x).verified
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(x, kept)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Masked()

    def forward(self, x: Tensor, z: Tensor, levels: int = 2) -> dict[str, Any]:
        return {"params": [self.conv(x) + z, torch.tensor(levels)]}


@pytest.mark.parametrize("example", [
    (torch.randn(1, 3, 5, 5), torch.randn(3, 1, 1)),
    (torch.randn(1, 3, 5, 5), torch.randn(3, 1, 1), 4),
    {"x": torch.randn(1, 3, 5, 5), "z": torch.randn(3, 1, 1), "levels": 3},
])  # fmt: skip
def test_examples_may_be_several_arguments_and_outputs_nested(example: Any) -> None:
    assert fastvae.accelerate(TwoInputs(), example).verified


def test_works_under_no_grad_and_inference_mode_too() -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        model = nn.Sequential(Masked())
        with mode():
            report = fastvae.accelerate(model, torch.randn(1, 3, 5, 5))
        assert len(report.swapped) == 1
        model(torch.randn(1, 3, 5, 5)).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastvae.accelerate(nn.Sequential(Masked()), torch.randn(1, 3, 5, 5)).swapped


@pytest.mark.parametrize("bad", [3, "x", [], (1, 2), {}])
def test_an_example_without_a_tensor_is_refused(bad: Any) -> None:
    model = nn.Sequential(Masked())
    with pytest.raises(TypeError, match="example_input must be a tensor, or a tuple or dict of arguments"):
        fastvae.accelerate(model, bad)
    assert type(model[0]) is Masked


def test_an_output_without_a_tensor_is_refused() -> None:
    class Counting(Masked):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return x.numel()

    with pytest.raises(TypeError, match="holds no floating point tensor to compare; leave example_input out"):
        fastvae.accelerate(Counting(), torch.ones(1, 3, 4, 4))


def test_the_report_reads_as_a_list() -> None:
    shared = Masked()
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Conv2d(3, 3, 3)})
    assert str(fastvae.accelerate(model)) == (
        "swapped 1\n"
        "  a (also at b): 3x3, mask B, masked weight\n"
        "left alone 1\n"
        "  c: Conv2d, no mask of zeros and ones among its tensors: an ordinary, padded or shifted convolution"
    )
