"""Samples from a proposal that depend on nothing but their address: seed, datapoint, sample, dimension."""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from fastvae import ops
from fastvae.distributions import DiagonalGaussian

__all__ = [
    "BLOCK_POINTS",
    "BLOCK_SAMPLES",
    "Latent",
    "chunk",
    "draw",
    "example",
    "from_noise",
    "is_addressed",
    "latent_size",
    "noise_size",
    "repeated",
]

Latent = Tensor | tuple[Tensor, ...]  # z (K, N, ...), or such a tensor for each stochastic layer

# proposals that draw for themselves do it in blocks of this fixed size, whatever the chunk size
BLOCK_POINTS, BLOCK_SAMPLES = 16, 256
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def is_addressed(q: Any) -> bool:
    """Whether every sample of ``q`` can be made from noise of its own: ``from_noise``, or a diagonal normal."""
    return hasattr(q, "from_noise") or _normal(q) is not None


def noise_size(q: Any, batch_dims: int = 1) -> int:
    """How many standard normal numbers one draw of an addressed proposal takes."""
    normal = _normal(q)
    return q.noise_size if normal is None else normal.loc.shape[batch_dims:].numel()


def from_noise(q: Any, noise: Tensor, batch_dims: int = 1) -> tuple[Latent, Tensor]:
    """The draws of an addressed proposal that belong to ``noise`` (count, N, noise size), and their log-density."""
    normal = _normal(q)
    if normal is None:
        return q.from_noise(noise)
    event = normal.loc.shape[batch_dims:]
    z = torch.addcmul(normal.loc, normal.scale, noise.unflatten(-1, event))
    log_scale = normal.scale.log().flatten(batch_dims).sum(-1)
    return z, -0.5 * noise.square().sum(-1) - log_scale - event.numel() * _HALF_LOG_TWO_PI


def draw(
    q: Any, seed: int, ids: Tensor, first: int, count: int, dtype: torch.dtype, contiguous: bool = True
) -> tuple[Latent, Tensor]:
    """The samples ``first .. first + count`` of ``q`` for each datapoint, and their log-density.

    Args:
        q: the proposal, batch (N,).
        seed: in [0, 2^64).
        ids: (N,) int64, global numbers of the datapoints.
        first, count: which samples.
        dtype: of the noise that ``from_noise`` takes.
        contiguous: whether z has to be; else the samples of each datapoint are, where the proposal is a plain normal.

    Returns:
        z (count, N, ...), or a tuple of such tensors, and log q(z) (count, N) in nats.
    """
    _check_proposal(q, ids.shape[0])
    if is_addressed(q):
        noise = _noise(seed, ids, first, count, noise_size(q), _dtype(q, dtype))
        if contiguous or not (type(q) is DiagonalGaussian or _normal(q)):
            noise = noise.contiguous()
        return _checked(*from_noise(q, noise), count, ids)
    return _checked(*_draw_blocks(q, seed, ids, first, count), count, ids)


def example(q: Any, ids: Tensor, dtype: torch.dtype) -> Latent:
    """One z (1, N, ...) of each datapoint to look at; no noise is made for it where none is needed.

    Raises:
        TypeError, ValueError: where :func:`draw` would.
    """
    _check_proposal(q, ids.shape[0])
    if not is_addressed(q):
        return draw(q, 0, ids, 0, 1, dtype)[0]
    noise = torch.zeros(1, ids.shape[0], noise_size(q), dtype=_dtype(q, dtype), device=ids.device)
    return _checked(*from_noise(q, noise), 1, ids)[0]


def _dtype(q: Any, dtype: torch.dtype) -> torch.dtype:
    """Of the noise that an addressed proposal takes."""
    normal = _normal(q)
    return dtype if normal is None else normal.loc.dtype


def _checked(z: Latent, log_q: Tensor, count: int, ids: Tensor) -> tuple[Latent, Tensor]:
    want = (count, ids.shape[0])
    if any(layer.shape[:2] != want for layer in _layers(z)) or log_q.shape != want:
        got = " and ".join(str(tuple(tensor.shape)) for tensor in (*_layers(z), log_q))
        raise ValueError(
            f"samples and log-densities of the proposal must have the leading shape {want} (samples, datapoints) and "
            f"the shape {want}, got {got}; proposal(x) needs batch shape ({ids.shape[0]},): wrap it in "
            "torch.distributions.Independent if dimensions of z are in its batch"
        )
    return z, log_q


def chunk(z: Latent, samples: slice, points: slice) -> Latent:
    """Some samples of some datapoints, contiguous."""
    parts = [layer[samples, points].contiguous() for layer in _layers(z)]
    return parts[0] if isinstance(z, Tensor) else tuple(parts)


def repeated(z: Latent, count: int) -> Latent:
    """``count`` times the one sample (1, N, ...) of each datapoint."""
    layers = [layer.repeat(count, *[1] * (layer.ndim - 1)) for layer in _layers(z)]
    return layers[0] if isinstance(z, Tensor) else tuple(layers)


def latent_size(z: Latent) -> int:
    """How many numbers one z is."""
    return sum(layer.shape[2:].numel() for layer in _layers(z))


def _layers(z: Latent) -> tuple[Tensor, ...]:
    return (z,) if isinstance(z, Tensor) else z


def _check_proposal(q: Any, num_points: int) -> None:
    if any(hasattr(q, name) for name in ("log_prob", "rsample_and_log_prob", "from_noise")):
        batch = tuple(getattr(q, "batch_shape", ()))
        if batch and batch[0] not in (1, num_points):
            raise ValueError(f"proposal(x) must have batch shape ({num_points},), one for each datapoint, got {batch}")
        return
    got, fix = type(q).__name__, ""
    if isinstance(q, tuple | list):
        got += f" of {', '.join(type(part).__name__ for part in q)}"
        fix = (
            "; an encoder that returns (mean, log_variance) fits as fastvae.distributions.DiagonalGaussian(mean, 0.5 * "
            "log_variance), other styles are in the documentation of fastvae.evaluation.adapters"
        )
    raise TypeError(f"proposal(x) must return a distribution with log_prob, got {got}{fix}")


def _noise(seed: int, ids: Tensor, first: int, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """Standard normal (count, N, width); in memory the datapoints come first."""
    rows = torch.arange(first, first + count, device=ids.device)
    drawn = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    return ops.normal(seed, ids, rows, width, dtype=drawn).transpose(0, 1).to(dtype)


def _normal(q: Any) -> Normal | None:
    while isinstance(q, Independent):
        q = q.base_dist
    # a subclass may sample differently; without an event dimension there is nothing to make independent
    return q if type(q) is Normal and q.loc.ndim >= 2 else None


def _draw_blocks(q: Any, seed: int, ids: Tensor, first: int, count: int) -> tuple[Latent, Tensor]:
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
    some = slice(start, start + count)
    joined = [torch.cat(layers)[some] for layers in zip(*map(_layers, draws), strict=True)]
    z = joined[0] if isinstance(draws[0], Tensor) else tuple(joined)
    return z, torch.cat(densities)[some]


def _sample(q: Any) -> tuple[Latent, Tensor]:
    shape = torch.Size([BLOCK_SAMPLES])
    if hasattr(q, "rsample_and_log_prob"):
        return q.rsample_and_log_prob(shape)
    z = q.rsample(shape) if getattr(q, "has_rsample", False) else q.sample(shape)
    return z, q.log_prob(z)
