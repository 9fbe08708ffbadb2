"""The processes that evaluate together: what they tell each other, and the error if one of them is gone."""

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["LostProcess", "OtherProcessFailed", "Peers"]

_TEXT = 2048  # bytes of a message


class LostProcess(RuntimeError):
    """Another process has died, or does not answer."""


class OtherProcessFailed(RuntimeError):
    """Another process has raised an error, which it reports itself."""


class Peers:
    """This process among those of a group of ``torch.distributed``; alone where no group was initialised.

    Args:
        group: the default group if None.

    Attributes:
        rank, size: of this process, and of the group.
        advice: what to do after a process was lost, for the error.

    Raises:
        ValueError: if a group is given but torch.distributed is not initialised, or this process is not in it.

    Example:
        >>> Peers().gather(torch.ones(2))
        [tensor([1., 1.])]
    """

    def __init__(self, group: Any = None) -> None:
        self.group, self.rank, self.size, self.advice = group, 0, 1, ""
        self._able: list[str] = []  # the devices that the backend takes; none without a group
        if not (dist.is_available() and dist.is_initialized()):
            if group is not None:
                raise ValueError("group is given, but torch.distributed is not initialised: call init_process_group")
            return
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not a member of group: only its members may call")
        config = dist.get_backend_config(group)  # such as "cpu:gloo,cuda:nccl"
        self._able = [pair.partition(":")[0] for pair in config.split(",")]

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}"

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes in the order of their ranks; of one shape and type.

        They travel on their device if the group's backend can (gloo on the CPU, NCCL on CUDA), else on one it can.

        Raises:
            LostProcess: if a process has died, or has not come in the time limit of the group.
        """
        if not self._able:
            return [tensor]
        carrier = tensor.device if tensor.device.type in self._able else torch.device(self._able[0])
        sent = tensor.detach().to(carrier).contiguous()
        received = [torch.empty_like(sent) for _ in range(self.size)]
        try:
            dist.all_gather(received, sent, group=self.group)
        except RuntimeError as error:
            sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
            raise LostProcess(
                f"{self} has lost another one, which died or did not answer within the time limit of the group "
                f"({sentence}){self.advice}"
            ) from error
        return [part.to(tensor.device) for part in received]

    def agree(self, what: dict[str, Any], error: Exception | None = None) -> None:
        """All processes meet and compare.

        Args:
            what: must be the same everywhere, as JSON can hold it.
            error: what went wrong here, if something did: it is raised here, and named in the others.

        Raises:
            ValueError: if ``what`` differs.
            OtherProcessFailed: if another process came with an error.
            LostProcess: if one did not come.
        """
        failure = "" if error is None else f"{type(error).__name__}: {error}"
        told = [json.loads(text) for text in self._gather_text(json.dumps([failure[: _TEXT // 8], what]))]
        if error is not None:
            raise error
        for rank, (failed, _) in enumerate(told):
            if failed:
                raise OtherProcessFailed(f"process {rank} of {self.size} failed: {failed}")
        for rank, (_, theirs) in enumerate(told):
            for name, ours in told[0][1].items():
                if theirs[name] != ours:
                    raise ValueError(
                        f"all processes must evaluate the same, but {name} is {ours} in process 0 and "
                        f"{theirs[name]} in process {rank}"
                    )

    def _gather_text(self, text: str) -> list[str]:
        sent = text.encode()
        if len(sent) > _TEXT:
            raise ValueError(f"text must have at most {_TEXT} bytes, got {len(sent)}")
        padded = torch.frombuffer(bytearray(sent.ljust(_TEXT)), dtype=torch.uint8)
        return [bytes(part.numpy()).decode() for part in self.gather(padded)]
