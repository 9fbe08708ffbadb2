"""Models as people write them, none of which knows of fastvae."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

MODELS = Path(__file__).parent / "models"


@pytest.fixture
def build() -> Callable[..., Any]:
    """``build(name)`` makes the model of a file in ``models/`` and data for it: the same each time."""

    def made(name: str, **options: Any) -> Any:
        torch.manual_seed(1)
        spec = importlib.util.spec_from_file_location(f"model_{name}", MODELS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.build(**options)

    return made
