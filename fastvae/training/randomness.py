"""The random numbers of a run: its own state of torch's generators, and an order of the data for each epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["device_of", "epoch_order", "own_random_state", "random_state", "seed_all", "set_random_state"]


def epoch_order(num_images: int, seed: int, epoch: int) -> Tensor:
    """A permutation that depends on (seed, epoch) alone, so that a resumed epoch finds its place again."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(int(mixed)))


def device_of(model: nn.Module) -> torch.device:
    """Where the model lives; the CPU for one without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's random state, on the CPU and on ``device``, as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_all(device: torch.device, seed: int) -> None:
    """Seed the CPU and ``device``, and no other device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state that :func:`set_random_state` restores."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    """Restore the state; one saved on another kind of device restores the CPU alone."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
