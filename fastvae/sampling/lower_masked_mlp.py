"""Lower: from the trace of an autoregressive network of linear layers to the program that one-pass sampling runs."""

from collections.abc import Callable
from dataclasses import dataclass
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
    "linear layers, ReLU, LeakyReLU, ELU, GELU, SiLU, Sigmoid, Softplus, Tanh, sums, products, GLU, and concatenation "
    "before a linear layer"
)


@dataclass(frozen=True)
class Term:
    """What does not depend on the values to be drawn: biases, constants, what follows from the context.

    Attributes:
        nodes: of the trace, which ``compute`` reads.
        compute: from their values and a tensor of the wanted dtype and device to (units,) or (B, units).
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
        weights: for each weight, the node of its transpose (in, out) and the rows of that which it has.
        terms: of the program.
        num_outputs: units of the last node.
    """

    program: str
    weights: list[tuple[fx.Node, slice]]
    terms: list[Term]
    num_outputs: int

    @property
    def nodes(self) -> list[fx.Node]:
        """Of the trace, everything that has to be evaluated."""
        return [*(node for node, _ in self.weights), *(node for term in self.terms for node in term.nodes)]

    def weight_values(self, known: Known) -> list[Tensor]:
        """(out, in) each."""
        return [known[node][rows].t() for node, rows in self.weights]


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
        self.weights: list[tuple[fx.Node, slice]] = []
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
        if target in _SAME and node.meta["val"].shape[0] == self.trace.batch:
            return self.units(node, args[0])
        if any(len(source.meta["val"].shape) != 2 for source in node.all_input_nodes if source in self.values):
            raise self.error(node, "works on something else than (rows, units)")
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
            self.weights.append((weight, rows))
            earlier, result = result, self.append(f"linear {number} {len(self.weights) - 1} {term}", node)
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
            raise self.error(node, "splits the units of one layer; make the two halves by layers of their own")
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
        if len(parts) != 1:
            raise self.error(node, "works on a concatenation")
        return parts[0]


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
