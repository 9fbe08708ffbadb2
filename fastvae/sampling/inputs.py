"""Checks of what a sampler is made and called with, and the uniform numbers that follow from a seed."""

import operator
from typing import Any

import torch
from torch import Tensor

from fastvae.ops import uniform

__all__ = ["checked_condition", "require_integer", "require_sizes", "require_tensor", "uniform_numbers"]


def require_integer(name: str, value: Any, low: int, end: int) -> None:
    """Raise unless ``value`` is an integer in [low, end)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not low <= value < end:
        raise ValueError(f"{name} must be in [{low}, {end}), got {value}")


def require_sizes(name: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple."""
    try:
        return tuple(operator.index(size) for size in value)
    except TypeError as error:
        raise TypeError(f"{name} must be a sequence of integers, got {value!r}") from error


def require_tensor(name: str, value: Any) -> None:
    """Raise unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; convert it with torch.as_tensor")


def uniform_numbers(
    num_samples: int,
    event_shape: tuple[int, ...],
    seed: int,
    noise: Tensor | None,
    first_id: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Numbers in (0, 1), (B, C, H, W): the given ones, or those at (seed, first_id + b, pixel, channel)."""
    if isinstance(num_samples, bool) or not isinstance(num_samples, int):
        raise TypeError(f"num_samples must be an integer, got {num_samples!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    shape = (num_samples, *event_shape)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    if noise is not None:
        require_tensor("noise", noise)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}")
        noise = noise.to(device, dtype)
        if not bool(((noise > 0) & (noise < 1)).all()):
            raise ValueError("noise must be uniform numbers in the open interval (0, 1), got others; use torch.rand")
        return noise
    require_integer("seed", seed, 0, 2**64)
    require_integer("first_id", first_id, 0, 2**32 - num_samples + 1)
    ids = torch.arange(first_id, first_id + num_samples, device=device)
    pixels = torch.arange(shape[2] * shape[3], device=device)
    numbers = uniform(seed, ids, pixels, shape[1], dtype=dtype)  # (B, H * W, C)
    return numbers.unflatten(1, shape[2:]).permute(0, 3, 1, 2)


def checked_condition(
    num_samples: int,
    condition_shape: tuple[int, ...] | None,
    condition: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """The condition, (B, *condition_shape), on the model's device and in its dtype; None if there is none."""
    if condition_shape is None:
        if condition is not None:
            raise ValueError("the sampler was compiled without a condition; pass condition_shape to compile_sampler")
        return None
    expected = (num_samples, *condition_shape)
    if condition is None:
        raise ValueError(f"condition is missing: the model needs one of shape {expected}")
    require_tensor("condition", condition)
    if tuple(condition.shape) != expected:
        raise ValueError(f"condition must have shape {expected}, got {tuple(condition.shape)}")
    return condition.to(device, dtype)
