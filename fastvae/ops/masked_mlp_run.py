"""The serial computation of a masked MLP on PyTorch: blocks by matrix products, steps within a block one by one."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvae.reference.masked_mlp import Node, activate_units, parse_program

__all__ = ["BLOCK", "Draw", "backward", "forward", "split_nodes"]

# Like a triangular system: what lies before a block of steps comes in by one product for each weight, and only the
# part inside the block is serial. Measured on two cores, blocks of 16 to 128 dimensions take the same time.
BLOCK = 32

aten = torch.ops.aten


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
_IN_PLACE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "relu": lambda h, out: torch.clamp_min(h, 0.0, out=out),
    "sigmoid": lambda h, out: torch.sigmoid(h, out=out),
    "tanh": lambda h, out: torch.tanh(h, out=out),
}


def forward(
    noise: Tensor,
    weights: Sequence[Tensor],
    terms: Sequence[Tensor],
    indices: Sequence[Tensor],
    program: str,
    offsets: Sequence[int],
    num_params: int,
    draw: Draw,
) -> Tensor:
    """Values of all units, each computed once.

    Args:
        noise: (D, B) in the order of the plan.
        weights, terms, indices, program: as in :func:`fastvae.reference.solve_masked_mlp`.
        offsets: of all nodes, one after the other.
        num_params: P.
        draw: makes values.

    Returns:
        (units, B): the rows of node 0, which are the solution, of node 1, and so on.
    """
    with torch.autocast(noise.device.type, enabled=False):
        return _forward(noise, weights, terms, indices, program, offsets, num_params, draw)


def _forward(
    noise: Tensor,
    weights: Sequence[Tensor],
    terms: Sequence[Tensor],
    indices: Sequence[Tensor],
    program: str,
    offsets: Sequence[int],
    num_params: int,
    draw: Draw,
) -> Tensor:
    nodes = parse_program(program)
    table = _table(offsets, len(nodes))
    batch = noise.shape[1]
    # zeros: units that only the last step would know stay as they are
    values = noise.new_zeros(sum(rows[-1] for rows in table), batch)
    rows = split_nodes(values, offsets, len(nodes))
    parts = [_by_step(node, counts) for node, counts in zip(rows, table, strict=True)]
    noises = _by_step(noise, table[0])
    linear = [(i, node) for i, node in enumerate(nodes, start=1) if node.name == "linear"]
    for start, end in _blocks(table[0]):
        for i, node in linear:
            low, high = table[i][start], table[i][end]
            if low < high:
                _product(node, weights, terms, rows, low, high, table[node.args[0]][start], rows[i][low:high])
        for step in range(start, end):
            for i, node in enumerate(nodes, start=1):
                low, high = table[i][step], table[i][step + 1]
                if low == high:
                    continue
                out = parts[i][step]
                source, *rest = node.args
                if node.name == "linear":
                    first, last = table[source][start], table[source][step + 1]
                    if first < last:
                        out.addmm_(weights[rest[0]][low:high, first:last], rows[source][first:last])
                elif node.name == "select":
                    torch.index_select(rows[source], 0, indices[rest[0]][low:high], out=out)
                elif node.name in ("add", "multiply"):
                    combine = torch.add if node.name == "add" else torch.mul
                    combine(parts[source][step], parts[rest[0]][step], out=out)
                elif node.name in ("shift", "scale"):
                    combine = torch.add if node.name == "shift" else torch.mul
                    combine(parts[source][step], terms[rest[0]][low:high], out=out)
                else:
                    _activate(node, parts[source][step], out)
            # what step t makes has level t + 1
            draw.into(noises[step + 1], parts[-1][step].unflatten(0, (num_params, -1)), parts[0][step + 1])
    return values


def backward(
    grad: Tensor,
    values: Tensor,
    noise: Tensor,
    weights: Sequence[Tensor],
    terms: Sequence[Tensor],
    indices: Sequence[Tensor],
    program: str,
    offsets: Sequence[int],
    draw: Draw,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The transposed system from the last step to the first: gradients of noise, weights and terms.

    Args:
        grad: (units, B), the gradient of what :func:`forward` returned.
        values: what it returned.
        noise, weights, terms, indices, program, offsets, draw: as there.
    """
    nodes = parse_program(program)
    table = _table(offsets, len(nodes))
    adjoint = grad.clone(memory_format=torch.contiguous_format)
    rows, grads = (split_nodes(t, offsets, len(nodes)) for t in (values, adjoint))
    parts = [_by_step(node, counts) for node, counts in zip(grads, table, strict=True)]
    partials = draw.partials(noise, rows[-1][indices[0]])
    slopes = _slopes(nodes, rows, terms)
    if partials is not None:
        by_params = torch.empty_like(rows[-1])
        by_params[indices[0].flatten()] = partials[1].flatten(0, 1)
        param_parts = _by_step(by_params, table[-1])
    num_params = indices[0].shape[0]
    linear = [(i, node) for i, node in enumerate(nodes, start=1) if node.name == "linear"]
    for start, end in reversed(_blocks(table[0])):
        for i, node in linear:
            source, weight, _ = node.args
            low, first, last = table[i][end], table[source][start], table[source][end]
            if low < table[i][-1] and first < last:
                grads[source][first:last].addmm_(weights[weight][low:, first:last].t(), grads[i][low:])
        for step in range(end - 1, start - 1, -1):
            if partials is not None:
                made = parts[0][step + 1]
                shape = (num_params, *made.shape)
                parts[-1][step].view(shape).addcmul_(param_parts[step].view(shape), made)
            for i, node in reversed(list(enumerate(nodes, start=1))):
                low, high = table[i][step], table[i][step + 1]
                if low == high:
                    continue
                given = parts[i][step]
                source, *rest = node.args
                if node.name == "linear":
                    first, last = table[source][start], table[source][step + 1]
                    if first < last:
                        grads[source][first:last].addmm_(weights[rest[0]][low:high, first:last].t(), given)
                elif node.name == "select":
                    grads[source].index_add_(0, indices[rest[0]][low:high], given)
                elif node.name == "add":
                    parts[source][step].add_(given)
                    parts[rest[0]][step].add_(given)
                elif node.name == "multiply":
                    parts[source][step].addcmul_(given, rows[rest[0]][low:high])
                    parts[rest[0]][step].addcmul_(given, rows[source][low:high])
                elif node.name == "shift":
                    parts[source][step].add_(given)
                else:  # an activation or a scale
                    parts[source][step].addcmul_(given, slopes[i][low:high])
    grad_noise = torch.zeros_like(noise) if partials is None else partials[0] * grads[0]
    return grad_noise, *_grads_of_parameters(nodes, rows, grads, weights, terms)


