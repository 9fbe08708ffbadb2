"""Models as people write them, and layers small enough to test that take the fast way all the same."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastvae.acceleration import layer

THRESHOLDS = {name: getattr(layer, name) for name in ("_PAYS", "_PAYS_KEEPING_GRADIENT")}
MODELS = Path(__file__).parent / "models"


@pytest.fixture(autouse=True)
def small_layers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, layers as small as these would take their original forward: nothing would be tested."""
    for name in THRESHOLDS:
        monkeypatch.setattr(layer, name, (0.0, 0, 0))


@pytest.fixture
def usual_thresholds(small_layers_count: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, only layers that gain take the fast way, as for a user."""
    for name, usual in THRESHOLDS.items():
        monkeypatch.setattr(layer, name, usual)


@pytest.fixture
def fast_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each call that took the fast way."""
    calls: list[str] = []
    for name in ("masked_conv2d_by_taps", "convolve_keeping_gradient"):
        monkeypatch.setattr(layer, name, _noting(calls, name, getattr(layer, name)))
    return calls


@pytest.fixture
def build() -> Callable[..., Any]:
    """``build(name, ...)`` makes the model of a file in ``models/``: the same one each time."""

    def made(name: str, **options: Any) -> tuple[torch.nn.Module, tuple[Any, ...]]:
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the old weight norm is deprecated, and in use
            model, example = _load(name).build(**options)
        return model, example if isinstance(example, tuple) else (example,)

    return made


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"model_{name}", MODELS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _noting(calls: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        calls.append(name)
        return function(*args)

    return noted
