"""The one place that decides which implementation runs."""

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Backend", "backend", "choose", "must_use_definition"]

Backend = Literal["auto", "triton", "torch", "reference"]
_forced: ContextVar[Backend | None] = ContextVar("fastvae_backend", default=None)


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Force an implementation inside a ``with`` block.

    The environment variable FASTVAE_BACKEND does the same for a whole process; the block wins.

    Args:
        name: ``"triton"`` for our kernels (CUDA tensors), ``"torch"`` for the fast PyTorch path, ``"reference"`` for
            the plain definitions, ``"auto"`` for our choice: kernels on CUDA where they are the fastest, else torch.

    Raises:
        ValueError: for another name, at once. A forced implementation that cannot run raises ``RuntimeError`` with
            the reason when an operator is called; it never falls back.

    Example:
        >>> import fastvae
        >>> with fastvae.backend("reference"):
        ...     u = fastvae.ops.uniform(0, torch.arange(2), torch.arange(3), 4)
    """
    if name not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, got {name!r}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(*tensors: Tensor, unsupported: str | None = None) -> Backend:
    """The implementation for these tensors: the forced one, else triton on CUDA and torch elsewhere.

    ``unsupported`` says why the kernels cannot serve this call (a dtype, a shape); None if they can.
    """
    name = _forced.get() or os.environ.get("FASTVAE_BACKEND", "auto")
    if name not in get_args(Backend):
        raise ValueError(f"FASTVAE_BACKEND must be one of {get_args(Backend)}, got {name!r}")
    if name not in ("auto", "triton"):
        return name  # type: ignore[return-value]
    reason = _why_not_triton(tensors) or unsupported
    if name == "triton":
        if reason is not None:
            raise RuntimeError(f"backend 'triton' is forced but cannot run: {reason}")
        return "triton"
    if reason is None:
        return "triton"
    if all(t.is_cuda for t in tensors) and not _has_triton():
        _warn_once(reason)
    return "torch"


def _why_not_triton(tensors: tuple[Tensor, ...]) -> str | None:
    if not _has_triton():
        return "the package triton is not installed"
    # the interpreter runs kernels on CPU tensors, but only where a test forces it: it is slow
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and _forced.get() == "triton"
    if not interpreted and not all(t.is_cuda for t in tensors):
        return "it needs CUDA tensors, got " + ", ".join(sorted({str(t.device) for t in tensors}))
    return None


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"fastvae runs on its torch path, which is slower here: {reason}", stacklevel=4)


def must_use_definition(*tensors: Tensor) -> bool:
    """Whether the plain definition has to run instead of the operator.

    Where it is forced, and under torch.func transforms or forward-mode AD: custom operators do not support them
    (jvp would silently be zero). A compiler traces the operator, which chooses when it runs.
    """
    if torch.compiler.is_compiling():
        return False
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return transformed or torch.autograd.forward_ad._current_level >= 0 or choose(*tensors) == "reference"