def split_nodes(values: Tensor, offsets: Sequence[int], num_nodes: int) -> tuple[Tensor, ...]:
    """Rows of all units -> those of every node, the input first."""
    return values.split([rows[-1] for rows in _table(offsets, num_nodes)])


def _grads_of_parameters(
    nodes: Sequence[Node],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    terms: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    grad_weights = [torch.zeros_like(w) for w in weights]
    grad_terms = [torch.zeros_like(t) for t in terms]
    for i, node in enumerate(nodes, start=1):
        source, *rest = node.args
        if node.name == "linear":
            columns = weights[rest[0]].shape[1]
            grad_weights[rest[0]].addmm_(grads[i], rows[source][:columns].t())
        term = rest[-1] if node.name in ("linear", "shift", "scale") else -1
        if term >= 0:
            found = grads[i] * rows[source] if node.name == "scale" else grads[i]
            grad_terms[term] += found if terms[term].shape[1] == found.shape[1] else found.sum(1, keepdim=True)
    return grad_weights, grad_terms


def _table(offsets: Sequence[int], num_nodes: int) -> list[Sequence[int]]:
    """The offsets of every node, the input first."""
    length = len(offsets) // (num_nodes + 1)
    return [offsets[i * length : (i + 1) * length] for i in range(num_nodes + 1)]


def _by_step(rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """The rows of each level: many views by one call."""
    return rows.split([b - a for a, b in pairwise(counts)])


def _blocks(counts: Sequence[int]) -> list[tuple[int, int]]:
    """First step and end of blocks of about ``BLOCK`` dimensions; step t makes those of level t + 1."""
    return list(_split_blocks(counts))


def _split_blocks(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    num_steps, start = len(counts) - 2, 0
    for step in range(num_steps):
        if step + 1 == num_steps or counts[step + 3] - counts[start + 1] > BLOCK:
            yield start, step + 1
            start = step + 1


def _product(
    node: Node,
    weights: Sequence[Tensor],
    terms: Sequence[Tensor],
    rows: Sequence[Tensor],
    low: int,
    high: int,
    known: int,
    out: Tensor,
) -> None:
    """Rows low..high of a linear node from the first ``known`` rows of its source and its term."""
    source, weight, term = node.args
    matrix, units = weights[weight][low:high, :known], rows[source][:known]
    if term < 0:
        torch.mm(matrix, units, out=out)
    elif known:
        torch.addmm(terms[term][low:high], matrix, units, out=out)
    else:
        out.copy_(terms[term][low:high])


def _activate(node: Node, units: Tensor, out: Tensor) -> None:
    if node.name in _IN_PLACE:
        _IN_PLACE[node.name](units, out)
    else:
        out.copy_(activate_units(node, units))


def _slopes(nodes: Sequence[Node], rows: Sequence[Tensor], terms: Sequence[Tensor]) -> dict[int, Tensor]:
    """What a gradient is multiplied with on its way back through activations and scales."""
    found = {}
    for i, node in enumerate(nodes, start=1):
        source = rows[node.args[0]]
        if node.name in _DERIVATIVES:
            found[i] = _DERIVATIVES[node.name](torch.ones_like(source), source, rows[i], node.number)
        elif node.name == "scale":
            found[i] = terms[node.args[1]]
    return found
