"""Commands started by ``torchrun``: one group of processes, one of which speaks."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from fastvae.evaluation.peers import Peers

from .problem import device_named

__all__ = ["device_of", "first_process_first", "together"]

T = TypeVar("T")


@contextmanager
def together() -> Iterator[Peers]:
    """The processes that ``torchrun`` started, joined in a group; this one alone if it did not.

    Inside, SIGTERM raises ``KeyboardInterrupt`` with the advice of the yielded object, too: torchrun sends it to all
    when one process has died.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():  # by a command that calls this one
        yield Peers()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    peers = Peers()

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(
            f"{peers} was stopped by SIGTERM, as torchrun stops all when one has died or failed (it names that one)"
            f"{peers.advice}"
        )

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield peers
    finally:
        signal.signal(signal.SIGTERM, previous)
    dist.destroy_process_group()  # after an error the others may be gone: nothing is waited for


def first_process_first(peers: Peers, prepare: Callable[[], T]) -> T:
    """``prepare()``, in the other processes only after it succeeded in process 0: an error is told once.

    Raises:
        OtherProcessFailed: in the others, if process 0 had an error.
    """
    if peers.rank:
        peers.agree({})
        return prepare()
    try:
        prepared = prepare()
    except Exception as error:
        peers.agree({}, error)  # raises it
        raise
    peers.agree({})
    return prepared


def device_of(peers: Peers, name: str) -> torch.device:
    """The device of this process: each one on a machine has a CUDA device of its own.

    Raises:
        ValueError: if there are fewer devices than processes, or one was named for all.
    """
    device = device_named(name)
    if device.type != "cuda" or peers.size == 1:
        return device
    here, number = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if device.index is not None:
        raise ValueError(f"--device {name} cannot serve {peers.size} processes: leave the number out")
    if here > torch.cuda.device_count():
        raise ValueError(
            f"{here} processes on this machine need as many CUDA devices, it has {torch.cuda.device_count()}: start "
            "fewer (--nproc-per-node), or choose --device cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
