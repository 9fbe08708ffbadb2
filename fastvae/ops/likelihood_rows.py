"""What the likelihood operators share: checked shapes, data that repeat for every sample, blocks that fit the cache."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "FEW",
    "accumulator",
    "block_sizes",
    "blocks",
    "broadcast_batch",
    "check_event_dims",
    "check_inputs",
    "is_small",
    "needs_grad",
    "repeating_rows",
    "runs_directly",
    "why_no_kernel",
    "widened",
]

BLOCK = 2**19  # elements that the CPU paths work on at once: a temporary of 2 MB stays in the cache and is reused

FEW = 2**19  # elements up to which the definitions, which make fewer calls, are as fast on two cores


def check_inputs(x: Tensor, **params: Tensor) -> None:
    """Raise for data that are not real, parameters that are not floating point, and devices that differ."""
    for name, values in params.items():
        if not values.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {values.dtype}")
        if x.device != values.device:
            raise ValueError(f"x and {name} must be on one device, got {x.device} and {values.device}")
    if x.is_complex():
        raise TypeError(f"x must be real, got {x.dtype}")


def check_event_dims(event_dims: int, x: Tensor, params: Tensor, name: str, extra: int = 0) -> None:
    """Raise if ``x`` has fewer dimensions than the event, or the parameters fewer than it and ``extra`` ones."""
    if not 1 <= event_dims <= min(x.ndim, params.ndim - extra):
        raise ValueError(
            f"event_dims must be between 1 and the number of dimensions of x and {name}, got {event_dims} for shapes "
            f"{tuple(x.shape)} and {tuple(params.shape)}; flat data take event_dims=1"
        )


def broadcast_batch(x: Tensor, event: torch.Size, lead: torch.Size, name: str) -> torch.Size:
    """The leading shape of ``x`` and the parameters called ``name``, whose leading shape is ``lead``."""
    split = x.ndim - len(event)
    if x.shape[split:] != event:
        raise ValueError(f"x must end in the event shape {tuple(event)} of {name}, got shape {tuple(x.shape)}")
    repeats = x.shape[:split]
    if repeats == lead[len(lead) - len(repeats) :]:
        return lead  # broadcast_shapes takes as long as a small block
    try:
        return torch.broadcast_shapes(repeats, lead)
    except RuntimeError:
        raise ValueError(
            f"the leading shape of x must broadcast with that of {name}, got {tuple(repeats)} and {tuple(lead)}"
        ) from None


def repeating_rows(x: Tensor, batch: torch.Size, event_dims: int) -> Tensor:
    """``x`` (..., event) -> (X, event), row ``r % X`` of it belongs to row r of the batch.

    The leading dimensions that only repeat it are left out; it is expanded where it repeats in the middle.
    """
    lead, event = x.shape[: x.ndim - event_dims], x.shape[x.ndim - event_dims :]
    while lead and lead[0] == 1:
        lead = lead[1:]
    x = x.reshape(lead + event)
    if lead != batch[len(batch) - len(lead) :]:
        lead = batch
        x = x.expand(batch + event)
    return x.reshape(math.prod(lead), *event)


def block_sizes(repeats: int, num_data: int, row_size: int, device: torch.device) -> tuple[int, int]:
    """How many repeats of how many data to work on at once: rows of at most ``BLOCK`` elements together, or one row.

    On CUDA all of them: there launches cost more than temporaries.
    """
    if device.type == "cuda":
        return repeats, num_data
    data = min(num_data, max(1, BLOCK // max(row_size, 1)))
    return min(repeats, max(1, BLOCK // max(data * row_size, 1))), data


def blocks(repeats: int, num_data: int, sizes: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """The slices (of the repeats, of the data) that blocks of ``sizes`` cut rows (repeats, num_data) into."""
    for i in range(0, repeats, max(sizes[0], 1)):
        for j in range(0, num_data, max(sizes[1], 1)):
            yield slice(i, i + sizes[0]), slice(j, j + sizes[1])


def is_small(count: int, *inputs: Tensor, factor: float = 1.0, factor_with_grad: float = 1.0) -> bool:
    """Whether the definition is the fastest path of the CPU for ``count`` elements: calls cost more than few of them.

    Measured to be so up to ``FEW`` elements times the factor of the operator, without a gradient and with it. A
    compiler sees the operator at every size.
    """
    most = FEW * (factor_with_grad if needs_grad(*inputs) else factor)
    return count <= most and inputs[0].device.type == "cpu" and not torch.compiler.is_compiling()


def runs_directly(*inputs: Tensor) -> bool:
    """Whether the CPU path can run without the operator around it, whose call costs as much as a small block.

    The operator is for gradients, and for compilers, which would unroll the blocks.
    """
    return not needs_grad(*inputs) and not torch.compiler.is_compiling()


def needs_grad(*inputs: Tensor) -> bool:
    """Whether a gradient of one of them may be asked for."""
    return torch.is_grad_enabled() and any(values.requires_grad for values in inputs)


def accumulator(*params: Tensor) -> torch.dtype:
    """float64 where a parameter is, else float32."""
    return torch.float64 if any(values.dtype == torch.float64 for values in params) else torch.float32


def why_no_kernel(*params: Tensor) -> str | None:
    """The reason for :func:`choose`."""
    wide = accumulator(*params) == torch.float64
    return "the kernel takes float32, float16 and bfloat16, got float64" if wide else None


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, for the definitions."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
