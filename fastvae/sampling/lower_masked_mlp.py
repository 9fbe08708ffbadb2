"""Lower: from the trace of an autoregressive network of linear layers to the program that one-pass sampling runs."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx

from .trace import Trace, UnsupportedModelError, describe

__all__ = ["Known", "LoweredMLP", "Term", "lower_masked_mlp"]

aten = torch.ops.aten
Known = dict[fx.Node, Any]

# values keep their batch and their order of units under these
_SAME = {
    aten.alias.default,
    aten.clone.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
}
_PLAIN_ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
}
_VOCABULARY = (
    "linear layers, ReLU, LeakyReLU, ELU, GELU, SiLU, Sigmoid, Softplus, Tanh, sums, products, GLU, concatenation, and "
    "units taken by slices, splits, indices and flips"
)


@dataclass(frozen=True)
class Term:
    """What does not depend on the values to be drawn: weights, biases, constants, what follows from the context.

    Attributes:
        nodes: of the trace, which ``compute`` reads.
        compute: from their values and a tensor of the wanted dtype and device to (units,) or (B, units), for weights
            to (out, in).
    """

    nodes: tuple[fx.Node, ...]
    compute: Callable[[Known, Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Some of the units of a value: those of a node of the program, or of a context."""

    size: int
    number: int | None = None
    context: fx.Node | None = None


@dataclass(frozen=True)
class LoweredMLP:
    """A program, where its weights come from and what its terms are.

    Attributes:
        program: as :func:`fastvae.ops.plan_masked_mlp` takes it.
        weights: of the program.
        terms: of the program.
        num_outputs: units of the last node.
    """

    program: str
    weights: list[Term]
    terms: list[Term]
    num_outputs: int

    @property
    def nodes(self) -> list[fx.Node]:
        """Of the trace, everything that has to be evaluated."""
        return [node for term in (*self.weights, *self.terms) for node in term.nodes]

    def weight_values(self, known: Known, like: Tensor) -> list[Tensor]:
        """(out, in) each."""
        return [weight.compute(known, like) for weight in self.weights]


def lower_masked_mlp(trace: Trace) -> LoweredMLP:
    """Translate all operators that depend on the first argument of the network.

    Raises:
        UnsupportedModelError: for an operator outside the vocabulary.
    """
    return _Lowering(trace).run()


