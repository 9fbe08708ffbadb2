"""What the operators of a last linear layer and its likelihood share: checks, rows, chunks whose parameters fit the
cache, and the two passes over them."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import onednn
from .likelihood_rows import accumulator, blocks, broadcast_batch, check_inputs, repeating_rows

__all__ = [
    "affine",
    "as_rows",
    "backward_in_chunks",
    "cast_for_autocast",
    "check_linear",
    "check_params_dim",
    "chunks",
    "forward_in_chunks",
    "with_params",
]

# parameters (logits, means) of the likelihood that exist at once: 4 MB in float32 stay in the cache of a CPU, where
# smaller chunks run fewer threads; on CUDA, without our kernels, a fraction of its memory that keeps it busy
_CHUNK = {"cpu": 2**20, "cuda": 2**26}
# where rows are wide, up to four times as many: a product of fewer rows reads the weights more often than it should
_FEWEST_ROWS = 256


def check_linear(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    event_dims: int,
    per_value: int,
    unit: int | None = None,
) -> None:
    """Raise for arguments that do not fit: ``per_value`` parameters for each of the values of ``x``, 0 for any, or any
    multiple of ``unit``."""
    parts = {"h": h, "weight": weight} | ({} if bias is None else {"bias": bias})
    check_inputs(x, **parts)
    if len({values.dtype for values in parts.values()}) > 1:
        got = ", ".join(f"{name} {values.dtype}" for name, values in parts.items())
        raise TypeError(f"h, weight and bias must have one dtype, got {got}; convert h to that of the layer")
    if not 1 <= event_dims <= x.ndim:
        raise ValueError(f"event_dims must be between 1 and the dimensions of x, {x.ndim}, got {event_dims}")
    if weight.ndim != 2 or h.ndim < 1 or weight.shape[1] != h.shape[-1]:
        raise ValueError(
            f"h must have shape (..., H) and weight (outputs, H), got {tuple(h.shape)} and {tuple(weight.shape)}"
        )
    size, outputs = math.prod(x.shape[x.ndim - event_dims :]), weight.shape[0]
    unit = max(size, 1) if unit is None else unit
    if outputs != size * per_value and (per_value or outputs == 0 or outputs % unit):
        raise ValueError(
            f"weight must have {per_value * size if per_value else f'a multiple of {unit}'} outputs for the {size} "
            f"values of x in its last {event_dims} dimensions, got weight {tuple(weight.shape)}, x {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({outputs},), got {tuple(bias.shape)}")


def check_params_dim(name: str, dim: int, event_dims: int) -> None:
    """Raise unless ``dim`` is one of the last dimensions of an event with one more."""
    if not -event_dims - 1 <= dim <= -1:
        raise ValueError(f"{name} must be between {-event_dims - 1} and -1, got {dim}")


def with_params(event: torch.Size, size: int, dim: int) -> torch.Size:
    """``event`` with one more dimension, at the negative index ``dim`` of the result."""
    at = len(event) + 1 + dim
    return torch.Size((*event[:at], size, *event[at:]))


def cast_for_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """What autocast would make of the arguments of a linear layer; float64 stays."""
    device = next(values.device.type for values in tensors if values is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [v if v is None or v.dtype == torch.float64 else v.to(dtype) for v in tensors]


def as_rows(h: Tensor, x: Tensor, event_dims: int) -> tuple[Tensor, Tensor, torch.Size]:
    """``h`` (..., H) -> (R, H), ``x`` (..., event) -> (X, event), whose row ``r % X`` row r meets, and the batch."""
    event = x.shape[x.ndim - event_dims :]
    batch = broadcast_batch(x, event, h.shape[:-1], "x and h")
    rows = h.expand(*batch, h.shape[-1]).reshape(math.prod(batch), h.shape[-1])
    return rows, repeating_rows(x.detach(), batch, event_dims), batch


def affine(h: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """``activation(h @ weight.T + bias)`` for rows ``h`` (R, H), "none" or "sigmoid", by the fastest way there is."""
    fits = h.device.type == "cpu" and h.dtype == torch.float32 and h.shape[0] >= onednn.FEWEST_ROWS and h.numel() > 0
    if fits and onednn.has_fused_linear():
        return onednn.linear(h, weight, bias, activation)
    out = torch.mm(h, weight.t()) if bias is None else torch.addmm(bias, h, weight.t())
    return out.sigmoid_() if activation == "sigmoid" else out


def chunks(repeats: int, num_data: int, row_size: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Slices (of the repeats, of the data) whose rows of ``row_size`` parameters are as many as may exist at once."""
    chunk = _CHUNK["cuda" if device.type == "cuda" else "cpu"]
    most = max(1, chunk // max(row_size, 1), min(_FEWEST_ROWS, 4 * chunk // max(row_size, 1)))
    data = max(1, min(num_data, most))
    # even parts: a last chunk of few rows would run as long as one of many
    parts = -(-repeats // max(1, most // data))
    return blocks(repeats, num_data, (-(-repeats // max(1, parts)), data))


def forward_in_chunks(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, log_prob: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``log_prob(x, params)`` of every row (R,): ``x`` (X, ...), ``h`` (R, H), ``weight`` (P, H)."""
    num_data = x.shape[0]
    rows = h.view(h.shape[0] // max(num_data, 1), num_data, h.shape[1])
    total = h.new_empty(rows.shape[:2], dtype=accumulator(h))
    for i, j in chunks(rows.shape[0], num_data, weight.shape[0], h.device):
        params = affine(rows[i, j].flatten(0, 1), weight, bias)
        total[i, j] = log_prob(x[j], params).view(total[i, j].shape)
    return total.view(-1)


def backward_in_chunks(
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    grad: Tensor,
    grad_params: Callable[[Tensor, Tensor, Tensor], Tensor],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of h (R, H), weight (P, H) and bias (P,), empty where ``needs`` says that nobody asks.

    ``grad_params(x, h, grad)`` computes the parameters of some rows again and gives their gradient (rows, P). Sums over
    rows run in the order of the chunks, so twice the same call gives the same bits; in float32 for half precision.
    """
    num_data, wide = x.shape[0], accumulator(h)
    rows = h.view(h.shape[0] // max(num_data, 1), num_data, h.shape[1])
    grad_rows = h.new_empty(rows.shape if needs[0] else (0, 0, 0))
    grad_weight = weight.new_zeros(weight.shape if needs[1] else (0, 0), dtype=wide)
    grad_bias = weight.new_zeros(weight.shape[0] if needs[2] else 0, dtype=wide)
    grad = grad.to(wide).view(rows.shape[:2])
    transposed = weight.t().contiguous() if needs[0] else weight
    for i, j in chunks(rows.shape[0], num_data, weight.shape[0], h.device):
        block = rows[i, j].flatten(0, 1)
        by_params = grad_params(x[j], block, grad[i, j].flatten())
        if needs[0]:
            grad_rows[i, j] = affine(by_params.to(h.dtype), transposed, None).view(rows[i, j].shape)
        if needs[1]:
            grad_weight.addmm_(by_params.to(wide).t(), block.to(wide))
        if needs[2]:
            grad_bias.add_(by_params.sum(0))
    grad_h = grad_rows.view(h.shape) if needs[0] else grad_rows
    return grad_h, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
