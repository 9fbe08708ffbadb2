"""What a decoder does with a row: how much memory its graph takes, which parameters it ends in, what forbids chunks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvae.evaluation.plan import OutputSizes

__all__ = ["Probe", "leaves_of", "probe"]


@dataclass(frozen=True)
class Probe:
    """``row_bytes``: of one row (datapoint, sample), forward and backward. ``leaves``: what it was computed from."""

    row_bytes: int
    leaves: list[Tensor]


def probe(log_prob: Callable[[Tensor, Tensor], Tensor], x: Tensor, z: Tensor) -> Probe:
    """Run ``log_prob`` for two rows and for four.

    What both take (weights, masks) does not depend on the rows. Random numbers drawn meanwhile are put back.

    Args:
        log_prob: ``log_prob(x, z)`` (k, n) for x (n, ...) and z (k, n, ...).
        x: (1, ...) a datapoint.
        z: (1, 1, ...) a sample.

    Raises:
        ValueError: if rows depend on each other by batch normalisation.
    """
    found = []
    leaves: list[Tensor] = []
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices):
        for rows in (2, 4):
            some = z.detach().expand(rows, *z.shape[1:]).contiguous().requires_grad_()
            with _Operators() as operators, _Saved() as saved:
                value = log_prob(x, some)
            found.append((operators.sizes, saved.bytes))
            leaves = [leaf for leaf in leaves_of([value]) if leaf is not some]
    (sizes_of_two, saved_by_two), (sizes_of_four, saved_by_four) = found
    largest = max(sizes_of_four - sizes_of_two, default=0) // 4
    # backward holds the gradients of an operator's result and input besides what the graph saved
    return Probe((saved_by_four - saved_by_two) // 2 + 2 * largest, leaves)


def leaves_of(outputs: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that backward from ``outputs`` would leave a ``.grad`` in, each once."""
    leaves: dict[int, Tensor] = {}
    nodes: list[Any] = []
    for output in outputs:
        if output.grad_fn is not None:
            nodes.append(output.grad_fn)
        elif output.requires_grad:
            leaves[id(output)] = output
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        following = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= following
        nodes += following
    return list(leaves.values())


class _Operators(OutputSizes):
    """Notes the bytes of every tensor that an operator returns, and refuses statistics over the batch."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if _normalises_over_rows(func, args):
            raise ValueError(
                "max_bytes needs rows that do not depend on each other, but log p(x, z) uses batch normalisation in "
                "training mode; call .eval() on those layers, use LayerNorm or GroupNorm, or pass max_bytes=None"
            )
        return super().__torch_dispatch__(func, types, args, kwargs)


def _normalises_over_rows(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    if "batch_norm" not in func.__name__ or "backward" in func.__name__:
        return False
    # instance normalisation is the same operator on a batch of one
    if not isinstance(args[0], Tensor) or args[0].shape[0] == 1:
        return False
    names = [argument.name for argument in func._schema.arguments]  # type: ignore[attr-defined]
    return "with_update" in func.__name__ or any(
        value is True for name, value in zip(names, args, strict=False) if name == "training"
    )


class _Saved(AbstractContextManager["_Saved"]):
    """Counts the bytes that the graph built inside keeps for backward, each storage once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()
        self._kept: list[Tensor] = []  # an address counts while its tensor lives
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._kept.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> "_Saved":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
