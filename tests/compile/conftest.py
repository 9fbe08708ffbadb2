"""The fixture that compiles a kernel for an architecture that need not be present."""

from collections.abc import Callable

import pytest

pytest.importorskip("triton", reason="cross-compilation needs triton, which is not installed")

from benchmarks.cross_compile import Compiled, compile_for


@pytest.fixture(scope="session")
def cross_compile() -> Callable[..., Compiled]:
    """``cross_compile(kernel, signature, constexprs, arch, num_warps=, num_stages=, divisible=)``."""
    return compile_for
