"""``log_likelihood`` by several processes, and in parts that survive the death of one."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .arguments import check_distinct, check_numbers, checked_ids, checked_modules, modules_of
from .log_likelihood import log_likelihood
from .log_weights import LogWeights
from .origin import Origin
from .parts import Part, make_parts, share
from .peers import Peers
from .refine import NUM_SAMPLES
from .result import LogLikelihood
from .resume import fingerprint

__all__ = ["log_likelihood_distributed"]


def log_likelihood_distributed(
    x: Tensor,
    model: Any = None,
    *,
    num_samples: int,
    first_sample: int = 0,
    group: Any = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> LogLikelihood:
    """:func:`fastvae.log_likelihood`, its work shared by the processes of a ``torch.distributed`` group.

    Every process of the group calls with the same arguments and gets the whole result. The work is cut into about 64
    parts: groups of datapoints, and where these are few, of their samples, too. Each process evaluates a run of
    neighbouring parts; they talk before and after. The noise has its address and the parts do not depend on the number
    of processes, so the figures do not either: they are those of one process, to the rounding of the sums over parts.

    After the work one ``all_gather`` joins the states: each process sends those of its run of datapoints, 4 KiB each,
    padded to the longest run. All states are needed to the last of their 256 largest log-weights, and for shared
    datapoints the running sums merge exactly; an all-reduce could not give the former.

    An error in one process is raised there at once; the others see that it is gone when they meet, if the launcher
    (``torchrun`` does) has not stopped them before.

    Args:
        x: (N, ...) all data, in every process, each on its own device.
        model: as in :func:`fastvae.log_likelihood`.
        num_samples: M, in all.
        first_sample: the number of the first one.
        group: the processes; by default all of them. Without an initialised ``torch.distributed`` this process alone.
        checkpoint: a folder, made if it is not there, that keeps a file for every part. The same call, by any number of
            processes, goes on from there: whole parts are read, begun ones continued. Files of another evaluation under
            the names of its parts are an error; nothing removes the folder.
        progress: show a progress bar of the share of process 0; by default only on a terminal.
        options: ``proposal``, ``log_joint``, ``condition``, ``seed``, ``ids``, ``max_bytes``, ``refine``, ``on_bad``,
            ``modules`` as in :func:`fastvae.log_likelihood`.

    Returns:
        :class:`fastvae.evaluation.LogLikelihood` of all datapoints, on the device of ``x``, in every process. Its
        ``extend`` has to be called by all of them.

    Raises:
        TypeError, ValueError: as :func:`fastvae.log_likelihood`; if the processes do not agree in data, parameters or
            numbers; if this process is not in the group.
        RuntimeError: if another process has died, failed, or not come within the time limit of the group.

    Example:
        >>> from fastvae.models import VAE
        >>> model, x = VAE((1, 8, 8), latent_size=3, hidden_sizes=(16,)), torch.zeros(5, 1, 8, 8)
        >>> result = log_likelihood_distributed(x, model, num_samples=100)  # in every process of torchrun
        >>> result.log_prob.shape
        torch.Size([5])
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.ndim < 1:
        raise ValueError("x must have shape (N, ...), got a scalar; add a batch dimension with x[None]")
    seed = options.setdefault("seed", 0)
    refine: int = options.get("refine", 0)
    check_numbers(num_samples, seed, first_sample, options.get("max_bytes"), refine, options.get("on_bad", "raise"))
    ids, condition = checked_ids(options.pop("ids", None), x), options.pop("condition", None)
    check_distinct(ids)
    samples = range(first_sample, first_sample + num_samples)
    peers = Peers(group)
    same: dict[str, Any] = {"num_samples": num_samples, "first_sample": first_sample, "seed": seed, "refine": refine}
    if peers.size > 1:
        modules = modules_of(
            model, options.get("proposal"), options.get("log_joint"), *checked_modules(options.get("modules", ()))
        )
        same |= {"x": fingerprint([x]), "ids": fingerprint([ids]), "the parameters": fingerprint(modules)}
        same |= {"the condition": "none" if condition is None else fingerprint([condition])}
    shares = _shares(peers, make_parts(x.shape[0], samples, whole_samples=refine > 0), checkpoint, same)
    runs = [range(parts[0].points.start, parts[-1].points.stop) if parts else range(0) for parts in shares]
    ours, run = shares[peers.rank], runs[peers.rank]
    weights = LogWeights(len(run), device=x.device)
    total = sum(part.rows + len(part.points) * refine * NUM_SAMPLES for part in ours)
    with _bar(peers, total, progress) as bar:
        for part in ours:
            points = slice(part.points.start, part.points.stop)
            result = log_likelihood(
                x[points],
                model,
                num_samples=len(part.samples),
                first_sample=part.samples.start,
                ids=ids[points],
                condition=None if condition is None else condition[points],
                checkpoint=None if checkpoint is None else Path(checkpoint) / part.name,
                progress=bar,
                **options,
            )
            weights.absorb(result.weights, slice(points.start - run.start, points.stop - run.start))
    weights = _joined(peers, weights, runs, x.shape[0])
    options |= {"ids": ids, "condition": condition, "group": group, "progress": progress}
    more = partial(_more, x, model, **options)
    return LogLikelihood(
        weights, x.shape[1:].numel(), Origin(seed, ids.cpu().clone(), ((samples.start, samples.stop),)), more
    )


