"""Exact averages of a loss over images: sums over datapoints, never means of batch means."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .randomness import device_of, own_random_state, seed_all

__all__ = ["Loss", "mean_loss", "per_datapoint"]

Loss = Callable[[nn.Module, Tensor], Tensor]


def mean_loss(
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    *,
    batch_size: int = 100,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """The mean of a loss over all images, in evaluation mode, without gradients and with the same noise each time.

    Args:
        model: on any device; its mode is restored.
        loss: ``loss(model, batch)`` -> (N,) nats per datapoint, or their mean.
        images: (N, ...), moved to the device of the model batch by batch.
        batch_size: does not change the mean (beyond rounding) unless ``loss`` draws noise.
        seed: of the noise; torch's random state is left untouched.
        stop: asked between batches.

    Returns:
        Nats per datapoint, or None if ``stop`` asked to leave.

    Example:
        >>> images = torch.arange(5.0).view(5, 1)
        >>> mean_loss(torch.nn.Identity(), lambda model, x: model(x).sum(-1), images, batch_size=2)
        2.0
    """
    if not len(images):
        raise ValueError("images must hold at least one image, got none")
    device, training = device_of(model), model.training
    total = 0.0
    model.eval()
    try:
        with own_random_state(device), torch.no_grad():
            seed_all(device, seed)
            for batch in images.split(batch_size):
                if stop():
                    return None
                total += float(per_datapoint(loss(model, batch.to(device)), len(batch)).sum(dtype=torch.float64))
    finally:
        model.train(training)
    return total / len(images)


def per_datapoint(losses: Tensor, batch_size: int) -> Tensor:
    """(N,) losses, from (N,) or from the mean of a batch."""
    if not isinstance(losses, Tensor) or losses.shape not in ((), (batch_size,)):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss must return nats per datapoint, ({batch_size},), or their mean, (); got {got}")
    return losses.expand(batch_size)
