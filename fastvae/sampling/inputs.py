"""Checks of what a sampler is called with, and the uniform numbers that follow from a seed."""

import torch
from torch import Tensor

from fastvae.ops import uniform

__all__ = ["checked_condition", "uniform_numbers"]


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
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}")
        noise = noise.to(device, dtype)
        if not bool(((noise > 0) & (noise < 1)).all()):
            raise ValueError("noise must be uniform numbers in the open interval (0, 1), got others; use torch.rand")
        return noise
    if first_id < 0 or first_id + num_samples > 2**32:
        raise ValueError(f"first_id must be in [0, 2^32 - num_samples], got {first_id}")
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
    if tuple(condition.shape) != expected:
        raise ValueError(f"condition must have shape {expected}, got {tuple(condition.shape)}")
    return condition.to(device, dtype)
