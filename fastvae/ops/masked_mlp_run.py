"""The serial computation of a masked MLP on PyTorch: blocks by matrix products, steps within a block one by one."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvae.reference.masked_mlp import Node, parse_program

__all__ = ["BLOCK", "Draw", "System", "blocks_of", "split_nodes", "table_of"]

# Like a triangular system: what lies before a block of steps comes in by one product for each weight, and only the
# part inside the block is serial. Measured on two cores, blocks of 16 to 128 dimensions take the same time.
BLOCK = 32

aten = torch.ops.aten
nn: Any = torch._C._nn


class Draw(Protocol):
    """How values follow from noise (n, B) and parameters (P, n, B)."""

    def into(self, noise: Tensor, params: Tensor, out: Tensor) -> None:
        """Write the values into ``out`` (n, B)."""

    def partials(self, noise: Tensor, params: Tensor) -> tuple[Tensor, Tensor] | None:
        """Derivatives of the values by noise (n, B) and by parameters (P, n, B); None where they do not move."""


# derivatives of the activations times ``grad``, from input and output
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "elu": lambda grad, h, _, alpha: aten.elu_backward(grad, alpha, 1.0, 1.0, False, h),
    "gelu": lambda grad, h, _, __: aten.gelu_backward(grad, h),
    "gelu_tanh": lambda grad, h, _, __: aten.gelu_backward(grad, h, approximate="tanh"),
    "leaky_relu": lambda grad, h, _, slope: aten.leaky_relu_backward(grad, h, slope, False),
    "relu": lambda grad, h, _, __: aten.threshold_backward(grad, h, 0.0),
    "sigmoid": lambda grad, _, y, __: aten.sigmoid_backward(grad, y),
    "silu": lambda grad, h, _, __: aten.silu_backward(grad, h),
    "softplus": lambda grad, h, _, beta: aten.softplus_backward(grad, h, beta, 20.0),
    "tanh": lambda grad, _, y, __: aten.tanh_backward(grad, y),
}
# written into given memory, by the functions that cost the least to call
_INTO: dict[str, Callable[[Tensor, float, Tensor], Any]] = {
    "elu": lambda h, alpha, out: nn.elu(h, alpha, out=out),
    "gelu": lambda h, _, out: nn.gelu(h, out=out),
    "gelu_tanh": lambda h, _, out: nn.gelu(h, approximate="tanh", out=out),
    "leaky_relu": lambda h, slope, out: nn.leaky_relu(h, slope, out=out),
    "relu": lambda h, _, out: torch.clamp_min(h, 0.0, out=out),
    "sigmoid": lambda h, _, out: torch.sigmoid(h, out=out),
    "silu": lambda h, _, out: nn.silu(h, out=out),
    "softplus": lambda h, beta, out: nn.softplus(h, beta, out=out),
    "tanh": lambda h, _, out: torch.tanh(h, out=out),
}
_COMBINE: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "multiply": torch.mul,
    "shift": torch.add,
    "scale": torch.mul,
}


class System:
    """A network with its units sorted by step, like a triangular system that is solved block by block.

    Args:
        weights: (rows, columns) each, zero where a column has a higher level than the row.
        terms, indices, program: as in :func:`fastvae.reference.solve_masked_mlp`.
        offsets: of all nodes, one after the other; see :class:`fastvae.ops.MaskedMLPPlan`.
        draw: makes values.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        terms: Sequence[Tensor],
        indices: Sequence[Tensor],
        program: str,
        offsets: Sequence[int],
        draw: Draw,
    ) -> None:
        self.weights, self.terms, self.indices, self.draw = weights, terms, indices, draw
        self.nodes = parse_program(program)
        self.table = table_of(offsets, len(self.nodes))
        self.num_params = len(indices[0])
        self.numbered = list(enumerate(self.nodes, start=1))
        self.active = [
            [(i, node) for i, node in self.numbered if self.table[i][step] < self.table[i][step + 1]]
            for step in range(len(self.table[0]) - 2)
        ]
        self.linear = [(i, node) for i, node in self.numbered if node.name == "linear"]

    def forward(self, noise: Tensor) -> Tensor:
        """Values of all units, each computed once.

        Args:
            noise: (D, B) in the order of the plan.

        Returns:
            (units, B): the rows of node 0, which are the solution, of node 1, and so on.
        """
        with torch.autocast(noise.device.type, enabled=False):
            return self._forward(noise)

    def backward(self, grad: Tensor, values: Tensor, noise: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The transposed system from the last step to the first: gradients of noise, weights and terms.

        Args:
            grad: (units, B), the gradient of what :meth:`forward` returned.
            values: what it returned.
            noise: what it was given.
        """
        with torch.autocast(noise.device.type, enabled=False):
            return self._backward(grad, values, noise)

    def _forward(self, noise: Tensor) -> Tensor:
        # zeros: in the products inside a block, units that are not known yet meet weights that are zero
        values = noise.new_zeros(sum(counts[-1] for counts in self.table), noise.shape[1])
        rows, parts = self._views(values)
        noises, params = _by_step(noise, self.table[0]), [self._by_param(part) for part in parts[-1]]
        others = {i: self._other(node, parts, self.table[i]) for i, node in self.numbered}
        for start, end in blocks_of(self.table[0]):
            for i, node in self.linear:
                self._product(node, rows, self.table[i], start, end, rows[i])
            inside = {i: self._inside(i, node, start, end) for i, node in self.linear}
            windows = {i: rows[node.args[0]][self._window(node, start, end)] for i, node in self.linear}
            for step in range(start, end):
                for i, node in self.active[step]:
                    out = parts[i][step]
                    if node.name == "linear":
                        out.addmm_(inside[i][step - start], windows[i])
                    elif node.name in _INTO:
                        _INTO[node.name](parts[node.args[0]][step], node.number, out)
                    elif node.name == "select":
                        torch.index_select(rows[node.args[0]], 0, others[i][step], out=out)
                    else:
                        _COMBINE[node.name](parts[node.args[0]][step], others[i][step], out=out)
                # what step t makes has level t + 1
                self.draw.into(noises[step + 1], params[step], parts[0][step + 1])
        return values

    def _backward(self, grad: Tensor, values: Tensor, noise: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        rows, value_parts = self._views(values)
        grads, parts = self._views(grad.clone(memory_format=torch.contiguous_format))
        others = {i: self._other(node, value_parts, self.table[i]) for i, node in self.numbered}
        slopes = {
            i: _by_step(_slope(node, rows[node.args[0]], rows[i]), self.table[i])
            for i, node in self.numbered
            if node.name in _INTO
        }
        partials = self.draw.partials(noise, rows[-1][self.indices[0]])
        if partials is not None:
            by_params = torch.empty_like(rows[-1])
            by_params[self.indices[0].flatten()] = partials[1].flatten(0, 1)
            param_partials = [self._by_param(part) for part in _by_step(by_params, self.table[-1])]
            param_grads = [self._by_param(part) for part in parts[-1]]
        for start, end in reversed(blocks_of(self.table[0])):
            for i, node in self.linear:
                later, window = self.table[i][end], self._window(node, start, end)
                grads[node.args[0]][window].addmm_(self.weights[node.args[1]][later:, window].t(), grads[i][later:])
            inside = {i: [m.t() for m in self._inside(i, node, start, end)] for i, node in self.linear}
            windows = {i: grads[node.args[0]][self._window(node, start, end)] for i, node in self.linear}
            for step in range(end - 1, start - 1, -1):
                if partials is not None:
                    param_grads[step].addcmul_(param_partials[step], parts[0][step + 1])
                for i, node in reversed(self.active[step]):
                    given = parts[i][step]
                    into = parts[node.args[0]][step]
                    if node.name == "linear":
                        windows[i].addmm_(inside[i][step - start], given)
                    elif node.name in _INTO:
                        into.addcmul_(given, slopes[i][step])
                    elif node.name == "select":
                        grads[node.args[0]].index_add_(0, others[i][step], given)
                    elif node.name in ("add", "shift"):
                        into.add_(given)
                    else:
                        into.addcmul_(given, others[i][step])
                    if node.name == "add":
                        parts[node.args[1]][step].add_(given)
                    elif node.name == "multiply":
                        parts[node.args[1]][step].addcmul_(given, value_parts[node.args[0]][step])
        grad_noise = torch.zeros_like(noise) if partials is None else partials[0] * grads[0]
        return grad_noise, *self._grads_of_tensors(rows, grads)

    def _grads_of_tensors(self, rows: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        grad_weights = [torch.zeros_like(w) for w in self.weights]
        grad_terms = [torch.zeros_like(t) for t in self.terms]
        for i, node in self.numbered:
            source = rows[node.args[0]]
            if node.name == "linear":
                grad_weight = grad_weights[node.args[1]]
                grad_weight.addmm_(grads[i], source[: grad_weight.shape[1]].t())
            term = node.args[-1] if node.name in ("linear", "shift", "scale") else -1
            if term >= 0:
                found = grads[i] * source if node.name == "scale" else grads[i]
                grad_terms[term] += found if grad_terms[term].shape[1] > 1 else found.sum(1, keepdim=True)
        return grad_weights, grad_terms

    def _views(self, units: Tensor) -> tuple[tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
        """Rows of all units -> those of every node, and of these the rows of every level."""
        rows = units.split([counts[-1] for counts in self.table])
        return rows, [_by_step(node, counts) for node, counts in zip(rows, self.table, strict=True)]

    def _by_param(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (self.num_params, -1))

    def _window(self, node: Node, start: int, end: int) -> slice:
        """The units of a linear node's source whose level is one of the block's steps."""
        counts = self.table[node.args[0]]
        return slice(counts[start], counts[end])

    def _inside(self, i: int, node: Node, start: int, end: int) -> tuple[Tensor, ...]:
        """For every step of a block, the weights of its rows and of the block's columns."""
        counts = self.table[i]
        matrix = self.weights[node.args[1]][counts[start] : counts[end], self._window(node, start, end)]
        return _by_step(matrix, counts[start : end + 1])

    def _product(
        self, node: Node, rows: Sequence[Tensor], counts: Sequence[int], start: int, end: int, out: Tensor
    ) -> None:
        """A block's rows of a linear node: its term and what comes from before the block."""
        source, weight, term = node.args
        block, known = slice(counts[start], counts[end]), self.table[source][start]
        matrix, units = self.weights[weight][block, :known], rows[source][:known]
        if term < 0:
            torch.mm(matrix, units, out=out[block])
        elif known:
            torch.addmm(self.terms[term][block], matrix, units, out=out[block])
        else:
            out[block] = self.terms[term][block]

    def _other(self, node: Node, parts: Sequence[Any], counts: Sequence[int]) -> tuple[Tensor, ...]:
        """The second operand of a node at every step; nothing for those with one."""
        if node.name in ("add", "multiply"):
            return parts[node.args[1]]
        if node.name in ("shift", "scale"):
            return _by_step(self.terms[node.args[1]], counts)
        return _by_step(self.indices[node.args[1]], counts) if node.name == "select" else ()


def split_nodes(values: Tensor, offsets: Sequence[int], num_nodes: int) -> tuple[Tensor, ...]:
    """Rows of all units -> those of every node, the input first."""
    return values.split([counts[-1] for counts in table_of(offsets, num_nodes)])


def blocks_of(counts: Sequence[int]) -> list[tuple[int, int]]:
    """First step and end of blocks of about ``BLOCK`` dimensions, from the offsets of the input.

    Step t makes the dimensions of level t + 1.
    """
    blocks, start = [], 0
    num_steps = len(counts) - 2
    for step in range(num_steps):
        if step + 1 == num_steps or counts[step + 3] - counts[start + 1] > BLOCK:
            blocks.append((start, step + 1))
            start = step + 1
    return blocks


def table_of(offsets: Sequence[int], num_nodes: int) -> list[Sequence[int]]:
    """The offsets of every node, the input first."""
    length = len(offsets) // (num_nodes + 1)
    return [offsets[i * length : (i + 1) * length] for i in range(num_nodes + 1)]


def _by_step(rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """The rows of each level: many views by one call."""
    return rows.split([b - a for a, b in pairwise(counts)])


def _slope(node: Node, units: Tensor, result: Tensor) -> Tensor:
    """The derivative of an activation."""
    return _DERIVATIVES[node.name](torch.ones_like(units), units, result, node.number)
