"""Kernels on the CPU: collected only where Triton was imported to interpret, once for the whole process."""

import os
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # tests/test_interpreter_leg.py starts the process that collects them
    return True if not INTERPRETED and collection_path.name.startswith("test_") else None