class _Lowering:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.text: list[str] = []
        self.sizes = [trace.image.meta["val"].shape[1]]  # of every node of the program, the input first
        self.weights: list[Term] = []
        self.terms: list[Term] = []
        self.values: dict[fx.Node, tuple[Part, ...]] = {trace.image: (Part(self.sizes[0], number=0),)}

    def run(self) -> LoweredMLP:
        for node in self.trace.graph.nodes:
            if self.trace.kinds.get(node) == "spatial" and node is not self.trace.image:
                self.values[node] = self.translate(node)
        if self.trace.output not in self.values:
            raise UnsupportedModelError("the network's result does not depend on its input: there is nothing to invert")
        last = self.single(self.trace.output, self.trace.output)
        if last.number != len(self.text):
            raise self.error(self.trace.output, "is followed by operators whose result is not used")
        return LoweredMLP("; ".join(self.text), self.weights, self.terms, last.size)

    def error(self, node: fx.Node, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{describe(node)} {what}; understood are {_VOCABULARY}")

    def translate(self, node: fx.Node) -> tuple[Part, ...]:
        target, args = node.target, node.args
        if target is operator.getitem:
            return self.piece_of_split(*args)  # type: ignore[arg-type]
        if target in _SAME and node.meta["val"].shape[0] == self.trace.batch:
            return self.units(node, args[0])
        if any(len(source.meta["val"].shape) != 2 for source in node.all_input_nodes if source in self.values):
            raise self.error(node, "works on something else than (rows, units)")
        if (found := self.taken(node)) is not None:
            return found
        if target is aten.cat.default and args[1:] in ((1,), (-1,)):
            return tuple(part for source in args[0] for part in self.parts(node, source))  # type: ignore[union-attr]
        if target is aten.mm.default:
            return self.linear(node, args[0], args[1], None)
        if target is aten.addmm.default and not node.kwargs:
            return self.linear(node, args[1], args[2], args[0])
        if target is aten.glu.default and args[1:] in ((), (1,), (-1,)):
            return self.glu(node)
        if (name := _activation(node)) is not None:
            return self.append(f"{name} {self.single(node, args[0]).number}", node)
        if (found := self.arithmetic(node)) is not None:
            return found
        raise self.error(node, "is not understood")

    def linear(self, node: fx.Node, source: Any, weight: Any, bias: Any) -> tuple[Part, ...]:
        if not isinstance(weight, fx.Node) or self.trace.kinds[weight] != "static":
            raise self.error(node, "multiplies with a matrix that is no parameter")
        first, contexts = 0, []
        numbers: list[tuple[int, slice]] = []
        for part in self.units(node, source):
            rows = slice(first, first + part.size)
            first += part.size
            if part.number is None:
                contexts.append((part.context, rows))
            else:
                numbers.append((part.number, rows))
        result: tuple[Part, ...] = ()
        for number, rows in numbers:
            is_first = not result
            term = -1
            if is_first and (bias is not None or contexts):
                term = self.add_term(self.affine_term(node, weight, bias, contexts))
            earlier, result = result, self.product(number, _rows_of(weight, rows), term, node.meta["val"].shape[-1])
            if not is_first:
                result = self.append(f"add {earlier[0].number} {result[0].number}", node)
        return result

    def affine_term(self, node: fx.Node, weight: fx.Node, bias: Any, contexts: list[Any]) -> Term:
        given = None if bias is None else self.term(node, bias)
        nodes = [weight, *(context for context, _ in contexts), *(given.nodes if given else ())]

        def compute(known: Known, like: Tensor) -> Tensor:
            parts = [known[context] @ known[weight][rows] for context, rows in contexts]
            if given:
                parts.append(given.compute(known, like))
            return sum(parts[1:], start=parts[0])

        return Term(tuple(nodes), compute)

    def glu(self, node: fx.Node) -> tuple[Part, ...]:
        parts = self.units(node, node.args[0])
        if len(parts) != 2 or parts[0].size != parts[1].size:
            whole, half = self.single(node, node.args[0]), node.meta["val"].shape[-1]
            parts = self.rows(whole, range(half)) + self.rows(whole, range(half, 2 * half))
        value, gate = parts
        if gate.number is None:
            term = self.term(node, gate.context, torch.sigmoid)
            return self.append(f"scale {value.number} {self.add_term(term)}", node)
        gates = self.append(f"sigmoid {gate.number}", node)[0].number
        if value.number is None:
            return self.append(f"scale {gates} {self.add_term(self.term(node, value.context))}", node)
        return self.append(f"multiply {value.number} {gates}", node)

    def arithmetic(self, node: fx.Node) -> tuple[Part, ...] | None:
        """Sums, differences, products and quotients of two operands, the second one perhaps a number."""
        kinds: dict[Any, tuple[str, str]] = {
            aten.add.Tensor: ("add", "shift"),
            aten.sub.Tensor: ("add", "shift"),
            aten.mul.Tensor: ("multiply", "scale"),
            aten.div.Tensor: ("", "scale"),
        }
        if node.target is aten.neg.default:
            return self.combined(node, "scale", node.args[0], -1.0, lambda t: t)
        if node.target not in kinds or node.kwargs:
            return None
        left, right = list[Any](node.args)
        both, one = kinds[node.target]
        is_difference, is_quotient = node.target is aten.sub.Tensor, node.target is aten.div.Tensor
        if self.depends(left) and self.depends(right):
            if is_difference:
                right = self.minus(node, right)
            if is_quotient:
                raise self.error(node, "divides by what depends on the values")
            first, second = (self.single(node, operand) for operand in (left, right))
            return self.append(f"{both} {first.number} {second.number}", node)
        if self.depends(right):
            if is_quotient:
                raise self.error(node, "divides by what depends on the values")
            left, right = (self.minus(node, right) if is_difference else right), left
            return self.combined(node, one, left, right, lambda t: t)
        changes: dict[Any, Callable[[Tensor], Tensor]] = {aten.sub.Tensor: torch.neg, aten.div.Tensor: torch.reciprocal}
        return self.combined(node, one, left, right, changes.get(node.target, lambda t: t))

    def minus(self, node: fx.Node, operand: Any) -> Part:
        number = self.add_term(self.term(node, -1.0, size=self.single(node, operand).size))
        return self.append(f"scale {self.single(node, operand).number} {number}", node)[0]

    def combined(
        self, node: fx.Node, name: str, operand: Any, other: Any, change: Callable[[Tensor], Tensor]
    ) -> tuple[Part, ...]:
        part = self.single(node, operand)
        term = self.add_term(self.term(node, other, change, part.size))
        return self.append(f"{name} {part.number} {term}", node)

    def term(
        self, node: fx.Node, operand: Any, change: Callable[[Tensor], Tensor] = lambda t: t, size: int = 0
    ) -> Term:
        """A number, parameter or context as (units,) or (B, units)."""
        size = size or node.meta["val"].shape[-1]
        if not isinstance(operand, fx.Node):
            return Term(
                (), lambda known, like: change(torch.full((size,), operand, dtype=like.dtype, device=like.device))
            )
        shape = tuple(operand.meta["val"].shape)
        is_context = self.trace.kinds[operand] == "condition"
        rows = shape[0] if len(shape) == 2 else 1
        if len(shape) > 2 or (shape and shape[-1] not in (1, size)) or rows not in (1, self.trace.batch * is_context):
            raise self.error(node, f"combines units with a tensor of shape {shape}")

        def compute(known: Known, like: Tensor) -> Tensor:
            value = change(known[operand].to(like.dtype))
            value = value[0] if value.ndim == 2 and rows == 1 else value
            return value.expand(*value.shape[:-1], size)

        return Term((operand,), compute)

    def add_term(self, term: Term) -> int:
        self.terms.append(term)
        return len(self.terms) - 1

    def append(self, text: str, node: fx.Node) -> tuple[Part, ...]:
        """A node of the program, with as many units as the result of a traced node has."""
        self.text.append(text)
        return (Part(node.meta["val"].shape[-1], number=len(self.text)),)

    def product(self, number: int | None, weight: Term, term: int, size: int) -> tuple[Part, ...]:
        """A linear node of the program."""
        self.weights.append(weight)
        self.text.append(f"linear {number} {len(self.weights) - 1} {term}")
        return (Part(size, number=len(self.text)),)

    def rows(self, part: Part, units: Sequence[int]) -> tuple[Part, ...]:
        """Some units of a value, by a product with zeros and ones."""
        return self.product(part.number, _one_hot((), _constant(units), part.size), -1, len(units))

    def taken(self, node: fx.Node) -> tuple[Part, ...] | None:
        """Units of one value in another order, or some of them; None for other operators."""
        target = node.target
        args: list[Any] = list(node.args)
        if target is aten.stack.default:
            return self.stacked(node, *args)
        if target is aten.index.Tensor and len(args[1]) == 2 and args[1][0] is None:
            return self.indexed(node, args[0], args[1][1])
        if target is aten.index_select.default and args[1] in (1, -1):
            return self.indexed(node, args[0], args[2])
        if target is aten.flip.default and args[1] in ([1], [-1]):
            whole = self.single(node, args[0])
            return self.rows(whole, range(whole.size - 1, -1, -1))
        if target is aten.slice.Tensor and args[1:] in ([], [0], [0, 0, 2**63 - 1]):
            return self.units(node, args[0])  # all rows of the batch
        if target in (aten.split.Tensor, aten.split_with_sizes.default) and args[2:] in ([1], [-1]):
            return self.units(node, args[0])  # getitem takes the pieces
        if target is aten.slice.Tensor and args[1] in (1, -1):
            whole = self.single(node, args[0])
            return self.rows(whole, range(whole.size)[slice(*args[2:])])
        return None

    def indexed(self, node: fx.Node, source: Any, index: fx.Node) -> tuple[Part, ...]:
        """Units at constant places."""
        if self.trace.kinds[index] not in ("literal", "static") or len(index.meta["val"].shape) != 1:
            raise self.error(node, "takes units by an index that is no constant of shape (units,)")
        whole = self.single(node, source)
        weight = _one_hot((index,), lambda known: known[index], whole.size)
        return self.product(whole.number, weight, -1, node.meta["val"].shape[-1])

    def piece_of_split(self, source: fx.Node, number: int) -> tuple[Part, ...]:
        """One result of ``split`` or ``chunk``."""
        whole = self.single(source, source.args[0])
        ends = [0, *accumulate(piece.shape[-1] for piece in source.meta["val"])]
        return self.rows(whole, range(ends[number], ends[number + 1]))

    def stacked(self, node: fx.Node, sources: list[fx.Node], dim: int = 0) -> tuple[Part, ...]:
        """P values of D units as (N, D, P) or (N, P, D)."""
        if dim not in (1, 2, -1):
            raise self.error(node, "stacks along another dimension than that of units or parameters")
        whole = self.joined(node, tuple(part for source in sources for part in self.parts(node, source)))
        size = whole.size // len(sources)
        if dim == 1:
            return (whole,)
        return self.rows(whole, [p * size + d for d in range(size) for p in range(len(sources))])

    def joined(self, node: fx.Node, parts: tuple[Part, ...]) -> Part:
        """A concatenation as one value: each part put to its place by a product with zeros and ones."""
        if any(part.number is None for part in parts):
            raise self.error(node, "works on a concatenation with the context")
        total, first = sum(part.size for part in parts), 0
        result: Part | None = None
        for part in parts:
            places = _one_hot((), _constant(range(first, first + part.size)), total)
            (moved,) = self.product(part.number, _transposed(places), -1, total)
            if result is not None:
                self.text.append(f"add {result.number} {moved.number}")
                moved = Part(total, number=len(self.text))
            result, first = moved, first + part.size
        assert result is not None  # torch concatenates at least one tensor
        return result

    def depends(self, operand: Any) -> bool:
        return isinstance(operand, Part) or (isinstance(operand, fx.Node) and operand in self.values)

    def parts(self, node: fx.Node, operand: Any) -> tuple[Part, ...]:
        """An operand of a concatenation."""
        if operand in self.values:
            return self.values[operand]
        if self.trace.kinds[operand] != "condition":
            raise self.error(node, "concatenates with something that is neither the input nor the context")
        return (Part(operand.meta["val"].shape[-1], context=operand),)

    def units(self, node: fx.Node, operand: Any) -> tuple[Part, ...]:
        if not self.depends(operand):
            raise self.error(node, "takes its operands in an order that is not understood")
        return (operand,) if isinstance(operand, Part) else self.values[operand]

    def single(self, node: fx.Node, operand: Any) -> Part:
        parts = self.units(node, operand)
        if len(parts) == 1:
            return parts[0]
        whole = self.joined(node, parts)
        if isinstance(operand, fx.Node):
            self.values[operand] = (whole,)  # once, however often it is read
        return whole


def _one_hot(nodes: tuple[fx.Node, ...], index: Callable[[Known], Tensor], size: int) -> Term:
    """The matrix (units, size) that takes the units of an index out of ``size`` ones."""

    def compute(known: Known, like: Tensor) -> Tensor:
        places = index(known).to(like.device) % size  # negative ones count from the end
        return torch.nn.functional.one_hot(places.long(), size).to(like.dtype)

    return Term(nodes, compute)


def _constant(units: Sequence[int]) -> Callable[[Known], Tensor]:
    index = torch.tensor(units)
    return lambda known: index


def _transposed(term: Term) -> Term:
    return Term(term.nodes, lambda known, like: term.compute(known, like).t())


def _rows_of(weight: fx.Node, rows: slice) -> Term:
    """Of a node that gives (in, out), some inputs, as (out, in)."""
    return Term((weight,), lambda known, like: known[weight][rows].t())


def _activation(node: fx.Node) -> str | None:
    """The name of an activation in a program, with its number."""
    target, args, kwargs = node.target, node.args, node.kwargs
    if target in _PLAIN_ACTIVATIONS:
        return _PLAIN_ACTIVATIONS[target]
    if target is aten.gelu.default:
        return "gelu_tanh" if kwargs.get("approximate") == "tanh" else "gelu"
    if target is aten.leaky_relu.default:
        return f"leaky_relu:{args[1] if len(args) > 1 else 0.01!r}"
    if target is aten.elu.default and all(scale == 1 for scale in args[2:]):
        return f"elu:{args[1] if len(args) > 1 else 1.0!r}"
    if target is aten.softplus.default and (len(args) < 3 or args[2] == 20.0):
        return f"softplus:{args[1] if len(args) > 1 else 1.0!r}"
    return None
