"""Run: a plan on torch, as a flat list of calls on memory that is allocated once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from .calls import call_into
from .draw import Draw
from .graph import Box, Constant, Linear, Map, Operator, Read
from .plan import Cells, Plan
from .request import Request

__all__ = ["Program"]

Call = Callable[[], Any]
# Below this many multiplications per matrix product the threads of one product cost more than they gain: on 2 cores one
# thread took 0.8x the time of two at 0.5e6 and 1.4x at 1e6, and far less while other programs kept the cores busy.
_LEAST_MACS_FOR_THREADS = 700_000


class Program:
    """A plan for one batch size: owns the caches, walks the wavefront.

    Cells are stored as (1 + cells, batch, *features) in the order of their computation, so the cells of a step are one
    slice; row 0 stays zero and stands for every pixel outside. A convolution gathers its taps as rows of one matrix.

    Args:
        plan: the schedule.
        batch: images drawn at once.
        draw: the likelihood.
        values: of all nodes that constants and weights need.
        device: where to run.
    """

    def __init__(self, plan: Plan, batch: int, draw: Draw, values: dict[fx.Node, Tensor], device: torch.device) -> None:
        self.plan, self.batch, self.draw, self.device = plan, batch, draw, device
        self._values = values
        self._storage = {op: self._allocate(op) for op in plan.operators}
        self._indices: dict[Any, Tensor] = {}
        self._scratch: dict[torch.dtype, Tensor] = {}
        self._updates: list[tuple[Tensor, Callable[[dict[fx.Node, Tensor]], Tensor]]] = []
        self._constants: dict[tuple[Operator, int], Tensor] = {}
        self._known: Tensor | None = None
        self._weights: dict[Operator, tuple[Tensor | None, Tensor | None]] = {}
        for op in plan.operators:
            self._hold(op)
        image, pixels = self._storage[plan.pixels], len(plan.cells[plan.pixels])
        channels = plan.pixels.features[0]
        noise_dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
        self._noise = torch.zeros((pixels, batch, channels), dtype=noise_dtype, device=device)
        self._gathered = None if plan.is_direct(plan.pixels, plan.output) else self._params_storage(pixels)
        self._steps = [self._step(step) for step in range(plan.num_steps)]
        self._values = {}
        products = sum(isinstance(op, Linear) for op in plan.operators) * plan.num_steps
        self._small = device.type == "cpu" and plan.macs * batch < _LEAST_MACS_FOR_THREADS * products

    def refresh(self, values: dict[fx.Node, Tensor]) -> None:
        """Take the present weights and condition."""
        with torch.no_grad():
            for held, compute in self._updates:
                held.copy_(compute(values))

    def sample(self, request: Request, on_rows: Callable[[int, Tensor], None] | None = None) -> None:
        """Draw all images; ``on_rows`` is called with (first row, values (B, C, rows, W)) when rows are finished."""
        self._known = None if request.known is None else self._as_cells(request.known)
        rows_done = self.plan.rows_done() if on_rows is not None else None
        sent = 0
        with torch.inference_mode(), _one_thread(self._small):
            self._noise.copy_(request.draw.prepare(self._as_cells(request.uniform)))
            if request.values is not None:
                self._storage[self.plan.pixels][1:] = self._as_cells(request.values)
            draws = self._draws(request.draw)
            for step, (calls, _, _) in enumerate(self._steps):
                for call in calls:
                    call()
                draws[step]()
                if on_rows is not None and rows_done is not None and rows_done[step] > sent:
                    sent = self._send(on_rows, sent, int(rows_done[step]))
            if on_rows is not None and sent < self.plan.height:
                self._send(on_rows, sent, self.plan.height)  # known ones

    def decode(self, images: Tensor) -> None:
        """Walk the same steps with given images (B, C, H, W) in place of the draws."""
        given = self._as_cells(images)
        with torch.inference_mode(), _one_thread(self._small):
            for calls, _, (start, end) in self._steps:
                for call in calls:
                    call()
                self._storage[self.plan.pixels][1 + start : 1 + end] = given[start:end]

    def images(self) -> Tensor:
        """The values drawn, (B, C, H, W)."""
        return self._as_images(self._storage[self.plan.pixels])

    def params(self) -> Tensor:
        """The parameters computed, (B, C * P, H, W)."""
        if self._gathered is not None:
            return self._as_images(torch.cat([self._gathered[:1], self._gathered]))
        return self._as_images(self.plan.output.value.view(self._storage[self.plan.output.value.operator]))

    def log_prob(self) -> Tensor | None:
        """Nats of the values that were drawn, (B,), each under its conditional."""
        end = int(self.plan.bounds[self.plan.pixels][-1])  # what comes after is known
        nats = self.draw.log_prob(self._storage[self.plan.pixels][1 : 1 + end], self._params(0, end))
        if nats is None:
            return None
        if self._known is not None:
            nats = nats.masked_fill(self._known[:end], 0.0)
        return nats.double().sum((0, 2)).to(nats.dtype)

    # ---- memory

    def _allocate(self, op: Operator) -> Tensor:
        if op in self.plan.cached:
            count = len(self.plan.cells[op]) + 1
        else:
            count = int(np.diff(self.plan.bounds[op], prepend=0).max())
        return torch.zeros((count, self.batch, *op.features), dtype=op.dtype, device=self.device)

    def _params_storage(self, pixels: int) -> Tensor:
        value = self.plan.output.value
        shape = (pixels, self.batch, *value.sample.shape[2:])
        return torch.zeros(shape, dtype=value.sample.dtype, device=self.device)

    def _hold(self, op: Operator) -> None:
        """Memory for the weights and constants of an operator, filled anew by every refresh."""
        if isinstance(op, Linear):
            weight = self._held(partial(_packed, op)) if op.taps else None
            bias = None if op.bias is None else self._held(partial(_bias, op))
            self._weights[op] = (weight, bias)
        elif isinstance(op, Map):
            for number, operand in enumerate(op.operands):
                if isinstance(operand, Constant):
                    compute = partial(_constant, operand, op.box, self.plan.cells[op], self.batch)
                    self._constants[op, number] = self._held(compute)

    def _held(self, compute: Callable[[dict[fx.Node, Tensor]], Tensor]) -> Tensor:
        held = compute(self._values).detach().clone(memory_format=torch.contiguous_format)
        self._updates.append((held, compute))
        return held

    def _temporary(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for the inputs of one call; the next call may overwrite it."""
        count = int(np.prod(shape))
        if dtype not in self._scratch or self._scratch[dtype].numel() < count:
            self._scratch[dtype] = torch.empty(count, dtype=dtype, device=self.device)
        return self._scratch[dtype][:count].view(shape)

    def _index(self, numbers: "np.ndarray[Any, Any]") -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self.device)

    # ---- calls

    def _step(self, step: int) -> tuple[list[Call], Call, tuple[int, int]]:
        calls: list[Call] = []
        for op in self.plan.operators:
            start, end = self._range(op, step)
            if start == end or op is self.plan.pixels:
                continue
            if isinstance(op, Linear):
                calls += self._linear(op, start, end)
            elif isinstance(op, Map):
                calls += self._map(op, start, end)
        start, end = self._range(self.plan.pixels, step)
        if self._gathered is not None:
            calls.append(self._gather(self.plan.pixels, [self.plan.output], start, end, self._gathered[start:end]))
        return calls, self._draw(self.draw, start, end), (start, end)

    def _draws(self, draw: Draw) -> list[Call]:
        """The draws of the steps: for this run, if it has known pixels or another temperature than the program."""
        if draw is self.draw and self._known is None:
            return [call for _, call, _ in self._steps]
        return [self._draw(draw, start, end) for _, _, (start, end) in self._steps]

    def _draw(self, draw: Draw, start: int, end: int) -> Call:
        image = self._storage[self.plan.pixels][1 + start : 1 + end]
        noise, params = self._noise[start:end], self._params(start, end)
        if self._known is None:
            return draw.into(noise, params, image)
        known = self._known[start:end]
        return lambda: image.copy_(draw.complete(noise, params, known, image))

    def _range(self, op: Operator, step: int) -> tuple[int, int]:
        bounds = self.plan.bounds[op]
        return int(bounds[step - 1]) if step else 0, int(bounds[step])

    def _linear(self, op: Linear, start: int, end: int) -> list[Call]:
        rows = (end - start) * self.batch
        out = self._slice(op, start, end).view(rows, -1)
        weight, bias = self._weights[op]
        if weight is None:
            return [partial(out.copy_, bias) if bias is not None else out.zero_]
        calls: list[Call] = []
        reads = op.reads
        if len(reads) == 1 and self.plan.is_direct(op, reads[0]):
            matrix = _joined(self._shown(reads[0], start, end))
        else:
            features = reads[0].value.sample.shape[2]
            matrix = self._temporary((rows, len(reads) * features), op.dtype)
            calls.append(self._gather(op, reads, start, end, matrix))
        if bias is None:
            calls.append(partial(torch.mm, matrix, weight, out=out))
        else:
            calls.append(partial(torch.addmm, bias, matrix, weight, out=out))
        return calls

    def _map(self, op: Map, start: int, end: int) -> list[Call]:
        calls: list[Call] = []
        tensors: list[Tensor] = []
        count = end - start
        for number, (operand, align) in enumerate(zip(op.operands, op.align, strict=True)):
            if isinstance(operand, Constant):
                tensor = self._constants[op, number]
                if tensor.ndim and tensor.shape[0] > 1:
                    tensor = tensor[start:end]
                if op.expand:
                    tensor = tensor.expand(count, self.batch, *tensor.shape[2:])
            elif self.plan.is_direct(op, operand):
                tensor = self._shown(operand, start, end)
                tensor = tensor.view(count, self.batch, *align)
            else:
                sample = operand.value.sample
                tensor = torch.empty((count, self.batch, *sample.shape[2:]), dtype=sample.dtype, device=self.device)
                calls.append(self._gather(op, [operand], start, end, tensor))
                tensor = tensor.view(count, self.batch, *align)
            tensors.append(tensor)
        args, kwargs = op.arguments(tensors)
        return [*calls, call_into(op.function, args, kwargs, self._slice(op, start, end))]

    def _gather(self, reader: Operator, reads: list[Read], start: int, end: int, out: Tensor) -> Call:
        """Copy what pixels start..end-1 read, pixel by pixel, image by image, read by read."""
        value = reads[0].value
        source = _joined(value.view(self._storage[value.operator]))  # (cells * batch, *features)
        # layers of one geometry share their table
        ends = (self.plan.cells[reader], self.plan.cells[value.operator])
        key = (ends, value.box, tuple(read.offset for read in reads))
        if key not in self._indices:
            self._indices[key] = self._index(_rows(self.plan, reader, reads, self.batch))
        count = self.batch * len(reads)
        index = self._indices[key][start * count : end * count]
        if source[0].numel() == 1:  # single numbers: several times faster as a vector
            return partial(torch.index_select, source.view(-1), 0, index, out=out.view(-1))
        return partial(torch.index_select, source, 0, index, out=out.view(index.shape[0], *source.shape[1:]))

    def _slice(self, op: Operator, start: int, end: int) -> Tensor:
        storage = self._storage[op]
        return storage[1 + start : 1 + end] if op in self.plan.cached else storage[: end - start]

    def _shown(self, read: Read, start: int, end: int) -> Tensor:
        return read.value.view(self._slice(read.value.operator, start, end))

    def _params(self, start: int, end: int) -> Tensor:
        """(pixels, batch, C, P)."""
        channels = self.plan.pixels.features[0]
        gathered = self._gathered
        params = self._shown(self.plan.output, start, end) if gathered is None else gathered[start:end]
        return params.unflatten(2, (self.draw.groups(channels), -1))

    def _as_cells(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (pixels, batch, C)."""
        cells = self.plan.cells[self.plan.pixels]
        return images[:, :, self._index(cells.rows), self._index(cells.columns)].permute(2, 0, 1)

    def _as_images(self, storage: Tensor, first: int = 0, end: int | None = None) -> Tensor:
        """(1 + pixels, batch, C) -> (B, C, H, W), or rows first..end-1 alone."""
        places = self._index(self.plan.cells[self.plan.pixels].places[first:end].ravel())
        cells = storage.index_select(0, places).unflatten(0, (-1, self.plan.width))
        return cells.permute(2, 3, 0, 1).contiguous()

    def _send(self, on_rows: Callable[[int, Tensor], None], first: int, end: int) -> int:
        with torch.inference_mode(False):  # what is handed out is an ordinary tensor
            on_rows(first, self._as_images(self._storage[self.plan.pixels], first, end))
        return end


def _joined(cells: Tensor) -> Tensor:
    """(cells, batch, *features) -> (cells * batch, *features), never a copy: it would not follow the cells."""
    return cells.view(cells.shape[0] * cells.shape[1], *cells.shape[2:])


@contextmanager
def _one_thread(small: bool) -> Iterator[None]:
    threads = torch.get_num_threads()
    if not small or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rows(plan: Plan, reader: Operator, reads: list[Read], batch: int) -> "np.ndarray[Any, Any]":
    """Rows of the source that every (pixel, image, read) takes."""
    cells = plan.cells[reader]
    source = plan.cells[reads[0].value.operator]
    places = [
        source.lookup(cells.rows + read.offset[0], cells.columns + read.offset[1], read.value.box) for read in reads
    ]
    rows = np.stack(places, axis=1)[:, None, :] * batch + np.arange(batch)[None, :, None]
    return rows.ravel()


def _packed(op: Linear, values: dict[fx.Node, Tensor]) -> Tensor:
    """(taps * features in, features out), the taps in the order of the reads."""
    matrices = op.matrices(values[op.weight])
    keys = [key for key, _ in op.taps]
    return matrices[keys].flatten(0, 1)


def _bias(op: Linear, values: dict[fx.Node, Tensor]) -> Tensor:
    return values[op.bias].reshape(-1)  # type: ignore[index]


def _constant(constant: Constant, box: Box, cells: Cells, batch: int, values: dict[fx.Node, Tensor]) -> Tensor:
    """(cells or 1, batch or 1, *features)."""
    tensor = constant.compute(*(values[node] for node in constant.nodes))
    if not tensor.ndim:
        return tensor
    if tensor.shape[2] > batch:
        tensor = tensor[:, :, :batch]  # a single image is traced as two
    if tensor.shape[:2] == (1, 1):
        return tensor[0]
    grid = tensor.expand(box.height, box.width, *tensor.shape[2:])
    rows, columns = torch.from_numpy(cells.rows - box.top), torch.from_numpy(cells.columns - box.left)
    return grid[rows.to(tensor.device), columns.to(tensor.device)]
