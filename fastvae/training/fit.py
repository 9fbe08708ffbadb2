"""``fit``: Adam, clipping, validation, early stopping, checkpoints; interrupted and resumed to the same bits."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from .averages import Loss
from .group import Group
from .interruption import CtrlC
from .randomness import device_of, own_random_state
from .run import Fit, Images, Run
from .settings import Settings

__all__ = ["fit"]


def fit(
    model: nn.Module,
    loss: Loss,
    train: Tensor | Callable[[int], Tensor],
    valid: Tensor | None = None,
    *,
    epochs: int,
    batch_size: int = 100,
    learning_rate: float | Callable[[int], float] = 1e-3,
    epsilon: float = 1e-8,
    clip_norm: float | None = None,
    patience: int | None = None,
    valid_loss: Loss | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    info: Mapping[str, Any] | None = None,
    progress: bool = True,
    save_seconds: float = 300.0,
    distributed: bool = False,
) -> Fit:
    """Minimise a loss with Adam and leave the best weights in the model.

    Reproducible: order and noise follow ``seed`` alone (torch's random state outside is left as it was), and a run
    that was interrupted, even within an epoch, and resumed ends with the same bits as one that was not, on the same
    machine. Ctrl-C stops after the current step; with a ``folder`` everything is saved first.

    Args:
        model: on the device to train on; the batches go there. For ``folder`` it needs ``config()``.
        loss: ``loss(model, batch)`` -> (N,) nats per datapoint to minimise, or their mean: a negative bound.
            Noise comes from torch's generators.
        train: (N, ...) images on any device, or a function of the epoch (0, 1, ...), and of nothing else, that gives
            them: fresh binarisation.
        valid: (N, ...) images for model selection and early stopping, or None: then the last weights are kept.
        epochs: how many passes in all; a resumed run may ask for more than before.
        batch_size: the last batch of an epoch may be smaller; averages count datapoints, not batches.
        learning_rate: Adam's, or a function of the epoch (0, 1, ...).
        epsilon: Adam's.
        clip_norm: the largest norm of the gradient of the mean loss; longer ones are shortened. None: no clipping.
        patience: stop after this many epochs without a better validation loss. None: never.
        valid_loss: as ``loss``; evaluated after every epoch in evaluation mode, with the same noise each time. Default
            ``loss``.
        seed: in [0, 2^63).
        folder: where the checkpoint goes: a new name, or with ``resume`` an existing one.
        resume: go on where the checkpoint in ``folder`` stopped.
        info: kept in the checkpoint's config.json (data, protocol), as JSON can hold it.
        progress: a bar on standard error.
        save_seconds: how often the state is saved within a long epoch; it is always saved after an epoch.
        distributed: train together with the other processes of torch.distributed's default group, which call this
            with the same arguments: each takes a share of every batch, the first one validates, saves and shows the
            bar. Without noise in the loss the result is that of one process, up to rounding.

    Returns:
        A :class:`Fit`: the history and the best epoch.

    Raises:
        ValueError: for arguments that make no sense, a folder that exists without ``resume``, or a checkpoint of
            another model, other data or other settings, or one that is damaged.
        TypeError: if the seed is no integer, or a rate or norm is no number.
        RuntimeError: if the loss or its gradient is not finite, naming the step; the weights are as before it.
        Interrupted: (a KeyboardInterrupt) after Ctrl-C.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1)
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> squared_error = lambda model, x: (model(x) - 3 * x).square().sum(-1)
        >>> result = fit(model, squared_error, x, epochs=60, batch_size=10, learning_rate=0.05, progress=False)
        >>> round(model.weight.item(), 2)
        3.0
    """
    settings = Settings(epochs, batch_size, learning_rate, epsilon, clip_norm, patience, seed)
    if patience is not None and valid is None:
        raise ValueError("patience needs valid: early stopping watches validation images, never the training loss")
    if valid is not None and not len(valid):
        raise ValueError("valid must hold at least one datapoint, got none; pass None to keep the last weights")
    if resume and folder is None:
        raise ValueError("resume=True needs folder: the checkpoint to go on from")
    where = None if folder is None else Path(folder)
    was_training, group = model.training, Group(distributed)
    with own_random_state(device_of(model)), CtrlC() as ctrl_c:
        run = Run(model, (loss, valid_loss or loss), Images(train), valid, settings, where, save_seconds, ctrl_c, group)
        if resume and where is not None:
            run.load(where)
        else:
            run.start(info)
        try:
            done = run.state.epoch * run.num_batches + run.state.batch
            with tqdm(
                total=epochs * run.num_batches, initial=done, disable=not progress or group.rank > 0, unit="step"
            ) as bar:
                run.epochs(bar)
        finally:
            model.train(was_training)
    run.leave_best_weights()
    return run.state
