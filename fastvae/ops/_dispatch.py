"""The one place that decides which implementation runs."""

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "HAS_TRITON",
    "Backend",
    "autocast_dtype",
    "backend",
    "choose",
    "constant_when_compiled",
    "decides_alone",
    "is_transformed",
    "must_use_definition",
    "refuse_tangents",
    "runs_as_written",
    "untraced",
]

Backend = Literal["auto", "triton", "torch", "reference"]
_BACKENDS = get_args(Backend)
Function = TypeVar("Function", bound=Callable)
_forced: ContextVar[Backend | None] = ContextVar("fastvae_backend", default=None)
# each takes 0.05 us here and a multiple through os.environ and torch; without that part of CPython, the mapping itself
_variables: Any = getattr(os.environ, "_data", os.environ)
_VARIABLE: Any = os.environ.encodekey("FASTVAE_BACKEND") if hasattr(os.environ, "_data") else "FASTVAE_BACKEND"
_tracing_state, _dispatch_modes = torch._C._get_tracing_state, torch._C._len_torch_dispatch_stack
_is_autocast, _transform = torch._C._is_any_autocast_enabled, torch._C._functorch.peek_interpreter_stack
HAS_TRITON = importlib.util.find_spec("triton") is not None  # asked without importing it


def constant_when_compiled(function: Function) -> Function:
    """Mark what a compiler cannot trace: a compiled function keeps the result it was traced with.

    This is ``torch.compiler.assume_constant_result``, which would import the compiler, a second, with the library.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Force an implementation inside a ``with`` block.

    The environment variable FASTVAE_BACKEND does the same for a whole process; the block wins. A function compiled
    by torch.compile keeps the implementation that it was traced under.

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
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of {_BACKENDS}, got {name!r}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(*tensors: Tensor, unsupported: str | None = None, preferred: bool = True) -> Backend:
    """The implementation for these tensors: the forced one, else triton on CUDA and torch elsewhere.

    ``unsupported`` says why the kernels cannot serve this call (a dtype, a shape); None if they can. ``preferred``
    is False where they can but are not known to be the fastest: then only force selects them.
    """
    name = _requested()
    if name in ("torch", "reference"):
        return name
    if name == "triton":
        reason = _why_not_triton(tensors) or unsupported
        if reason is not None:
            raise RuntimeError(f"backend 'triton' is forced but cannot run: {reason}")
        return "triton"
    if not all(t.is_cuda for t in tensors):
        return "torch"
    if not HAS_TRITON:
        _warn("the package triton is not installed")
        return "torch"
    return "triton" if preferred and unsupported is None else "torch"


def _why_not_triton(tensors: tuple[Tensor, ...]) -> str | None:
    if not HAS_TRITON:
        return "the package triton is not installed"
    # the interpreter runs kernels on CPU tensors, but only where a test forces it: it is slow
    if not _is_interpreted() and not all(t.is_cuda for t in tensors):
        return "it needs CUDA tensors, got " + ", ".join(sorted({str(t.device) for t in tensors}))
    return None


# what a compiler cannot trace is constant to it: a compiled function keeps the backend that it was traced under
@constant_when_compiled
def _requested() -> Backend:
    name = _forced.get() or os.environ.get("FASTVAE_BACKEND") or "auto"
    if name not in _BACKENDS:
        raise ValueError(f"FASTVAE_BACKEND must be one of {_BACKENDS}, got {name!r}")
    return name  # type: ignore[return-value]


@constant_when_compiled
def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1" and _forced.get() == "triton"


@constant_when_compiled
def _warn(reason: str) -> None:
    # Python shows it once for each calling line
    warnings.warn(f"fastvae runs on its torch path, which is slower here: {reason}", stacklevel=4)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast wants ``x`` to be; None where it is off, unknown (meta tensors), or leaves float64 alone."""
    kind = x.device.type
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def must_use_definition(*tensors: Tensor) -> bool:
    """Whether the plain definition has to run instead of the operator.

    Where it is forced, and under torch.func transforms or forward-mode AD: custom operators do not support them
    (jvp would silently be zero).
    """
    if is_transformed():
        return True
    # for compilers, which look again when a value that they read has changed, as in a call within a dual level
    return torch.autograd.forward_ad._current_level >= 0 or choose(*tensors) == "reference"


# a compiler enters the transforms that it traces, and guards what it made on those around the call
@constant_when_compiled
def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode AD is on, in which only plain operations are right.

    The backward pass of an operator has to ask again: it can be inside where its forward pass was not.
    """
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return transformed or torch.autograd.forward_ad._current_level >= 0


def refuse_tangents(name: str, *tensors: Tensor) -> None:
    """For the backward pass of an operator whose derivative is an operator too: raise where jvp would silently be zero.

    Raises:
        RuntimeError: in forward-mode AD, where one of the ``tensors`` has a tangent.
    """
    forward_ad = torch.autograd.forward_ad
    if forward_ad._current_level < 0:
        return
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    if transformed or any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            f"forward-mode AD of the gradient of {name} needs its forward pass inside too: call {name} within the dual "
            "level or the function that torch.func.jvp differentiates"
        )


def runs_as_written() -> bool:
    """Whether tensors are what they seem: no compiler, tracer, transform or forward-mode AD looks on.

    Only then may a path look at values that it keeps, or compute in the memory of its own intermediate results.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or is_transformed()
    )


def decides_alone() -> bool:
    """:func:`runs_as_written` where no backend is forced and autocast is off: shapes alone decide what runs."""
    return not (
        torch.compiler.is_compiling()
        or _tracing_state() is not None
        or _dispatch_modes()
        or _is_autocast()
        or _transform() is not None
        or forward_ad._current_level >= 0
        or _forced.get() is not None
        or _variables.get(_VARIABLE)
    )


@contextmanager
def untraced() -> Iterator[None]:
    """What torch.jit.trace must not record: reading values once, whose sizes would be tensors to it."""
    state = torch._C._get_tracing_state()
    if state is None:
        yield
        return
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined] # the stub lacks it
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
