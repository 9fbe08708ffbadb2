"""What is not provably a masked convolution is left alone, and the report says why."""

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastvae


class Masked(nn.Conv2d):
    """A masked convolution with all options; the refused ones change one thing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*(args or (4, 4, 3)), **({"padding": 1} | options))
        self.register_buffer("mask", torch.ones_like(self.weight).detach())
        middle = self.kernel_size[0] // 2
        self.mask[:, :, middle, self.kernel_size[1] // 2 + 1 :] = 0
        self.mask[:, :, middle + 1 :] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class OverwritesBehindAParametrization(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask  # of a weight that is computed afresh at the next look
        return nn.Conv2d.forward(self, x)


class Forgets(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, x)


class Activates(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class DropsOut(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class KeepsFloat32(Masked):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._conv_forward(x.float(), self.weight * self.mask, self.bias)


class NormalisesInTraining(Masked):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - y.mean() if self.training else y


class Detaches(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.data * self.mask, self.bias)


class Counts(Masked):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Remembers(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = super().forward(x)
        return self.seen


class ScalesItsBias(Masked):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.bias.data *= 0.9
        return y


class Scales(Masked):
    """By a gain that is one now."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class Returns(Masked):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x), x


class NeedsMore(Masked):
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + condition


class ReplacesItsWeight(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.weight = nn.Parameter(self.weight * self.mask)
        return nn.Conv2d.forward(self, x)


class MasksInTrainingOnly(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else nn.Conv2d.forward(self, x)


class InPlaceInTrainingOnly(Masked):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.weight.data *= self.mask
            return nn.Conv2d.forward(self, x)
        return super().forward(x)


class Final(Masked):
    def __init_subclass__(cls) -> None:
        raise TypeError("Final is final")


class MasksTwoSides(nn.Module):
    """A convolution inside a module that holds the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.register_buffer("mask", torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.data *= self.mask
        return self.conv(x)


def with_mask(**change: Any) -> Masked:
    layer = Masked()
    for name, value in change.items():
        setattr(layer, name, value)
    return layer


def replaced() -> Masked:
    layer = Masked()
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


CASES = {
    "stride": (lambda: Masked(4, 4, 3, stride=2), r"stride is \(2, 2\); only 1"),
    "groups": (lambda: Masked(4, 4, 3, groups=2), "2 groups; only 1"),
    "circular padding": (lambda: Masked(padding_mode="circular"), "padding mode is 'circular'"),
    "uneven dilation": (lambda: Masked(padding=(1, 2), dilation=(1, 2)), r"dilation is \(1, 2\); only equal ones"),
    "even kernel": (lambda: Masked(4, 4, 4), r"\(4, 4\) has an even size"),
    "no padding": (lambda: Masked(padding=0), r"another shape than a padded convolution"),
    "mask of ones": (lambda: with_mask(mask=torch.ones(4, 4, 3, 3)), "no mask of zeros and ones"),
    "mask of zeros": (lambda: with_mask(mask=torch.zeros(4, 4, 3, 3)), "no mask of zeros and ones"),
    "soft mask": (lambda: with_mask(mask=torch.full((3, 3), 0.5)), "no mask of zeros and ones"),
    "trained mask": (lambda: with_mask_parameter(), "no mask of zeros and ones"),
    "scattered mask": (lambda: with_mask(mask=torch.eye(3) + torch.eye(3).flip(0).sign() > 0), "nothing to save"),
    "no mask": (lambda: nn.Conv2d(4, 4, 3), "an ordinary, padded or shifted convolution"),
    "forgets the mask": (Forgets, "does not apply 'mask'"),
    "mask behind a parametrization": (
        lambda: parametrizations.weight_norm(OverwritesBehindAParametrization()),
        "does not apply 'mask'",
    ),
    "activation": (Activates, "is not a convolution with the weight times 'mask'"),
    "dropout": (DropsOut, "is not a convolution"),
    "switches autocast off": (KeepsFloat32, "computes in torch.float32 under autocast"),
    "normalises in training": (NormalisesInTraining, "is not a convolution"),
    "masks in training only": (MasksInTrainingOnly, "does not apply 'mask'"),
    "in place in training only": (InPlaceInTrainingOnly, "masks differently in training"),
    "detached": (Detaches, "gradients are not those"),
    "counts": (Counts, "sets .'calls'"),
    "remembers": (Remembers, "sets .'seen'"),
    "changes its bias": (ScalesItsBias, "changes 'bias'"),
    "replaces its weight": (ReplacesItsWeight, "changes 'weight'"),
    "a gain of one": (Scales, "is not a convolution"),
    "returns a tuple": (Returns, "returns a tuple"),
    "needs a condition": (NeedsMore, "cannot be tried alone: TypeError"),
    "forward on the instance": (replaced, "replaced on the instance"),
    "noise in the weight": (lambda: parametrizations.spectral_norm(Masked()), "is not a convolution|changes"),
    "not initialised": (lambda: nn.LazyConv2d(4, 3), "not initialised yet"),
    "final": (Final, "its class cannot be changed: Final is final"),
    "fast already": (lambda: fastvae.nn.MaskedConv2d(4, 4, 3, mask="A"), "a fast layer of fastvae already"),
}


def with_mask_parameter() -> Masked:
    layer = Masked()
    mask = layer.mask
    del layer.mask
    layer.mask = nn.Parameter(mask)
    return layer


@pytest.mark.parametrize("name", CASES)
def test_is_left_alone_with_the_reason(name: str) -> None:
    make, reason = CASES[name]
    layer = make()
    before, attributes = type(layer), dict(vars(layer))
    tensors = {name: (tensor, copied(tensor)) for name, tensor in {**layer._parameters, **layer._buffers}.items()}
    report = fastvae.accelerate(nn.Sequential(layer))
    assert not report.swapped
    (entry,) = report.skipped
    assert entry.path == "0"
    assert entry.kind == before.__name__
    assert re.search(reason, entry.reason), f"{entry.reason!r} does not say {reason!r}"
    assert type(layer) is before
    assert vars(layer) == attributes
    for name, (tensor, value) in tensors.items():
        assert getattr(layer, name, tensor) is tensor or isinstance(tensor, nn.UninitializedParameter)
        assert value is None or torch.equal(tensor, value)


def copied(value: Any) -> Any:
    return None if value is None or isinstance(value, nn.UninitializedParameter) else value.detach().clone()


def test_looking_at_a_layer_does_not_iterate_its_spectral_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(Masked()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not fastvae.accelerate(model).swapped
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_module_that_masks_the_weight_of_its_child_is_reported() -> None:
    report = fastvae.accelerate(nn.Sequential(MasksTwoSides()))
    assert [(entry.path, entry.reason) for entry in report.skipped] == [
        ("0", "it holds a mask but is no nn.Conv2d"),
        ("0.conv", "no mask of zeros and ones among its tensors: an ordinary, padded or shifted convolution"),
    ]


def test_masks_that_a_hook_applies_are_left_to_the_hook() -> None:
    layer = Forgets()
    layer.register_forward_pre_hook(lambda module, args: module.weight.data.mul_(module.mask) and None)
    (entry,) = fastvae.accelerate(layer).skipped
    assert entry.path == ""
    assert entry.reason == "its forward does not apply 'mask'"


def test_convolutions_of_one_pixel_are_not_mentioned() -> None:
    assert not fastvae.accelerate(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU())).skipped


def test_everything_reachable_is_found_once() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lists = [[Masked()], (Masked(), {"deep": [Masked()]})]
            self.named = OrderedDict(a=Masked())
            self.modules_ = nn.ModuleList([nn.ModuleDict({"x": Masked()})])
            self.loop = self.lists
            self.lists.append(self.lists)  # type: ignore[arg-type]

    report = fastvae.accelerate(Holder())
    assert sorted(entry.path for entry in report.swapped) == [
        "lists[0][0]",
        "lists[1][0]",
        "lists[1][1]['deep'][0]",
        "modules_.0.x",
        "named['a']",
    ]


@pytest.mark.parametrize("bad", [None, "model", nn.Conv2d, lambda x: x])
def test_only_modules_are_taken(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        fastvae.accelerate(bad)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        fastvae.restore(bad)
