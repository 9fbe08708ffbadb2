"""Data with conditions beside them: labels that a conditional model takes, cut into chunks together with the data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Conditioned", "with_condition"]


class Conditioned:
    """Datapoints and the condition of each, indexed as one.

    Args:
        x: (N, ...).
        condition: (N, ...) on the same device.

    Raises:
        TypeError: if ``condition`` is no tensor.
        ValueError: if its number of datapoints or its device differs.
    """

    def __init__(self, x: Tensor, condition: Tensor) -> None:
        if not isinstance(condition, Tensor):
            raise TypeError(f"condition must be a tensor, got {type(condition).__name__}")
        if condition.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"condition must have shape ({x.shape[0]}, ...), one row for each datapoint, got "
                f"{tuple(condition.shape)}"
            )
        if condition.device != x.device:
            raise ValueError(f"condition must be on the device of x, {x.device}, got {condition.device}")
        self.x, self.condition = x, condition

    @property
    def shape(self) -> torch.Size:
        """Of the data."""
        return self.x.shape

    def __getitem__(self, index: Any) -> "Conditioned":
        return Conditioned(self.x[index], self.condition[index])


def with_condition(
    proposal: Callable[..., Any], log_joint: Callable[..., Tensor]
) -> tuple[Callable[[Conditioned], Any], Callable[[Conditioned, Any], Tensor]]:
    """``proposal(x, condition)`` and ``log_joint(x, z, condition)`` as functions of both at once."""
    return lambda data: proposal(data.x, data.condition), lambda data, z: log_joint(data.x, z, data.condition)
