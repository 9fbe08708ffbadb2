"""A model's trace and plan together with the numbers they need from its live parameters and the condition."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from .graph import Constant, Linear, Map
from .lower import lower
from .lowering import Lowering
from .plan import Plan
from .planner import Planner, cheapest
from .trace import UnsupportedModelError, trace_model

__all__ = ["Compiled", "live_state"]

Inputs = Callable[[int], tuple[Tensor, Tensor | None]]


def live_state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


class Compiled:
    """What stays the same as long as the model's structure and the zeros of its weights do.

    Args:
        model: the causal network.
        inputs: batch size -> an image and a condition (or None) of that batch.
        schedule: "auto", or the name of one.

    Attributes:
        output_shape: of the model's result for two images.
        device: of the model.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, schedule: str = "auto") -> None:
        self._model, self._inputs, self._schedule = model, inputs, schedule
        # two images: a batch of one could be mistaken for any other dimension of size one
        self._trace = trace_model(model, *inputs(2))
        self.device = self._trace.image.meta["val"].device
        self.output_shape = tuple(self._trace.output.meta["val"].shape)
        self._values: dict[fx.Node, Tensor] = {}
        self._larger = self._trace  # for the last batch size other than two

    @cached_property
    def plan(self) -> Plan:
        """The schedule for one image."""
        return self.plan_for(1)

    def plan_for(self, batch: int) -> Plan:
        """The schedule for a batch size."""
        return cheapest(self._plans, self._schedule, batch)

    @cached_property
    def _plans(self) -> list[Plan]:
        """They share their operators."""
        return Planner(self._lowering).plans()

    @cached_property
    def _lowering(self) -> Lowering:
        return lower(self._trace, live_state(self._model))

    @cached_property
    def _linear(self) -> list[Linear]:
        return [op for op in self.plan.operators if isinstance(op, Linear)]

    @cached_property
    def _needed(self) -> list[fx.Node]:
        """Nodes that the plan takes as weights and constants."""
        needed: dict[fx.Node, None] = {}
        for op in self.plan.operators:
            if isinstance(op, Linear):
                needed.update({node: None for node in (op.weight, op.bias) if node is not None})
            elif isinstance(op, Map):
                for operand in op.operands:
                    needed.update(dict.fromkeys(operand.nodes if isinstance(operand, Constant) else ()))
        needed.update(dict.fromkeys(self._lowering.patterns))
        return list(needed)

    def refresh(self) -> bool:
        """Read the live parameters; False if the plan does not fit them any more."""
        fixed = [node for node in self._needed if self._trace.kinds[node] != "condition"]
        self._values = self._trace.evaluate(fixed, live_state(self._model))
        if not all(torch.equal(self._values[node], mask) for node, mask in self._lowering.patterns.items()):
            return False
        return all(op.is_current(self._values[op.weight]) for op in self._linear)

    def values(self, condition: Tensor | None) -> dict[fx.Node, Tensor]:
        """The numbers at the last refresh, and those that follow from a condition (B, ...)."""
        conditional = [node for node in self._needed if self._trace.kinds[node] == "condition"]
        if condition is None or not conditional:
            return self._values
        if condition.shape[0] == 1:
            condition = condition.expand(2, *condition.shape[1:])  # a single image is traced as two
        batch = condition.shape[0]
        trace = self._trace
        if batch != 2:
            if self._larger.batch != batch:  # sizes are part of a trace
                self._larger = trace_model(self._model, *self._inputs(batch))
            trace = self._larger
        by_name = {node.name: node for node in trace.graph.nodes}
        if any(node.name not in by_name for node in conditional):
            raise UnsupportedModelError("the model runs other operators for other batch sizes")
        found = trace.evaluate([by_name[node.name] for node in conditional], live_state(self._model), condition)
        return {**self._values, **{node: found[by_name[node.name]] for node in conditional}}
