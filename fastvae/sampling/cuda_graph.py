"""Run all steps of a program as one CUDA graph: the host launches once for an image instead of once for every call."""

from collections.abc import Callable

import torch
from torch import Tensor

from .request import Request
from .run import Program

__all__ = ["GraphProgram"]


class GraphProgram(Program):
    """A program whose steps are captured at the first run and replayed from then on.

    A program works in memory of its own, weights and condition included, which :meth:`refresh` fills anew, so a graph
    stays right as long as the program does: an engine drops its programs when parameters change their shape, dtype or
    device.
    """

    _graph: torch.cuda.CUDAGraph | None = None

    def sample(self, request: Request, on_rows: Callable[[int, Tensor], None] | None = None) -> None:
        """Draw all images of a request that observes nothing, at the temperature of the program."""
        with torch.inference_mode(), torch.cuda.device(self.device):
            self._known = None
            self._noise.copy_(self.draw.prepare(self._as_cells(request.uniform)))
            if self._graph is None:
                self._graph = self._captured()
            self._graph.replay()

    def _walk(self) -> None:
        for calls, draw, _ in self._steps:
            for call in calls:
                call()
            draw()

    def _captured(self) -> torch.cuda.CUDAGraph:
        # once outside of a graph: libraries allocate their workspaces at first use
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._walk()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._walk()
        return graph
