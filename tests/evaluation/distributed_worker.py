"""Run by test_distributed.py: imports once, then forks groups of processes that evaluate together.

``python distributed_worker.py FOLDER``: every process writes what it got to FOLDER.
"""

import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

import fastvae
from fastvae.evaluation import distributed, log_likelihood_distributed
from fastvae.evaluation.peers import Peers
from fastvae.models import VAE

F64 = torch.float64


def data(count: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


def standard(z: Tensor) -> Tensor:
    return Independent(Normal(torch.zeros_like(z), 1.0), 1).log_prob(z)


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    return Independent(Normal(z.tanh(), 0.5), 1).log_prob(x) + standard(z)


def model() -> VAE:
    torch.manual_seed(1)
    return VAE((1, 4, 4), latent_size=3, hidden_sizes=(8,)).double()


PLAIN: dict[str, Any] = {"proposal": lambda x: Normal(x, torch.full_like(x, 0.7)), "log_joint": log_joint}
CASES: dict[str, dict[str, Any]] = {
    "datapoints": {"x": data(50), "num_samples": 40, "seed": 5, **PLAIN},
    "samples of few datapoints": {"x": data(3), "num_samples": 6000, "first_sample": 100, **PLAIN},
    "both": {"x": data(20), "num_samples": 700, "ids": torch.arange(20).flip(0) * 7, **PLAIN},
    "own noise": {
        "x": data(37),
        "num_samples": 600,
        "proposal": lambda x: MultivariateNormal(x, torch.eye(3, dtype=F64) * 0.5 + 0.1),
        "log_joint": log_joint,
    },
    "condition": {
        "x": data(20),
        "num_samples": 50,
        "condition": torch.arange(20),
        "proposal": lambda x, y: Normal(x, torch.full_like(x, 0.7)),
        "log_joint": lambda x, z, y: log_joint(x, z) + y / 10,
    },
    "a model": {"x": torch.ones(33, 1, 4, 4, dtype=F64), "model": model(), "num_samples": 100},
    "refined": {"x": data(5), "num_samples": 60, "refine": 3, **PLAIN},
    "one datapoint, one sample": {"x": data(1), "num_samples": 1, **PLAIN},
    "nothing": {"x": data(0), "num_samples": 10, **PLAIN},
}
LONG: dict[str, Any] = {"x": data(90), "num_samples": 64, **PLAIN}  # six parts


def evaluate_all(folder: Path, rank: int, size: int) -> None:
    for name, options in CASES.items():
        result = log_likelihood_distributed(**options)
        result.save(folder / f"{name} {rank} of {size}")
    log_likelihood_distributed(**CASES["both"]).extend(100).save(folder / f"extended {rank} of {size}")


def use_a_part_of_the_group(folder: Path, rank: int, size: int) -> None:
    group = dist.new_group([0, 2])
    if rank == 1:
        said = error_of(lambda: log_likelihood_distributed(**CASES["both"], group=group))
        (folder / "no member").write_text(said)
    else:
        log_likelihood_distributed(**CASES["both"], group=group).save(folder / f"subgroup {rank}")


def disagree(folder: Path, rank: int, size: int) -> None:
    for name, options in {
        "samples": {"num_samples": 700 + rank},
        "data": {"x": data(20) + rank},
        "seeds": {"seed": rank},
    }.items():
        said = error_of(lambda options=options: log_likelihood_distributed(**(CASES["both"] | options)))
        (folder / f"{name} {rank}").write_text(said)
    checkpoint = folder / "no such folder" / "states"
    (folder / f"folder {rank}").write_text(error_of(lambda: log_likelihood_distributed(**LONG, checkpoint=checkpoint)))


def fail_alone(folder: Path, rank: int, size: int) -> None:
    def failing(x: Tensor, z: Tensor) -> Tensor:
        if rank == 1:
            raise KeyError("from the model")
        return log_joint(x, z)

    said = error_of(lambda: log_likelihood_distributed(**(LONG | {"log_joint": failing})))
    (folder / f"failed {rank}").write_text(said)


def be_killed(folder: Path, rank: int, size: int) -> None:
    done = []

    def killed(*args: Any, **options: Any) -> Any:
        if rank == 1 and done:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(1)
        return fastvae.log_likelihood(*args, **options)

    distributed.log_likelihood = killed
    said = error_of(lambda: log_likelihood_distributed(**LONG, checkpoint=folder / "states"))
    (folder / f"killed {rank}").write_text(said)


def go_on(folder: Path, rank: int, size: int) -> None:
    seen = []

    def spy(x: Tensor, z: Tensor) -> Tensor:
        seen.append(tuple(z.shape[:2]))
        return log_joint(x, z)

    result = log_likelihood_distributed(**(LONG | {"log_joint": spy}), checkpoint=folder / "states")
    result.save(folder / f"resumed {rank} of {size}")
    parts = sum(points == 16 or points == 10 for _, points in seen)  # the probes see one or two datapoints
    Peers().gather(torch.tensor(parts))
    (folder / f"parts {rank} of {size}").write_text(str(parts))


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (KeyError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def together(folder: Path, size: int, *steps: Callable[[Path, int, int], None]) -> list[int]:
    """Exit codes of ``size`` processes in one group that take the steps."""
    rendezvous = folder / f"{steps[0].__name__}-{size}"
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            code = 1
            try:
                dist.init_process_group(
                    "gloo", f"file://{rendezvous}", timedelta(seconds=60), rank=rank, world_size=size
                )
                for step in steps:
                    step(folder, rank, size)
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fastvae.log_likelihood(**LONG)  # what loads on first use does so once, before the forks
    assert together(folder, 2, evaluate_all) == [0, 0]
    assert together(folder, 3, evaluate_all, use_a_part_of_the_group, disagree) == [0, 0, 0]
    assert together(folder, 2, fail_alone) == [0, 0]
    assert together(folder, 3, be_killed) == [0, -signal.SIGKILL, 0]
    assert together(folder, 2, go_on) == [0, 0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
