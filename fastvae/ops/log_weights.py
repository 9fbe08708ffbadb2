"""The streaming state of importance weights: a new chunk of log-weights enters, two states join."""

import torch
from torch import Tensor

from fastvae import reference

from ._dispatch import choose, must_use_definition
from .likelihood_rows import runs_directly

__all__ = ["empty_log_weights", "merge_log_weights", "update_log_weights"]


def empty_log_weights(num_points: int, device: torch.device | str | None = None) -> Tensor:
    """The state before the first sample.

    The rows are, for each datapoint: the number of samples n (zero weights included), the largest log-weight m,
    the sum of ``exp(l - m)``, the sum of ``exp(2 (l - m))``, mean and centred sum of squares of the finite l, the
    number of zero weights (l = -inf), the number of bad ones (nan or +inf).

    Args:
        num_points: N.
        device: where the state lives.

    Returns:
        (8, N) float64.

    Raises:
        ValueError: if ``num_points`` is negative.

    Example:
        >>> empty_log_weights(3).shape
        torch.Size([8, 3])
    """
    if num_points < 0:
        raise ValueError(f"num_points must not be negative, got {num_points}")
    return reference.empty_log_weights(num_points, device)


def update_log_weights(state: Tensor, log_w: Tensor) -> Tensor:
    """The state after more samples; see :func:`empty_log_weights` for its rows.

    Running totals are float64 and the maximum is subtracted first, so any number of chunks, in any order, gives the
    result of one logsumexp. On CUDA float32 chunks are summed in float32 tiles. A -inf is a zero weight and counts as
    a sample; nan and +inf are counted apart and enter no sum.

    Args:
        state: (8, N) float64. It is not modified.
        log_w: (K, N) log-weights in nats, floating point; gradients do not flow through.

    Returns:
        (8, N) float64.

    Raises:
        TypeError: if ``state`` is not float64 or ``log_w`` is not floating point.
        ValueError: if the shapes or devices do not fit.

    Example:
        >>> state = update_log_weights(empty_log_weights(2), torch.zeros(5, 2))
        >>> state[2]  # five equal weights
        tensor([5., 5.], dtype=torch.float64)
    """
    _check_state("state", state)
    if not log_w.is_floating_point():
        raise TypeError(f"log_w must be floating point, got {log_w.dtype}")
    if log_w.ndim != 2 or log_w.shape[1] != state.shape[1]:
        raise ValueError(f"log_w must have shape (K, {state.shape[1]}), got {tuple(log_w.shape)}; samples come first")
    if log_w.device != state.device:
        raise ValueError(f"log_w must be on the device of state, got {log_w.device} and {state.device}")
    if must_use_definition(state, log_w) or (runs_directly() and choose(state, log_w) == "torch"):
        return reference.update_log_weights(state, log_w)
    return _update(state.detach(), log_w.detach())


def merge_log_weights(a: Tensor, b: Tensor) -> Tensor:
    """The state of the samples of both; commutative, and associative up to float64 rounding.

    Args:
        a, b: (8, N) float64.

    Returns:
        (8, N) float64.

    Raises:
        TypeError: if one is not float64.
        ValueError: if the shapes or devices differ.

    Example:
        >>> a = update_log_weights(empty_log_weights(1), torch.tensor([[0.0]]))
        >>> b = update_log_weights(empty_log_weights(1), torch.tensor([[1.0], [2.0]]))
        >>> merge_log_weights(a, b)[:2].flatten()
        tensor([3., 2.], dtype=torch.float64)
    """
    _check_state("a", a)
    _check_state("b", b)
    if a.shape != b.shape or a.device != b.device:
        raise ValueError(
            f"a and b must have one shape and device, got {tuple(a.shape)} on {a.device} and {tuple(b.shape)} on "
            f"{b.device}"
        )
    return reference.merge_log_weights(a, b)


@torch.library.custom_op("fastvae::update_log_weights", mutates_args=())
def _update(state: Tensor, log_w: Tensor) -> Tensor:
    reason = "the kernel takes float32, float16 and bfloat16, got float64" if log_w.dtype == torch.float64 else None
    if choose(state, log_w, unsupported=reason) == "triton":
        from fastvae_kernels import log_weights as kernels

        return kernels.update_log_weights(state.contiguous(), log_w)
    return reference.update_log_weights(state, log_w)


@_update.register_fake
def _(state: Tensor, log_w: Tensor) -> Tensor:
    return state.new_empty(state.shape)


def _check_state(name: str, state: Tensor) -> None:
    if state.dtype != torch.float64:
        raise TypeError(f"{name} must be float64, got {state.dtype}; start from empty_log_weights")
    if state.ndim != 2 or state.shape[0] != reference.STATE_ROWS:
        raise ValueError(f"{name} must have shape ({reference.STATE_ROWS}, N), got {tuple(state.shape)}")