def _shares(
    peers: Peers, parts: Sequence[Part], checkpoint: str | Path | None, same: dict[str, Any]
) -> list[list[Part]]:
    """The parts of each process, in order; they agree on it, and on ``same``."""
    finished, problem = torch.zeros(len(parts), dtype=torch.bool), None
    if checkpoint is not None:
        peers.advice = f"; {checkpoint} keeps what was done: any number of processes go on from it with the same call"
        if peers.rank == 0:
            try:
                finished = _finished(Path(checkpoint), parts)
            except ValueError as error:
                problem = error
    peers.agree(same, problem)
    if not parts:
        return [[] for _ in range(peers.size)]
    if checkpoint is not None:
        Path(checkpoint).mkdir(parents=True, exist_ok=True)  # the others may be on other machines
    finished = peers.gather(finished)[0]
    shares = share([part for part, done in zip(parts, finished.tolist(), strict=True) if not done], peers.size)
    # process 0 reads what is there: it may be the only one that sees it
    shares[0] += [part for part, done in zip(parts, finished.tolist(), strict=True) if done]
    shares[0].sort(key=lambda part: (part.points.start, part.samples.start))
    return shares


def _finished(folder: Path, parts: Sequence[Part]) -> Tensor:
    """(parts,) bool: which of them have a whole result in the folder, which is made if there is none."""
    if not folder.parent.is_dir():
        raise ValueError(f"checkpoint must name a folder, there is no {folder.parent} for {folder}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"checkpoint must name a folder, {folder} is a file")
    return torch.tensor([_is_finished(folder / part.name) for part in parts], dtype=torch.bool)


def _is_finished(path: Path) -> bool:
    try:
        LogLikelihood.load(path)
    except ValueError:  # missing, begun, or damaged: whoever goes on with it will say so
        return False
    return True


def _joined(peers: Peers, weights: LogWeights, runs: Sequence[range], num_points: int) -> LogWeights:
    """The states of all datapoints, from those of each process for its run."""
    if peers.size == 1 or not num_points:
        return weights
    longest = max(len(run) for run in runs)
    state = torch.cat([weights.blocks.flatten(0, 1), weights.largest])  # (8 B + T, run)
    padded = state.new_zeros(state.shape[0], longest)
    padded[:, : state.shape[1]] = state
    whole = LogWeights(num_points, device=state.device)
    for rank, (run, part) in enumerate(zip(runs, peers.gather(padded), strict=True)):
        rows = weights.blocks.shape[:2]
        blocks, largest = part[:, : len(run)].split([rows.numel(), weights.largest.shape[0]])
        tensors = {"blocks": blocks.reshape(*rows, len(run)), "largest": largest}
        whole.absorb(LogWeights.from_tensors(tensors, f"process {rank}", state.device), slice(run.start, run.stop))
    return whole


def _bar(peers: Peers, total: int, progress: bool | None) -> tqdm:
    hidden = True if peers.rank else None if progress is None else not progress
    of = f", {peers}" if peers.size > 1 else ""
    return tqdm(total=total, desc=f"log p(x){of}", unit="sample", unit_scale=True, disable=hidden)


def _more(x: Tensor, model: Any, first_sample: int, num_samples: int, **options: Any) -> LogLikelihood:
    """Further samples of the same evaluation, for ``LogLikelihood.extend``."""
    return log_likelihood_distributed(x, model, first_sample=first_sample, num_samples=num_samples, **options)
