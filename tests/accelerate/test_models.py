"""Seven models in the styles found in public code: found, swapped, and the same in everything but time."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastvae
from fastvae.acceleration import Report

Build = Callable[..., tuple[nn.Module, tuple[Tensor, ...]]]
SMALL = {
    "in_place_pixelcnn": {"fm": 6, "size": 9, "batch": 3},
    "residual_masked_weight": {"width": 8, "size": 7, "batch": 2},
    "plain_attribute": {"width": 5, "size": 9, "batch": 2},
    "weight_normed": {"width": 6, "size": 8, "batch": 2},
    "gated_stacks": {"width": 4, "size": 8, "batch": 2},
    "shifted": {"width": 4, "size": 7, "batch": 2},
    "colour_groups": {"width": 6, "size": 8, "batch": 2},
}
SWAPPED = {
    "in_place_pixelcnn": ["0 A in place", "3 B in place", "6 B in place"],
    "residual_masked_weight": ["first A", *(f"blocks.{i}.conv2 B" for i in range(4))],
    "plain_attribute": ["start A", *(f"stages[{i}][0] B" for i in range(3))],
    "weight_normed": ["a A", "b B", "c B in place"],
    "gated_stacks": [
        "layers.layer0.vertical vertical-strict in place",
        "layers.layer0.horizontal A",
        "layers.layer1.vertical vertical in place",
        "layers.layer1.horizontal B",
        "layers.layer2.vertical vertical in place",
        "layers.layer2.horizontal B",
    ],
    "shifted": [],
    "colour_groups": ["first 4x7 of 7x7", "body.1 3x5 of 5x5"],
}
NAMES = sorted(SMALL)


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    every = model.everything() if hasattr(model, "everything") else model.parameters()
    return [parameter for parameter in every if parameter.requires_grad]


def tensors_in(output: Any) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def loss_of(model: nn.Module, example: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(output - 0.3).square().mean() for output in tensors_in(model(*example))]).sum()


def doubled(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    for parameter in parameters_of(model):
        parameter.data = parameter.data.double()
    return model.double(), tuple(t.double() for t in example)


def classes_of(module: nn.Module) -> list[str]:
    return [cls.__qualname__ for cls in type(module).__mro__]


def words(report: Report) -> list[str]:
    return [f"{s.path} {s.mask}" + (" in place" if s.style == "mask in place" else "") for s in report.swapped]


def test_every_model_file_is_tried() -> None:
    assert sorted(path.stem for path in (Path(__file__).parent / "models").glob("*.py")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_finds_what_is_masked_and_how(name: str, build: Build) -> None:
    model, example = build(name, **SMALL[name])
    report = fastvae.accelerate(model, example)
    assert words(report) == SWAPPED[name]
    assert report.verified


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_same(name: str, build: Build, fast_calls: list[str]) -> None:
    (theirs, example), (ours, _) = build(name, **SMALL[name]), build(name, **SMALL[name])
    report = fastvae.accelerate(ours)
    assert not fast_calls  # looking does not count
    want, got = tensors_in(theirs(*example)), tensors_in(ours(*example))
    assert bool(fast_calls) == bool(report.swapped)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(loss_of(theirs, example), parameters_of(theirs))
    found = torch.autograd.grad(loss_of(ours, example), parameters_of(ours))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimiser", [torch.optim.Adam, torch.optim.SGD])
def test_training_with_clipped_gradients_stays_the_same(name: str, optimiser: Any, build: Build) -> None:
    runs = []
    for accelerated in (False, True):
        model, example = doubled(*build(name, **SMALL[name]))
        if accelerated:
            fastvae.accelerate(model)
        steps = optimiser(parameters_of(model), lr=0.02)
        norms = []
        for _ in range(4):
            steps.zero_grad()
            loss_of(model, example).backward()
            # far below the norm of the gradient, which masked taps are part of where the style gives them one
            norms.append(nn.utils.clip_grad_norm_(parameters_of(model), 1e-2))
            steps.step()
        runs.append((torch.stack(norms), tensors_in(model(*example)), model.state_dict()))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_go_both_ways_strictly(name: str, build: Build) -> None:
    (theirs, example), (ours, _) = build(name, **SMALL[name]), build(name, **SMALL[name])
    fastvae.accelerate(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for parameter in theirs.parameters():
        parameter.data.mul_(1.5)
    ours.load_state_dict(theirs.state_dict())
    if not hasattr(ours, "everything"):  # what hangs in plain lists is in no state dict
        torch.testing.assert_close(tensors_in(ours(*example)), tensors_in(theirs(*example)), rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_restoring_leaves_no_trace(name: str, build: Build, fast_calls: list[str]) -> None:
    model, example = build(name, **SMALL[name])
    modules = list(model.modules())
    before = [(classes_of(m), set(vars(m)), copy.copy(m._parameters)) for m in modules]
    values = [parameter.clone() for parameter in parameters_of(model)]
    identities = [id(p) for p in parameters_of(model)]
    report = fastvae.accelerate(model)
    report.restore()
    assert [(classes_of(m), set(vars(m)), m._parameters) for m in modules] == before  # parameters compare by identity
    assert [id(p) for p in parameters_of(model)] == identities
    assert all(torch.equal(a, b) for a, b in zip(parameters_of(model), values, strict=True))
    model(*example)
    assert not fast_calls
    assert fastvae.restore(model) == []
