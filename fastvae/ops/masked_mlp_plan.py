"""In which order can the units of a masked MLP be computed while its inputs become known one after the other?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastvae.reference.masked_mlp import NUMBERS, parse_program

__all__ = ["Layout", "MaskedMLPPlan", "NotAutoregressiveError", "plan_masked_mlp"]

Layout = Literal["by_dimension", "by_parameter"]


class NotAutoregressiveError(ValueError):
    """The parameters of some dimension depend on the dimension itself or on later ones."""


@dataclass(frozen=True)
class MaskedMLPPlan:
    """The schedule of a masked MLP: units sorted by the step at which they become final.

    Step t makes the dimensions that depend on t others in a chain; a unit has level t if the last input that it needs
    is made in step t - 1. With the units of every node sorted by level, masked weights are block lower triangular, as
    in a triangular system, and step t needs the rows of level t only.

    Attributes:
        program: the nodes, as :func:`fastvae.reference.parse_program` reads them.
        offsets: for every node, the number of its units with a level below t, for t = 0..num_steps + 1; all nodes one
            after the other, the input first.
        num_steps: serial steps.
        num_params: P.
        order: (D,) dimensions in the order in which they are made.
        rank: (D,) its inverse.
        indices: first (P, D), the row of the last node that holds parameter p of the dimension made d-th; then the
            rows that ``select`` nodes take.
        weight_rows: for every weight, the units of its rows in sorted order.
        weight_columns: likewise of its columns.
        term_rows: for every term, the units of its rows. A term or weight belongs to one node.
        masks: for every weight, its mask in sorted order.
        weight_shapes: of every weight.
        term_sizes: units of every term.
    """

    program: str
    offsets: tuple[int, ...]
    num_steps: int
    num_params: int
    order: Tensor
    rank: Tensor
    indices: tuple[Tensor, ...]
    weight_rows: tuple[Tensor, ...]
    weight_columns: tuple[Tensor, ...]
    term_rows: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    weight_shapes: tuple[tuple[int, int], ...]
    term_sizes: tuple[int, ...]

    @property
    def num_nodes(self) -> int:
        """Of the program, the input not counted."""
        return self.program.count(";") + 1

    @property
    def num_features(self) -> int:
        """D."""
        return len(self.order)

    def to(self, device: torch.device) -> "MaskedMLPPlan":
        """The plan with its tensors on a device."""
        if self.order.device == device:
            return self

        def moved(value: Any) -> Any:
            return tuple(t.to(device) for t in value) if isinstance(value, tuple) else value.to(device)

        names = ("order", "rank", "indices", "weight_rows", "weight_columns", "term_rows", "masks")
        return replace(self, **{name: moved(getattr(self, name)) for name in names})

    def sorted_weights(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Each weight (rows, columns), masked and with its units in order; differentiable."""
        parts = zip(weights, self.weight_rows, self.weight_columns, self.masks, strict=True)
        return [w.index_select(0, rows).index_select(1, columns) * mask for w, rows, columns, mask in parts]

    def sorted_terms(self, terms: Sequence[Tensor]) -> list[Tensor]:
        """Each term (units,) or (B, units) as (units, 1) or (units, B) in order; differentiable."""
        pairs = zip(terms, self.term_rows, strict=True)
        return [(t[:, None] if t.ndim == 1 else t.t()).index_select(0, rows) for t, rows in pairs]


def plan_masked_mlp(
    program: str,
    masks: Sequence[Tensor],
    num_features: int,
    num_params: int,
    *,
    layout: Layout = "by_dimension",
) -> MaskedMLPPlan:
    """Plan the serial computation of a network of masked linear layers from the zeros of its masks.

    Everything follows from the masks: which dimension depends on which, hence the fewest serial steps (the longest
    chain of such dependencies) and the step at which each unit becomes final.

    Args:
        program: nodes as in :class:`fastvae.reference.Node`, separated by ";"; node 0 is the input, a linear node
            reads all units of its source, and there is no ``select``.
        masks: (rows, columns) boolean, for every weight; what is False is zero for ever.
        num_features: D.
        num_params: P, the number of parameters of each dimension, D * P rows of the last node.
        layout: "by_dimension" if the P parameters of a dimension are neighbours, "by_parameter" if the D first
            parameters come first, then the D second ones, as ``chunk`` takes them.

    Raises:
        NotAutoregressiveError: if a dimension depends on itself, by way of others or not.
        ValueError: if the last node has not D * P units, or the sizes of the nodes do not fit.

    Example:
        >>> mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)
        >>> plan_masked_mlp("linear 0 0 -1", [mask], 4, 1).num_steps
        4
    """
    if layout not in ("by_dimension", "by_parameter"):
        raise ValueError(f"layout must be 'by_dimension' or 'by_parameter', got {layout!r}")

    supports = _supports(program, masks, num_features)
    if len(supports[-1]) != num_features * num_params:
        raise ValueError(
            f"the network must give {num_params} parameter(s) for each of {num_features} dimensions, "
            f"{num_features * num_params} numbers, got {len(supports[-1])}"
        )
    steps, num_steps = _steps(_by_dimension(supports[-1], num_params, layout), layout)
    return _Sorter(program, masks, num_params, layout, steps, num_steps, supports).plan()


