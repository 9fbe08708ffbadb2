"""The definition of sampling from a masked MLP: as many full passes of the network as there are serial steps."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "DRAWS",
    "NUMBERS",
    "Node",
    "activate_units",
    "masked_mlp_params",
    "parse_program",
    "solve_masked_mlp",
]

# Units come first and the batch last throughout: (units, B).

# name -> function of the units and the number after the colon in a program
ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "elu": lambda h, alpha: F.elu(h, alpha),
    "gelu": lambda h, _: F.gelu(h),
    "gelu_tanh": lambda h, _: F.gelu(h, approximate="tanh"),
    "leaky_relu": lambda h, slope: F.leaky_relu(h, slope),
    "relu": lambda h, _: h.relu(),
    "sigmoid": lambda h, _: h.sigmoid(),
    "silu": lambda h, _: F.silu(h),
    "softplus": lambda h, beta: F.softplus(h, beta),
    "tanh": lambda h, _: h.tanh(),
}
# the numbers that activations take, as torch.nn sets them
NUMBERS = {"elu": 1.0, "leaky_relu": 0.01, "softplus": 1.0}


class Node(NamedTuple):
    """One operator of a program: ``linear`` (source, weight, term; term -1 for none), an activation (source), ``add``
    and ``multiply`` (source, source), ``shift`` and ``scale`` (source, term), ``select`` (source, index)."""

    name: str
    args: tuple[int, ...]
    number: float = 0.0


@lru_cache(maxsize=256)
def parse_program(program: str) -> tuple[Node, ...]:
    """The nodes of a program; node 0 is the input and the last one gives the parameters.

    Example:
        >>> parse_program("linear 0 0 0; elu:0.5 1")[1]
        Node(name='elu', args=(1,), number=0.5)
    """
    nodes = []
    for text in program.split(";"):
        name, *args = text.split()
        name, _, number = name.partition(":")
        nodes.append(Node(name, tuple(map(int, args)), float(number) if number else NUMBERS.get(name, 0.0)))
    return tuple(nodes)


def activate_units(node: Node, h: Tensor) -> Tensor:
    """The activation that a node names."""
    return ACTIVATIONS[node.name](h, node.number)


def masked_mlp_params(
    x: Tensor, weights: Sequence[Tensor], terms: Sequence[Tensor], indices: Sequence[Tensor], program: str
) -> Tensor:
    """One full pass of the network: ``x`` (D, B) to the rows of its last node.

    Args:
        x: (D, B).
        weights: (rows, columns); a linear node reads the first ``columns`` rows of its source.
        terms: (rows, 1) or (rows, B), what does not depend on ``x``: biases and conditions.
        indices: (rows,) int64, the rows that ``select`` nodes take.
        program: see :class:`Node`.
    """
    values = [x]
    for node in parse_program(program):
        source, *rest = node.args
        h = values[source]
        if node.name == "linear":
            weight = weights[rest[0]]
            h = weight @ h[: weight.shape[1]]
            values.append(h if rest[1] < 0 else h + terms[rest[1]])
        elif node.name == "add":
            values.append(h + values[rest[0]])
        elif node.name == "multiply":
            values.append(h * values[rest[0]])
        elif node.name == "shift":
            values.append(h + terms[rest[0]])
        elif node.name == "scale":
            values.append(h * terms[rest[0]])
        elif node.name == "select":
            values.append(h.index_select(0, indices[rest[0]]))
        else:
            values.append(activate_units(node, h))
    return values[-1]


def affine(noise: Tensor, params: Tensor) -> Tensor:
    return params[0] + params[1].exp() * noise


def affine_inverse(noise: Tensor, params: Tensor) -> Tensor:
    return (noise - params[0]) * (-params[1]).exp()


def bernoulli(noise: Tensor, params: Tensor) -> Tensor:
    return (noise < params[0].sigmoid()).to(params.dtype)


def categorical(noise: Tensor, params: Tensor) -> Tensor:
    # the last level needs no bound: its cumulated probability is 1 up to rounding
    return (params.softmax(0).cumsum(0)[:-1] <= noise).sum(0).to(params.dtype)


# name -> (number of parameters, None for any from two on; noise (n, B) and params (P, n, B) -> values (n, B))
DRAWS: dict[str, tuple[int | None, Callable[[Tensor, Tensor], Tensor]]] = {
    "affine": (2, affine),
    "affine_inverse": (2, affine_inverse),
    "bernoulli": (1, bernoulli),
    "categorical": (None, categorical),
}


def solve_masked_mlp(
    noise: Tensor,
    weights: Sequence[Tensor],
    terms: Sequence[Tensor],
    indices: Sequence[Tensor],
    program: str,
    num_steps: int,
    draw: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The solution of x = draw(noise, params(x)) by ``num_steps`` full passes: what a step knows, the next one keeps.

    Args:
        noise: (D, B).
        weights, terms, program: as in :func:`masked_mlp_params`.
        indices: the first one, (P, D), gives the row of the last node that is parameter p of dimension d.
        num_steps: the longest chain of dimensions that depend on each other.
        draw: noise (D, B) and parameters (P, D, B) to values (D, B).

    Returns:
        x (D, B) and its parameters (P, D, B).
    """
    x = torch.zeros_like(noise)
    for _ in range(num_steps):
        rows = masked_mlp_params(x, weights, terms, indices, program)
        params = rows[indices[0]]
        x = draw(noise, params)
    return x, params
