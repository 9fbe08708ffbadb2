"""Backends: what runs the steps of a plan, and the reasons for the choice."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, fx

from fastvae.ops._dispatch import HAS_TRITON, backend, choose

from .cuda_graph import GraphProgram
from .draw import Callback, Draw
from .patterns import MismatchError
from .persistent import Net, Persistent, match, why_not_drawn
from .plan import Plan
from .request import Request
from .run import Program

__all__ = ["BACKENDS", "BackendName", "Backends"]

BackendName = Literal["auto", "torch", "cuda_graph", "triton"]
BACKENDS: tuple[str, ...] = get_args(BackendName)

# what was measured to be the fastest: compute capability -> (batches of at most so many images, backend), in order
_FASTEST: dict[tuple[int, int], tuple[tuple[int, BackendName], ...]] = {}


@dataclass(frozen=True)
class Backends:
    """Which backends can run a plan.

    Attributes:
        wanted: "auto", or the name of the one that must run.
        plan: the schedule.
        draw: the likelihood.
        device: of the model.
    """

    wanted: str
    plan: Plan
    draw: Draw
    device: torch.device

    def for_request(self, request: Request, *, whole: bool = True) -> str:
        """The backend of a call.

        Args:
            request: what to draw.
            whole: whether all steps run, and nothing is to be known before the last.

        Raises:
            RuntimeError: with the reason, if the one that is wanted cannot run.
        """
        if self.wanted == "torch":
            return "torch"
        plain = whole and request.known is None and request.draw is self.draw
        unsupported = (
            None
            if plain
            else "they draw whole images at temperature 1: not completions, other temperatures, top_k or single rows"
        )
        if self.wanted == "cuda_graph":
            reason = self.why_no_graph or unsupported
            if reason is not None:
                raise RuntimeError(f"backend 'cuda_graph' is wanted but cannot run: {reason}")
            return "cuda_graph"
        reason = self.why_no_kernel or (unsupported and f"the kernels cannot: {unsupported}")
        if self.wanted == "triton":
            with backend("triton"):
                return choose(request.uniform, unsupported=reason)
        fastest = self._fastest(request.size)
        if choose(request.uniform, unsupported=reason, preferred=fastest == "triton") == "triton":
            return "triton"
        if fastest == "cuda_graph" and plain and self.why_no_graph is None:
            return "cuda_graph"
        return "torch"

    def program(
        self, name: str, plan: Plan, batch: int, values: dict[fx.Node, Tensor]
    ) -> "Program | GraphProgram | Persistent":
        """What runs the steps of ``plan``, this one or a part of it."""
        if name == "triton":
            assert not isinstance(self._net, str)
            return Persistent(self._net, batch, self.draw, values)
        kind = GraphProgram if name == "cuda_graph" else Program
        return kind(plan, batch, self.draw, values, self.device)

    @cached_property
    def why_no_graph(self) -> str | None:
        """Why no CUDA graph can run the plan; None if it can."""
        if self.device.type != "cuda":
            return f"it needs a CUDA device, the model is on {self.device}"
        if isinstance(self.draw, Callback):
            return "a likelihood that is a callable may wait for the device"
        return None

    @property
    def why_no_kernel(self) -> str | None:
        """Why no persistent kernel can run the plan; None if it can, on a CUDA device."""
        if not HAS_TRITON:
            return "the package triton is not installed"
        return self._net if isinstance(self._net, str) else None

    def __str__(self) -> str:
        kernel = self.why_no_kernel or (None if self.device.type == "cuda" else "it needs a CUDA device")
        if kernel is None and not isinstance(self._net, str):
            kernel = f"ready: {self._net.kernel} stack, pixel (i, j) at step j + {self._net.skew} i"
        lines = {
            "backend": f"{self.wanted}{self._choice() if self.wanted == 'auto' else ''}",
            "  cuda_graph": self.why_no_graph or "ready",
            "  triton": kernel,
        }
        return "\n".join(f"  {name:<16}{text}" for name, text in lines.items())

    def _choice(self) -> str:
        if self.device.type != "cuda":
            return ": torch, as the model is on the CPU"
        capability = torch.cuda.get_device_capability(self.device)
        if capability not in _FASTEST:
            return f": torch, as nothing was measured for compute capability {capability[0]}.{capability[1]} yet"
        return ": " + ", ".join(f"up to {most} images {name}" for most, name in _FASTEST[capability]) + ", then torch"

    def _fastest(self, batch: int) -> str:
        if self.device.type != "cuda":
            return "torch"
        rows = _FASTEST.get(torch.cuda.get_device_capability(self.device), ())
        return next((name for most, name in rows if batch <= most), "torch")

    @cached_property
    def _net(self) -> Net | str:
        """What a kernel can run, or why none can."""
        reason = why_not_drawn(self.draw)
        if reason is not None:
            return reason
        try:
            return match(self.plan)
        except MismatchError as error:
            return str(error)