def _supports(program: str, masks: Sequence[Tensor], num_features: int) -> list[Tensor]:
    """(units, D) for every node: which dimensions each unit depends on."""
    supports = [torch.eye(num_features, dtype=torch.bool)]
    for node in parse_program(program):
        source, *rest = node.args
        if node.name == "linear":
            mask = masks[rest[0]].cpu()
            if mask.shape[1] != len(supports[source]):
                raise ValueError(f"weight {rest[0]} must have {len(supports[source])} columns, got {mask.shape[1]}")
            supports.append(mask.float() @ supports[source].float() > 0)
        elif node.name in ("add", "multiply"):
            if len(supports[source]) != len(supports[rest[0]]):
                raise ValueError(f"{node.name} needs nodes of one size, got {node}")
            supports.append(supports[source] | supports[rest[0]])
        else:
            supports.append(supports[source])
    return supports


def _by_dimension(units: Tensor, num_params: int, layout: Layout) -> Tensor:
    """Rows of the last node, (D * P, ...), as (D, P, ...)."""
    if layout == "by_dimension":
        return units.unflatten(0, (-1, num_params))
    return units.unflatten(0, (num_params, -1)).transpose(0, 1)


def _steps(supports: Tensor, layout: Layout) -> tuple[Tensor, int]:
    """(D, P, D) supports -> the step of every dimension, the length of the longest chain before it; their number."""
    depends = supports.any(1)  # (D, D): row d depends on column j
    missing = depends.sum(1)
    steps = torch.full((len(depends),), -1)
    step = 0
    while len(ready := ((missing == 0) & (steps < 0)).nonzero().flatten()):
        steps[ready] = step
        missing -= depends[:, ready].sum(1)
        step += 1
    if (steps < 0).any():
        rest = (steps < 0).nonzero().flatten().tolist()
        loops = [d for d in rest if depends[d, d]]
        what = (
            f"the parameters of dimension {loops[0]} depend on the dimension itself"
            if loops
            else f"dimensions {rest[0]} and others depend on each other in a circle"
        )
        other = "by_parameter" if layout == "by_dimension" else "by_dimension"
        raise NotAutoregressiveError(
            f"the network is not autoregressive: {what} ({len(rest)} of {len(depends)} dimensions cannot be ordered). "
            f"Its layers may be dense, or without their masks, or its outputs in the layout {other!r}"
        )
    return steps, step


