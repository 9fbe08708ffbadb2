"""The file of an evaluation that may be interrupted: written now and then, on Ctrl-C and on errors, and read again."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import stored
from .log_weights import LogWeights
from .plan import Plan
from .result import LogLikelihood, read_result, write_result

__all__ = ["Checkpoint", "fingerprint"]

_SECONDS = 30.0  # between two writes; the file of 10,000 datapoints has 41 MB


class Checkpoint:
    """How far an evaluation has come, and the file that remembers it.

    Args:
        path: of the file; None keeps nothing.
        result: the result, whose ``weights`` fill up.
        arguments: what must be the same for the evaluation to go on, as JSON can hold it.
        values: tensors and modules that must be the same, by name; their fingerprints are kept.

    Attributes:
        position: datapoints before the first number have all their samples; those of the group that starts there have
            the samples before the second number.
        plan: the chunks of the evaluation, once they are known: other chunks would round differently.

    Raises:
        TypeError: if ``path`` is none.
        ValueError: if there is a file that cannot be read, or is of another evaluation, or no place for one.
    """

    def __init__(
        self,
        path: str | Path | None,
        result: LogLikelihood,
        arguments: Mapping[str, Any],
        values: Mapping[str, Sequence[Tensor | nn.Module]],
    ) -> None:
        self.path, self.result = path, result
        self.position: tuple[int, int] = (0, result.origin.samples[0][0])
        self.plan: Plan | None = None
        self._whole, self._written = True, time.monotonic()
        if path is not None:
            if not isinstance(path, str | Path):
                raise TypeError(f"checkpoint must be a path, got {path!r}")
            if Path(path).is_dir():
                raise ValueError(f"checkpoint must name a file, {path} is a folder")
            prints = {f"fingerprint of {name}": fingerprint(parts) for name, parts in values.items()}
            self.arguments: dict[str, Any] = {**arguments, **prints}
            if Path(path).exists():
                self._read(path)
            else:
                stored.check_free(path, overwrite=False)

    @property
    def finished(self) -> bool:
        """Whether every datapoint has all its samples."""
        return self.position[0] >= self.result.weights.num_points

    @property
    def samples_done(self) -> int:
        """Of all datapoints together."""
        return int(self.result.weights.num_samples.sum())

    def update(self, log_w: Tensor, points: slice, first_sample: int) -> None:
        """Samples enter the weights, and the position moves on behind them: both, or neither when interrupted."""
        weights, position = self.result.weights, self.position
        before = (
            None if self.path is None else (weights.blocks[..., points].clone(), weights.largest[:, points].clone())
        )
        self._whole = False
        try:
            weights.update(log_w, points, first_sample=first_sample)
            self.position = (points.start, first_sample + log_w.shape[0])
        except BaseException:
            if before is not None:
                weights.blocks[..., points], weights.largest[:, points] = before
                self.position, self._whole = position, True
            raise
        self._whole = True
        if time.monotonic() - self._written > _SECONDS:
            self.write()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the evaluation inside, the file has what was done."""
        try:
            yield
        except BaseException as error:
            if self._whole and self.samples_done:
                self.write()
            if self.path is not None and Path(self.path).exists():
                error.add_note(f"{self.path} keeps what was done; the same call goes on from there")
            raise
        self.write()

    def write(self) -> None:
        """Replace the file, if there is to be one."""
        if self.path is None:
            return
        header: dict[str, Any] = {"arguments": self.arguments}
        if not self.finished:
            done, sample = self.position
            header["unfinished"] = {"points_done": done, "next_sample": sample, "plan": self.plan and asdict(self.plan)}
        write_result(self.path, self.result, header)
        self._written = time.monotonic()

    def _read(self, path: str | Path) -> None:
        weights: LogWeights = self.result.weights
        found, header = read_result(path, weights.blocks.device)
        stored_arguments = header.get("arguments")
        if not isinstance(stored_arguments, dict):
            raise ValueError(f"{path} is a result without the arguments of its evaluation: choose another checkpoint")
        for name in {**self.arguments, **stored_arguments}:  # a condition may be on one side alone
            ours, theirs = self.arguments.get(name), stored_arguments.get(name)
            if theirs != ours:
                raise ValueError(
                    f"{path} is the checkpoint of another evaluation: its {name} is {theirs}, not {ours}; choose "
                    "another file, or remove this one"
                )
        if found.weights.blocks.shape != weights.blocks.shape or found.weights.largest.shape != weights.largest.shape:
            raise ValueError(f"{path} is damaged: its state is not of {weights.num_points} datapoints")
        self.position = (weights.num_points, self.position[1])
        try:
            if unfinished := header.get("unfinished"):
                self.position = (int(unfinished["points_done"]), int(unfinished["next_sample"]))
                self.plan = Plan(**unfinished["plan"])
                if not 0 <= self.position[0] < weights.num_points:
                    raise ValueError(f"no datapoint {self.position[0]}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: its header says {header['unfinished']}") from error
        weights.blocks.copy_(found.weights.blocks)
        weights.largest.copy_(found.weights.largest)


def fingerprint(parts: Sequence[Tensor | nn.Module]) -> str:
    """Of values, shapes and dtypes of tensors, and of all parameters and buffers of modules."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        named = [("", part)] if isinstance(part, Tensor) else [*part.named_parameters(), *part.named_buffers()]
        for name, tensor in named:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            hashed.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
            hashed.update(flat.view(torch.uint8).numpy().data)
    return hashed.hexdigest()
