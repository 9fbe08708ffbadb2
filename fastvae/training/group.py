"""Processes that train one model together: each takes a share of every batch, the gradients are added."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .randomness import seed_all

__all__ = ["Group"]


class Group:
    """This process among those of the default group of ``torch.distributed``; alone unless ``distributed``.

    A step takes the same datapoints as that of one process, so that a loss without noise gives the same result up to
    rounding. Noise follows (seed, step, rank) alone: a resumed run of as many processes goes on to the same result.

    Raises:
        RuntimeError: if ``distributed``, and no group was initialised.
    """

    def __init__(self, distributed: bool) -> None:
        self.rank, self.size = 0, 1
        if distributed:
            if not (dist.is_available() and dist.is_initialized()):
                raise RuntimeError("distributed=True needs torch.distributed.init_process_group before")
            self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, batch: Tensor) -> Tensor:
        """The datapoints of a batch that are this process's; none where there are fewer than processes."""
        return batch[self.rank :: self.size]

    def seed(self, device: torch.device, seed: int, step: int) -> None:
        """Noise of a step, another one in each process; one process alone goes on with its own stream."""
        if self.size > 1:
            mixed = np.random.SeedSequence((seed, step, self.rank)).generate_state(1, np.uint64)[0]
            seed_all(device, int(mixed) >> 1)  # in [0, 2^63)

    def add(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Each gradient becomes the sum over the processes; None where no process has one."""
        if self.size == 1:
            return
        has = self.add(torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device))
        chosen = [parameter for parameter, some in zip(parameters, has.tolist(), strict=True) if some]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in chosen if parameter.grad is not None]
        for dtype in {grad.dtype for grad in grads}:  # one message for all of a type
            same = [grad for grad in grads if grad.dtype == dtype]
            total = self.add(torch.cat([grad.flatten() for grad in same]))
            for grad, part in zip(same, total.split([grad.numel() for grad in same]), strict=True):
                grad.copy_(part.view_as(grad))

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so in one of the processes."""
        return here if self.size == 1 else bool(self.add(torch.tensor([float(here)], device=device)).item())

    def from_first(self, value: float | None, device: torch.device) -> float | None:
        """What process 0 says; nan travels as None."""
        if self.size == 1:
            return value
        told = torch.tensor([float("nan") if value is None else value], dtype=torch.float64, device=device)
        dist.broadcast(told, 0)
        return None if bool(told.isnan()) else float(told)

    def meet(self, device: torch.device) -> None:
        """Wait for all."""
        self.add(torch.zeros(1, device=device))