class _Sorter:
    """Sorts the units of every node by level."""

    def __init__(
        self,
        program: str,
        masks: Sequence[Tensor],
        num_params: int,
        layout: Layout,
        steps: Tensor,
        num_steps: int,
        supports: list[Tensor],
    ) -> None:
        self.masks, self.num_params, self.num_steps = masks, num_params, num_steps
        self.program = parse_program(program)
        self.layout, self.steps = layout, steps
        # a unit is final once the last dimension that it depends on is known; level 0 depends on none
        levels = [(support * (steps + 1)).amax(1) for support in supports]
        # nodes of the new program; their levels in sorted order, and which unit of the old node each row is
        self.text: list[str] = []
        self.rows: list[Tensor] = []
        self.levels: list[Tensor] = []
        self.indices: list[Tensor] = []
        num_weights = 1 + max(node.args[1] for node in self.program if node.name == "linear")
        self.weight_rows: list[Tensor] = [torch.empty(0)] * num_weights
        self.weight_columns: list[Tensor] = [torch.empty(0)] * num_weights
        self.term_rows: dict[int, Tensor] = {}
        self.term_sizes: dict[int, int] = {}
        self.new_number: list[int] = []
        self._add(None, *_sorted(levels[0], num_steps + 1))
        for number, node in enumerate(self.program, start=1):
            last = number == len(self.program)
            self._translate(node, levels[number], last)

    def _translate(self, node: Any, levels: Tensor, last: bool) -> None:
        sources = [self.new_number[source] for source in node.args[: 2 if node.name in ("add", "multiply") else 1]]
        if node.name == "linear":
            order, sorted_levels = self._last_order() if last else _sorted(levels, self.num_steps)
            source, weight, term = sources[0], node.args[1], node.args[2]
            self.weight_rows[weight] = order
            # what only the last step makes is read by nobody
            self.weight_columns[weight] = self.rows[source][self.levels[source] < self.num_steps]
            self._use_term(term, order, len(levels))
            self._add(f"linear {source} {weight} {term}", order, sorted_levels)
            return
        order, sorted_levels = self.rows[sources[0]], self.levels[sources[0]]
        if len(sources) == 2 or last:
            order, sorted_levels = self._last_order() if last else _sorted(levels, self.num_steps)
        sources = [self._selected(source, order, sorted_levels) for source in sources]
        name = f"{node.name}:{node.number!r}" if node.name in NUMBERS else node.name
        if node.name in ("shift", "scale"):
            self._use_term(node.args[1], order, len(levels))
            sources.append(node.args[1])
        self._add(" ".join(map(str, (name, *sources))), order, sorted_levels)

    def _selected(self, source: int, order: Tensor, levels: Tensor) -> int:
        """The node with the units of another one in a given order, which is itself if it has that order."""
        if torch.equal(self.rows[source], order) and torch.equal(self.levels[source], levels):
            return source
        position = torch.full((int(self.rows[source].max()) + 1,), -1)
        position[self.rows[source]] = torch.arange(len(self.rows[source]))
        self.indices.append(position[order])
        number = len(self.text)
        self._push(f"select {source} {len(self.indices)}", order, levels)  # index 0 is that of the parameters
        return number + 1

    def _last_order(self) -> tuple[Tensor, Tensor]:
        """Rows of the last node by the step of their dimension, then by parameter."""
        num_features = len(self.steps)
        number = torch.arange(num_features * self.num_params)
        if self.layout == "by_dimension":
            dimension, param = number // self.num_params, number % self.num_params
        else:
            dimension, param = number % num_features, number // num_features
        key = (self.steps[dimension] * self.num_params + param) * num_features + dimension
        order = key.argsort()
        return order, self.steps[dimension[order]]

    def _use_term(self, term: int, rows: Tensor, size: int) -> None:
        if term >= 0:
            self.term_rows[term], self.term_sizes[term] = rows, size

    def _add(self, text: str | None, rows: Tensor, levels: Tensor) -> None:
        self._push(text, rows, levels)
        self.new_number.append(len(self.text))

    def _push(self, text: str | None, rows: Tensor, levels: Tensor) -> None:
        if text is not None:
            self.text.append(text)
        self.rows.append(rows)
        self.levels.append(levels)

    def plan(self) -> MaskedMLPPlan:
        order = self.rows[0]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        unit = torch.arange(len(order) * self.num_params)
        unit_of = _by_dimension(unit, self.num_params, self.layout)[order].t()  # (P, D) units of the last node
        position = torch.empty_like(unit)
        position[self.rows[-1]] = unit
        levels = torch.arange(self.num_steps + 2)
        pairs = list(zip(self.weight_rows, self.weight_columns, strict=True))
        return MaskedMLPPlan(
            program="; ".join(self.text),
            offsets=tuple(torch.cat([torch.searchsorted(each, levels) for each in self.levels]).tolist()),
            num_steps=self.num_steps,
            num_params=self.num_params,
            order=order,
            rank=rank,
            indices=(position[unit_of], *self.indices),
            weight_rows=tuple(self.weight_rows),
            weight_columns=tuple(self.weight_columns),
            term_rows=tuple(self.term_rows[term] for term in sorted(self.term_rows)),
            masks=tuple(m.cpu().bool()[rows][:, columns] for m, (rows, columns) in zip(self.masks, pairs, strict=True)),
            weight_shapes=tuple((m.shape[0], m.shape[1]) for m in self.masks),
            term_sizes=tuple(self.term_sizes[term] for term in sorted(self.term_sizes)),
        )


def _sorted(levels: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """The units with a level below ``end``, which somebody can use, sorted by level; and their levels."""
    sorted_levels, order = levels.sort(stable=True)
    useful = sorted_levels < end
    return order[useful], sorted_levels[useful]
