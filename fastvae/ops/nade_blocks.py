"""NADE on PyTorch: a few dimensions of some rows at once, so that their hidden units stay in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["gradients", "logits", "sample"]

# Hidden units (dimensions, rows, H) that exist at one time, whatever B and D are. Measured on two cores, D = 784,
# H = 500: 4 to 16 dimensions of 64 rows are equally fast; products with more dimensions cost more than they save.
_MOST_UNITS = 1 << 18
_MOST_DIMENSIONS, _MOST_ROWS = 8, 64


def logits(x: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor) -> Tensor:
    """As :func:`fastvae.reference.nade_logits`."""
    with torch.autocast(x.device.type, enabled=False):
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        hidden, product = _scratch(x, weight)
        for rows in _rows(x):
            running = hidden_bias.repeat(rows.stop - rows.start, 1)
            for block in _blocks(x, weight):
                values = x[rows, block]
                h = _hidden(values, weight[block], running, hidden)
                terms = _shaped(product, h)
                torch.mul(h, output_weight[block, None], out=terms)
                torch.sum(terms, -1, out=result[rows, block].t())
                running.addmm_(values, weight[block])
        return result.add_(output_bias)


def gradients(
    x: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``weight``, ``hidden_bias`` and ``output_weight`` from that of the logits (B, D).

    Hidden units are recomputed from the last dimension to the first: nothing but the running pre-activation is kept.
    """
    with torch.autocast(x.device.type, enabled=False):
        grad_weight, grad_output_weight = torch.zeros_like(weight), torch.zeros_like(output_weight)
        grad_hidden_bias = torch.zeros_like(hidden_bias)
        hidden, product = _scratch(x, weight)
        for rows in _rows(x):
            running = torch.addmm(hidden_bias, x[rows], weight)
            later = torch.zeros_like(running)  # the gradient of the pre-activation, of the dimensions so far
            for block in reversed(list(_blocks(x, weight))):
                values, given = x[rows, block], grad[rows, block].t()
                running.addmm_(values, weight[block], alpha=-1)
                h = _hidden(values, weight[block], running, hidden)
                slope = _shaped(product, h)
                grad_output_weight[block] += torch.bmm(given[:, None], h)[:, 0]
                # V h (1 - h), then times the gradient of the logits
                torch.ops.aten.sigmoid_backward.grad_input(output_weight[block, None].expand_as(h), h, grad_input=slope)
                slope.mul_(given[:, :, None])
                grad_weight[block].addmm_(values.t(), later)
                grad_weight[block].addmm_(_before(values).flatten(0, 1).t(), slope.flatten(0, 1))
                later += slope.sum(0)
            grad_hidden_bias += later.sum(0)
        return grad_weight, grad_hidden_bias, grad_output_weight


def sample(uniform: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor) -> Tensor:
    """As :func:`fastvae.reference.nade_sample`."""
    with torch.autocast(uniform.device.type, enabled=False):
        running = hidden_bias.repeat(uniform.shape[0], 1)
        hidden = torch.empty_like(running)
        numbers = uniform.t().contiguous()
        values = torch.empty_like(numbers)
        columns = zip(numbers, values, values[:, :, None], weight, output_weight, output_bias, strict=True)
        for u, out, column, row, output_row, bias in columns:
            torch.sigmoid(running, out=hidden)
            probability = torch.addmv(bias, hidden, output_row).sigmoid_()
            torch.lt(u, probability, out=out)
            running.addcmul_(column, row)
        return values.t().contiguous()


def _hidden(values: Tensor, weight: Tensor, running: Tensor, scratch: Tensor) -> Tensor:
    """Hidden units before each dimension of a block, (dimensions, rows, H)."""
    before = _before(values)
    h = scratch[: before.shape[0] * before.shape[1]].view(*before.shape[:2], -1)
    torch.mm(before.flatten(0, 1), weight, out=h.flatten(0, 1))
    return h.add_(running).sigmoid_()


def _before(values: Tensor) -> Tensor:
    """(rows, dimensions) -> (dimensions, rows, dimensions), of which slice i keeps the dimensions before i."""
    size = values.shape[1]
    return values * values.new_ones(size, size).tril_(-1)[:, None]


def _scratch(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two blocks of hidden units, as (dimensions * rows, H)."""
    size = min(x.shape[0], _MOST_ROWS) * _num_dimensions(x, weight)
    first, second = x.new_empty((2, size, weight.shape[1]))
    return first, second


def _shaped(scratch: Tensor, h: Tensor) -> Tensor:
    return scratch[: h.shape[0] * h.shape[1]].view(h.shape)


def _rows(x: Tensor) -> Iterator[slice]:
    for start in range(0, x.shape[0], _MOST_ROWS):
        yield slice(start, min(start + _MOST_ROWS, x.shape[0]))


def _blocks(x: Tensor, weight: Tensor) -> Iterator[slice]:
    size = _num_dimensions(x, weight)
    for start in range(0, x.shape[1], size):
        yield slice(start, min(start + size, x.shape[1]))


def _num_dimensions(x: Tensor, weight: Tensor) -> int:
    units = min(x.shape[0], _MOST_ROWS) * weight.shape[1]
    return max(1, min(_MOST_DIMENSIONS, _MOST_UNITS // max(units, 1)))
