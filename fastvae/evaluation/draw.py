"""Samples from a proposal that depend on nothing but their address: seed, datapoint, sample, dimension."""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from fastvae import ops

__all__ = ["BLOCK_POINTS", "BLOCK_SAMPLES", "draw", "is_addressed"]

# proposals that draw for themselves do it in blocks of this fixed size, whatever the chunk size
BLOCK_POINTS, BLOCK_SAMPLES = 16, 256
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def is_addressed(q: Any) -> bool:
    """Whether every sample of ``q`` can be made from noise of its own: ``from_noise``, or a diagonal normal."""
    return hasattr(q, "from_noise") or _normal(q) is not None


def draw(q: Any, seed: int, ids: Tensor, first: int, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The samples ``first .. first + count`` of ``q`` for each datapoint, and their log-density.

    Args:
        q: the proposal, batch (N,).
        seed: in [0, 2^64).
        ids: (N,) int64, global numbers of the datapoints.
        first, count: which samples.
        dtype: of the noise that ``from_noise`` takes.

    Returns:
        z (count, N, ...) and log q(z) (count, N) in nats.
    """
    if not hasattr(q, "log_prob") and not hasattr(q, "rsample_and_log_prob"):
        raise TypeError(f"proposal(x) must return a distribution with log_prob, got {type(q).__name__}")
    if hasattr(q, "from_noise"):
        z, log_q = q.from_noise(_noise(seed, ids, first, count, q.noise_size, dtype))
    elif (normal := _normal(q)) is not None:
        z, log_q = _draw_normal(normal, seed, ids, first, count)
    else:
        z, log_q = _draw_blocks(q, seed, ids, first, count)
    want = (count, ids.shape[0])
    if z.shape[:2] != want or log_q.shape != want:
        raise ValueError(
            f"samples and log-densities of the proposal must have the leading shape {want} (samples, datapoints) and "
            f"the shape {want}, got {tuple(z.shape)} and {tuple(log_q.shape)}; proposal(x) needs batch shape "
            f"({ids.shape[0]},): wrap it in torch.distributions.Independent if dimensions of z are in its batch"
        )
    return z, log_q


def _noise(seed: int, ids: Tensor, first: int, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """Standard normal (count, N, width)."""
    rows = torch.arange(first, first + count, device=ids.device)
    drawn = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    return ops.normal(seed, ids, rows, width, dtype=drawn).transpose(0, 1).to(dtype).contiguous()


def _normal(q: Any) -> Normal | None:
    while isinstance(q, Independent):
        q = q.base_dist
    # a subclass may sample differently; without an event dimension there is nothing to make independent
    return q if type(q) is Normal and q.loc.ndim >= 2 else None


def _draw_normal(normal: Normal, seed: int, ids: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    event = normal.loc.shape[1:]
    width = event.numel()
    noise = _noise(seed, ids, first, count, width, normal.loc.dtype)
    z = torch.addcmul(normal.loc, normal.scale, noise.view(count, -1, *event))
    log_scale = normal.scale.log().flatten(1).sum(-1)
    return z, -0.5 * noise.square().sum(-1) - log_scale - width * _HALF_LOG_TWO_PI


def _draw_blocks(q: Any, seed: int, ids: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """For anything that samples by itself: whole blocks, each from a generator seeded by its address."""
    blocks = range(first // BLOCK_SAMPLES, -(-(first + count) // BLOCK_SAMPLES))
    devices = [ids.device] if ids.device.type == "cuda" else []
    draws, densities = [], []
    with torch.random.fork_rng(devices):  # the caller's random state stays as it is
        for block in blocks:
            address = f"{seed},{ids[0].item()},{block}".encode()
            torch.manual_seed(int.from_bytes(hashlib.blake2b(address, digest_size=8).digest()))
            z, log_q = _sample(q)
            draws.append(z)
            densities.append(log_q)
    start = first - blocks.start * BLOCK_SAMPLES
    return torch.cat(draws)[start : start + count], torch.cat(densities)[start : start + count]


def _sample(q: Any) -> tuple[Tensor, Tensor]:
    shape = torch.Size([BLOCK_SAMPLES])
    if hasattr(q, "rsample_and_log_prob"):
        return q.rsample_and_log_prob(shape)
    z = q.rsample(shape) if getattr(q, "has_rsample", False) else q.sample(shape)
    return z, q.log_prob(z)
