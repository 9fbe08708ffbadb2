"""From the plan of a masked MLP to the tables that its kernel reads."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from fastvae.reference.masked_mlp import ACTIVATIONS, DRAWS, Node, parse_program

from ._dispatch import choose
from .masked_mlp_run import blocks_of, table_of

__all__ = ["solve_by_kernel", "uses_kernel"]

# Few steps are few launches of large products, which PyTorch does better than programs that each own some rows.
# Estimated, not measured on a card.
_FEWEST_STEPS = 8


def uses_kernel(noise: Tensor, offsets: Sequence[int], program: str, draw: Any) -> bool:
    """Whether the kernel is to make the values."""
    unsupported = None
    if noise.dtype == torch.float64:
        unsupported = "the kernel computes in float32, got float64"
    elif draw not in DRAWS:
        unsupported = f"the kernel draws {sorted(DRAWS)}, got a callable"
    num_steps = len(offsets) // (1 + len(parse_program(program))) - 2
    return choose(noise, unsupported=unsupported, preferred=num_steps >= _FEWEST_STEPS) == "triton"


def solve_by_kernel(
    noise: Tensor | None,
    weights: Sequence[Tensor],
    terms: Sequence[Tensor],
    indices: Sequence[Tensor],
    program: str,
    offsets: Sequence[int],
    draw: str,
    num_rows: int,
    **address: Any,
) -> Tensor:
    """Values of all units (units, B), as :meth:`fastvae.ops.masked_mlp_run.System.forward` returns them.

    Without noise, ``address`` says which numbers: ``order``, ``seed``, ``first_id``.
    """
    from fastvae_kernels import masked_mlp as kernels

    device = weights[0].device
    is_condition = tuple(term.shape[1] > 1 for term in terms)
    made = _program(
        program,
        tuple(offsets),
        tuple(tuple(w.shape) for w in weights),
        tuple(len(t) for t in terms),
        is_condition,
        tuple(len(i) for i in indices[1:]),
        device,
    )
    biases, conditions = (
        [term for term, one_for_each_row in zip(terms, is_condition, strict=True) if one_for_each_row == wanted]
        for wanted in (False, True)
    )
    return kernels.solve(
        made,
        None if noise is None else noise.contiguous(),
        _joined([w.reshape(-1) for w in weights], weights[0]),
        _joined([t.reshape(-1) for t in biases], weights[0]),
        _joined([t.reshape(-1) for t in conditions], weights[0]),
        _joined([i.reshape(-1) for i in indices[1:]], indices[0]),
        num_rows,
        len(indices[0]),
        draw,
        **address,
    )


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts) if parts else like.new_zeros(1)


@lru_cache(maxsize=32)  # a table goes to the device once
def _program(
    program: str,
    offsets: tuple[int, ...],
    weight_shapes: tuple[tuple[int, int], ...],
    term_sizes: tuple[int, ...],
    is_condition: tuple[bool, ...],
    index_sizes: tuple[int, ...],
    device: torch.device,
) -> Any:
    from fastvae_kernels import masked_mlp as kernels

    nodes = parse_program(program)
    counts = table_of(offsets, len(nodes))
    rows = _starts([each[-1] for each in counts])
    weights, indices = _starts([a * b for a, b in weight_shapes]), _starts(index_sizes)
    # terms lie in two groups, those with one column and those with a column for each row of the batch
    groups = [
        _starts([size * (kind == wanted) for size, kind in zip(term_sizes, is_condition, strict=True)])
        for wanted in (False, True)
    ]

    def operands(node: Node) -> tuple[int, int, int, int]:
        """Second operand, columns of a weight, first row of a term, whether it has a column for each row."""
        if node.name == "linear":
            _, weight, term = node.args
            found = (groups[is_condition[term]][term], int(is_condition[term])) if term >= 0 else (-1, 0)
            return weights[weight], weight_shapes[weight][1], *found
        if node.name in ("add", "multiply"):
            return rows[node.args[1]], 0, -1, 0
        if node.name in ("shift", "scale"):
            term = node.args[1]
            return groups[is_condition[term]][term], 0, -1, int(is_condition[term])
        return indices[node.args[1] - 1] if node.name == "select" else 0, 0, -1, 0

    table: list[list[int]] = []
    numbers: list[float] = []
    for number, node in enumerate(nodes, start=1):
        source = node.args[0]
        if node.name not in ACTIVATIONS:
            table.append(
                [kernels.KINDS[node.name], number, source, rows[source], rows[number], *operands(node), 0, 0, 0]
            )
            numbers.append(0.0)
        elif source == number - 1 and table and table[-1][9] == 0:
            # the activation of what the operator before it makes: in the same step, by the same thread
            table[-1][9:11] = kernels.ACTIVATIONS[node.name], rows[number]
            numbers[-1] = node.number
        else:
            code = kernels.ACTIVATIONS[node.name]
            table.append([0, number, source, rows[source], -1, 0, 0, -1, 0, code, rows[number], 0])
            numbers.append(node.number)
    return kernels.Program(
        table=torch.tensor(table, device=device),
        numbers=torch.tensor(numbers, dtype=torch.float32, device=device),
        counts=torch.tensor(counts, dtype=torch.int32, device=device),
        blocks=torch.tensor(blocks_of(counts[0]), dtype=torch.int32, device=device),
        last_row=rows[len(nodes)],
        num_units=rows[-1],
        most_units=max(b - a for each in counts for a, b in pairwise(each)),
    )


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)]
