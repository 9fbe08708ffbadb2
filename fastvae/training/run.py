"""The moving parts of one run: the state, a step, an epoch, and their checkpoint."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastvae import checkpoint

from .averages import Loss, mean_loss, per_datapoint
from .group import Group
from .interruption import CtrlC, Interrupted
from .randomness import device_of, epoch_order, random_state, seed_all, set_random_state
from .settings import Settings, fingerprint
from .stored import check_moments, check_part, check_progress, split_parts

__all__ = ["Fit", "Images", "Run"]


@dataclass
class Fit:
    """How far a run is, and how it went.

    ``history`` has one entry per finished epoch: ``{"epoch", "train", "valid"}`` in nats per datapoint, epochs counted
    from 1. ``train`` averages the loss while the weights move; ``valid`` is None without validation images.
    """

    epoch: int = 0  # finished epochs
    batch: int = 0  # batches done in the current epoch
    step: int = 0  # batches done in all
    loss_sum: float = 0.0  # over the datapoints of the current epoch so far
    best_epoch: int | None = None
    best_valid: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


class Images:
    """The training images of each epoch: always the same, or from a function of the epoch, called once for each."""

    def __init__(self, source: Tensor | Callable[[int], Tensor]) -> None:
        self.source, self.epoch = source, 0
        self.current = source(0) if callable(source) else source
        if not isinstance(self.current, Tensor) or self.current.ndim == 0 or not len(self.current):
            raise ValueError("train must be a tensor (N, ...) of at least one datapoint, or a function that returns it")
        self.count = len(self.current)

    def __call__(self, epoch: int) -> Tensor:
        if not isinstance(self.source, Tensor) and epoch != self.epoch:
            self.epoch, self.current = epoch, self.source(epoch)
            if len(self.current) != self.count:
                raise ValueError(f"train must give {self.count} datapoints in every epoch, got {len(self.current)}")
        return self.current


class Run:
    """One call of :func:`fastvae.training.fit`; torch's random state belongs to it while it runs."""

    def __init__(
        self,
        model: nn.Module,
        losses: tuple[Loss, Loss],
        images: Images,
        valid: Tensor | None,
        settings: Settings,
        folder: Path | None,
        save_seconds: float,
        ctrl_c: CtrlC,
        group: Group,
    ) -> None:
        self.model, (self.loss, self.valid_loss), self.images, self.valid = model, losses, images, valid
        self.settings, self.save_seconds, self.ctrl_c, self.group = settings, save_seconds, ctrl_c, group
        self.folder = folder if group.rank == 0 else None  # one process writes
        self.device = device_of(model)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("model must have parameters to train, got none that requires a gradient")
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.rate(0), eps=settings.epsilon)
        self.num_batches = -(-images.count // settings.batch_size)
        self.identity = settings.identity() | {
            "train": fingerprint(images(0)),
            "valid": None if valid is None else fingerprint(valid),
        }
        self.state = Fit()
        self.best: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()

    def start(self, info: Mapping[str, Any] | None) -> None:
        """Begin; the checkpoint exists from here on."""
        seed_all(self.device, self.settings.seed)
        if self.folder is not None:
            checkpoint.create(self.folder, self.model, info=info)
            self.save()

    def load(self, folder: Path) -> None:
        """Take up the state that :meth:`save` wrote."""
        tensors, stored = checkpoint.read_training(folder, self.model)
        source = str(checkpoint.training_file(folder))
        check_progress(stored, self.identity, source)
        for name, ours in self.identity.items():
            if stored["identity"][name] != ours:
                raise ValueError(
                    f"{name} was {stored['identity'][name]} when {folder} was made, got {ours}: a resumed run needs "
                    "the same settings and data (epochs and patience may change); train into a new folder instead"
                )
        parts = split_parts(tensors, source)
        state = Fit(**stored["fit"])
        # everything is checked before anything changes
        check_part("random", parts["random"], {"cpu": torch.get_rng_state()}, source, others=("cuda",))
        moments = check_moments(parts["optimizer"], stored["moments"], self.parameters, source)
        checkpoint.check_state(self.model, parts["model"], f"{source}, model,")
        if state.best_epoch is not None and self.valid is not None:
            checkpoint.check_state(self.model, parts["best"], f"{source}, best,")
        checkpoint.load_state(self.model, parts["model"], source)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        set_random_state(self.device, parts["random"])
        self.best, self.state = parts["best"], state
        self.group.meet(self.device)  # before the file is replaced

    def save(self) -> None:
        """Write everything that :meth:`load` needs, as one file."""
        if self.folder is None:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"random.{name}": tensor for name, tensor in random_state(self.device).items()}
        moments = self.optimizer.state_dict()["state"]
        for index, of_parameter in moments.items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in of_parameter.items()}
        # which parameters have moments: those without a gradient so far have none
        state = {"identity": self.identity, "fit": asdict(self.state), "moments": sorted(moments)}
        checkpoint.write_training(self.folder, tensors, state)
        self.saved_at = time.monotonic()

    def epochs(self, bar: tqdm) -> None:
        """All epochs that are left."""
        state, patience = self.state, self.settings.patience
        while state.epoch < self.settings.epochs:
            if patience is not None and state.epoch - (state.best_epoch or 0) >= patience:
                return
            self._batches(bar)
            self._finish_epoch(bar)

    def _batches(self, bar: tqdm) -> None:
        """The batches that are left of this epoch."""
        state, size = self.state, self.settings.batch_size
        images = self.images(state.epoch)
        order = epoch_order(len(images), self.settings.seed, state.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(state.epoch)
        self.model.train()
        while state.batch < self.num_batches:
            self._leave_if_asked()
            chosen = order[state.batch * size : (state.batch + 1) * size]
            self.group.seed(self.device, self.settings.seed, state.step)
            state.loss_sum += self._step(images[chosen.to(images.device)].to(self.device))
            state.batch += 1
            state.step += 1
            bar.update()
            if time.monotonic() - self.saved_at > self.save_seconds:
                self.save()

    def _step(self, batch: Tensor) -> float:
        """One step of Adam; returns the sum of the losses before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = self._backward(self.group.share(batch), len(batch))
        self.group.add_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm or math.inf)
        # one synchronisation per step buys weights that are never poisoned
        total, length = torch.stack([self.group.add(loss_sum), norm.double()]).tolist()
        if not (math.isfinite(total) and math.isfinite(length)):
            what = (
                f"loss became {total / len(batch)}" if not math.isfinite(total) else f"gradient's norm became {length}"
            )
            where = f"in step {self.state.step + 1} (epoch {self.state.epoch + 1}, batch {self.state.batch + 1})"
            raise RuntimeError(
                f"the {what} {where}; "
                "the weights are as before that step: try a lower learning rate, a smaller clip_norm, or check the data"
            )
        self.optimizer.step()
        return total

    def _backward(self, share: Tensor, batch_size: int) -> Tensor:
        """Gradients of this process's part of the mean loss; returns the sum of its losses."""
        if not len(share):
            return torch.zeros((), dtype=torch.float64, device=self.device)
        losses = per_datapoint(self.loss(self.model, share), len(share))
        if not losses.requires_grad:
            raise ValueError("loss must depend on the parameters of the model, got a tensor without a gradient")
        (losses.mean() if len(share) == batch_size else losses.sum() / batch_size).backward()
        return losses.detach().sum(dtype=torch.float64)

    def _validated(self) -> float | None:
        """The validation loss, by one process for all: they must choose alike. None if it was interrupted."""
        found = None
        if self.group.rank == 0 and self.valid is not None:
            # a fixed seed: noise must not drive the selection
            found = mean_loss(
                self.model,
                self.valid_loss,
                self.valid,
                batch_size=self.settings.batch_size,
                seed=self.settings.seed,
                stop=lambda: self.ctrl_c.requested,
            )
            if found is not None and not math.isfinite(found):
                raise RuntimeError(f"the validation loss became {found} after epoch {self.state.epoch + 1}")
        return self.group.from_first(found, self.device)

    def _finish_epoch(self, bar: tqdm) -> None:
        """Validate, keep the weights if they are the best, and save."""
        state = self.state
        entry: dict[str, Any] = {"epoch": state.epoch + 1, "train": state.loss_sum / self.images.count, "valid": None}
        better = True
        if self.valid is not None:
            found = self._validated()
            if found is None:
                self._leave()
            entry["valid"] = found
            better = state.best_valid is None or found < state.best_valid
        state.history.append(entry)
        state.epoch, state.batch, state.loss_sum = entry["epoch"], 0, 0.0
        if better:
            state.best_epoch, state.best_valid = entry["epoch"], entry["valid"]
            self._keep_best()
        self.save()
        bar.set_postfix_str(_summary(entry, state.best_valid), refresh=False)

    def _keep_best(self) -> None:
        weights = self.model.state_dict()
        if self.valid is not None:  # else the last weights are the best, and the model holds them
            self.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
        if self.folder is not None:
            about = {"epoch": self.state.epoch} | (
                {} if self.valid is None else {"valid": self.state.best_valid or 0.0}
            )
            checkpoint.write_weights(self.folder, weights, about=about)

    def leave_best_weights(self) -> None:
        """Put the best weights into the model."""
        if self.best:
            self.model.load_state_dict(self.best)

    def _leave_if_asked(self) -> None:
        if self.group.any(self.ctrl_c.requested, self.device):
            self._leave()

    def _leave(self) -> NoReturn:
        self.save()
        where = f"interrupted in epoch {self.state.epoch + 1} after step {self.state.step}"
        if self.folder is None:
            raise Interrupted(where, "nothing was saved: fit had no folder")
        raise Interrupted(where, f"saved in {self.folder}: go on with resume=True and the same arguments")


def _summary(entry: Mapping[str, Any], best: float | None) -> str:
    text = f"train {entry['train']:.2f}"
    return text + (" nats" if entry["valid"] is None else f", valid {entry['valid']:.2f}, best {best:.2f} nats")
