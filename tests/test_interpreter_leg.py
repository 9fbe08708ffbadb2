"""Runs tests/interpreter in a process of its own: Triton reads TRITON_INTERPRET once, at its first import."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which is not installed")
def test_kernels_pass_their_tests_under_the_interpreter(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "pytest", "tests/interpreter", "-q", "-p", "no:cacheprovider"]
    # one thread: kernels are interpreted serially, and idle OpenMP threads only spin
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"interpreter tests failed\n{done.stdout}\n{done.stderr}"
    summary = done.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None, f"no interpreter test passed: {summary}"
    assert int(passed[1]) > 0
    with capfd.disabled():
        print(f"\n  tests/interpreter: {summary}")
