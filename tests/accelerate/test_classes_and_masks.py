"""Classes that cannot be swapped, masks of every shape, masks that change behind PyTorch's back, TorchScript."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastvae


def raster(kernel_size: int = 3) -> Tensor:
    mask = torch.ones(kernel_size, kernel_size)
    mask[kernel_size // 2, kernel_size // 2 + 1 :] = 0
    mask[kernel_size // 2 + 1 :] = 0
    return mask


class Masked(nn.Conv2d):
    mask: Tensor

    def __init__(self, mask: Any) -> None:
        super().__init__(4, 6, 3, padding=1)
        if isinstance(mask, Tensor):
            self.register_buffer("mask", mask)
        else:
            self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * torch.as_tensor(self.mask), self.bias, padding=1)


class CallsForwardOfItsOwnClass(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 6, 3, padding=1)
        self.register_buffer("mask", raster().expand_as(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super(self.__class__, self).forward(x)  # type: ignore[misc]


class Scripted(nn.Conv2d):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__(4, 6, 3, padding=1)
        self.register_buffer("mask", raster())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


X = torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("example", [None, X])
def test_a_forward_that_names_its_own_class_is_refused(example: Tensor | None) -> None:
    model = nn.Sequential(CallsForwardOfItsOwnClass())
    expected = model(X)
    report = fastvae.accelerate(model, example)
    assert not report.swapped
    assert "super(self.__class__, self)" in report.skipped[0].reason
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize(
    "shape", [(3, 3), (1, 3, 3), (4, 3, 3), (1, 1, 3, 3), (6, 1, 3, 3), (1, 4, 3, 3), (6, 4, 3, 3)]
)
def test_masks_of_every_shape_that_broadcasts(shape: tuple[int, ...], fast_calls: list[str]) -> None:
    model = nn.Sequential(Masked(raster().expand(shape).clone()))
    expected = model(X)
    grad = torch.autograd.grad(expected.square().sum(), model[0].weight)
    assert [entry.mask for entry in fastvae.accelerate(model, X).swapped] == ["B"]
    fast_calls.clear()
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(torch.autograd.grad(model(X).square().sum(), model[0].weight), grad)
    assert fast_calls


def test_a_mask_of_numpy_is_reported_as_such() -> None:
    report = fastvae.accelerate(nn.Sequential(Masked(raster().numpy())))
    assert "its mask 'mask' is a numpy array" in report.skipped[0].reason


def edit_data(mask: Tensor) -> None:
    mask.data.copy_(mask.flip(0).clone())


def edit_memory(mask: Tensor) -> None:
    array = mask.numpy()
    array[:] = array[::-1].copy()


@pytest.mark.parametrize("edit", [edit_data, edit_memory])
def test_a_mask_edited_behind_the_counter_of_versions(edit: Callable[[Tensor], None], fast_calls: list[str]) -> None:
    model = nn.Sequential(Masked(raster()))
    original = copy.deepcopy(model)
    fastvae.accelerate(model)
    model(X)
    assert fast_calls
    for edited in (model, original):
        edit(edited[0].mask)
    torch.testing.assert_close(model(X), original(X))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_layer_and_the_layer_after_it() -> None:
    model = nn.Sequential(Masked(raster()))
    fastvae.accelerate(model)
    traced = torch.jit.trace(model, X)
    assert all(type(number) in (int, bool) for number in model[0]._accelerated.taps)
    torch.testing.assert_close(traced(X), model(X))
    torch.testing.assert_close(copy.deepcopy(model)(X), model(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_says_to_restore_before() -> None:
    model = nn.Sequential(CallsForwardOfItsOwnClass(), Scripted())
    expected = model[1](X)
    report = fastvae.accelerate(model)
    assert report.swapped
    with pytest.raises(RuntimeError, match="restore"):
        torch.jit.script(model[1])
    report.restore()
    scripted = torch.jit.script(model[1])
    torch.testing.assert_close(scripted(X), expected)
    assert "compiled by TorchScript" in fastvae.accelerate(nn.Sequential(scripted)).skipped[0].reason


@pytest.mark.parametrize("example", [[X], torch.ones(1, 5, 8, 8)])
def test_an_example_that_the_model_does_not_take_is_named(example: Any) -> None:
    with pytest.raises(RuntimeError, match="cannot be called with example_input: "):
        fastvae.accelerate(nn.Sequential(Masked(raster())), example)


def test_the_arrays_of_numpy_need_not_be_masks() -> None:
    layer = Masked(raster())
    layer.names = np.array(["a"])  # type: ignore[assignment]
    assert fastvae.accelerate(nn.Sequential(layer)).swapped
