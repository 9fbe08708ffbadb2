"""``torchrun -m fastvae evaluate``: the report of one process, written once; the same command goes on after a kill."""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvae.__main__ import main
from fastvae.commands import evaluate, processes
from fastvae.evaluation import LogLikelihood, distributed
from fastvae.evaluation.peers import OtherProcessFailed, Peers

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "vae": "--latent-size 3 --hidden 8 --likelihood gaussian",
    "pixelcnn": "--channels 4 --num-blocks 1 --first-kernel-size 3",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    images = {f"x_{part}": random.integers(0, 5, (40, 4, 5), dtype=np.uint8) for part in ("train", "test")}
    np.savez(folder / "data.npz", **images, num_levels=5)
    for model, options in SMALL.items():
        argv = ["train", "--model", model, "--data", str(folder / "data.npz"), "--out", str(folder / model)]
        assert main([*argv, "--epochs", "1", *options.split()]) == 0
    return folder


def command(*argv: str) -> list[str]:
    return ["evaluate", *argv, "--num-samples", "500", "--device", "cpu"]


def torchrun(size: int, script: list[str], argv: list[str]) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    return subprocess.run(
        [*launcher, *script, *argv], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_one_killed_is_named_what_was_done_is_kept_and_the_same_command_goes_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = command(str(runs / "vae"), "--out", str(tmp_path / "whole.json"))
    assert main(whole) == 0
    before = sorted(path.name for path in (runs / "vae").iterdir())
    argv = command(str(runs / "vae"), "--out", str(tmp_path / "killed.json"))
    done = torchrun(2, [str(ROOT / "tests/commands/killed_worker.py")], argv)
    assert done.returncode != 0
    assert done.stdout == ""
    assert not (tmp_path / "killed.json").exists()
    assert "SIGKILL" in done.stderr  # of torchrun's report
    (states,) = (runs / "vae").glob("evaluation-*")
    said = "fastvae evaluate: process 0 of 2 was stopped by SIGTERM, as torchrun stops all when one has died or failed"
    assert f"{said} (it names that one); {states} keeps what was done: the same command goes on" in done.stderr
    assert len(list(states.iterdir())) == 2  # a part of each

    counted = []
    likelihood = distributed.log_likelihood

    def counting(x: torch.Tensor, model: Any, **options: Any) -> Any:
        counted.append(options["checkpoint"].exists())
        return likelihood(x, model, **options)

    monkeypatch.setattr(distributed, "log_likelihood", counting)
    assert main(argv) == 0
    assert counted.count(True) == 2
    assert len(counted) == 6  # 40 images in groups of 16, each of 256 and 244 samples
    figures = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed")]
    assert figures[0] == figures[1]
    assert sorted(path.name for path in (runs / "vae").iterdir()) == before, "the states are removed at the end"


def test_two_processes_print_one_report_with_the_figures_of_one(runs: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(command(str(runs / "vae"), "--out", str(tmp_path / "one.json"))) == 0
    table = capsys.readouterr().out
    argv = command(str(runs / "vae"), "--out", str(tmp_path / "two.json"), "--resume", str(tmp_path / "states"))
    done = torchrun(2, ["-m", "fastvae"], argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout == table
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == (pytest.approx(value, rel=1e-10) if isinstance(value, float) else value), name
    assert "log p(x), process 0 of 2: 100%" in done.stderr
    assert "process 1 of 2" not in done.stderr
    assert len(list((tmp_path / "states").iterdir())) == 7, "a folder of one's own stays"
    whole = LogLikelihood.load(tmp_path / "states" / "result.safetensors")
    assert whole.mean().value == one["log p(x)"]


class Faked(Peers):
    """Process ``rank`` of two, of which the other sends what it is told to."""

    def __init__(self, rank: int, other: Any) -> None:
        super().__init__()
        self.rank, self.size, self.other = rank, 2, other

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        theirs = self.other(tensor)
        return [tensor, theirs] if self.rank == 0 else [theirs, tensor]


def failed(error: str) -> Any:
    text = json.dumps([error, {}]).encode().ljust(2048)
    return lambda tensor: torch.frombuffer(bytearray(text), dtype=torch.uint8)


def test_an_error_is_told_by_the_process_that_has_it_and_the_other_is_silent(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    argv = command(str(runs / "vae"), "--limit", "0")
    for rank, code, says in ((0, 2, "--limit must be at least 1, got 0"), (1, 0, "")):
        peers = Faked(rank, failed("ValueError: --limit" if rank else ""))
        monkeypatch.setattr(processes, "together", lambda peers=peers: contextlib.nullcontext(peers))
        assert main(argv) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert says in captured.err
        assert bool(captured.err) == bool(says)
    with pytest.raises(OtherProcessFailed, match="process 0 of 2 failed: ValueError: --limit"):
        processes.first_process_first(peers, lambda: pytest.fail("before process 0 was asked"))


def test_exact_log_likelihoods_are_shared_too(runs: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(command(str(runs / "pixelcnn"), "--out", str(tmp_path / "one.json"))) == 0
    want = json.loads((tmp_path / "one.json").read_text())
    args = evaluate_arguments(command(str(runs / "pixelcnn")))
    job = evaluate._prepared(args, Peers())
    halves = []
    for rank in range(2):
        evaluate._exact(job, args, Faked(rank, lambda tensor: (halves.append(tensor.clone()), tensor)[1]))
    assert [int((half != 0).sum()) for half in halves] == [20, 20]
    figures = evaluate._exact(job, args, Faked(0, lambda tensor: halves[1]))
    assert figures["log p(x)"] == pytest.approx(want["log p(x)"], rel=1e-10)
    assert figures["data error"] == pytest.approx(want["data error"], rel=1e-10)
    assert main(command(str(runs / "pixelcnn"), "--resume", str(tmp_path / "s"))) == 2
    assert "the log-likelihood of a PixelCNN is exact" in capsys.readouterr().err


def evaluate_arguments(argv: list[str]) -> Any:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args(argv[1:])


def test_ctrl_c_says_where_the_states_are(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    likelihood, calls = distributed.log_likelihood, []

    def interrupted(*args: Any, **options: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return likelihood(*args, **options)

    monkeypatch.setattr(distributed, "log_likelihood", interrupted)
    assert main(command(str(runs / "vae"), "--seed", "3")) == 130
    (states,) = (runs / "vae").glob("evaluation-*")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"fastvae evaluate: interrupted; {states} keeps what was done: the same command goes on from there"
    monkeypatch.undo()
    assert main(command(str(runs / "vae"), "--seed", "3")) == 0
    assert not states.exists()


@pytest.mark.parametrize(
    ("name", "devices", "says"),
    [
        ("cuda", 1, "2 processes on this machine need as many CUDA devices, it has 1: start fewer"),
        ("cuda:0", 2, "--device cuda:0 cannot serve 2 processes: leave the number out"),
    ],
)
def test_processes_do_not_share_a_cuda_device(
    name: str, devices: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=re.escape(says)):
        processes.device_of(Faked(0, None), name)
    assert processes.device_of(Faked(0, None), "cpu") == torch.device("cpu")
    assert processes.device_of(Peers(), name) == torch.device(name)


def test_a_model_folder_that_cannot_be_written_is_no_obstacle(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    seen = []
    likelihood = distributed.log_likelihood
    monkeypatch.setattr(
        distributed, "log_likelihood", lambda *a, **o: (seen.append(o["checkpoint"]), likelihood(*a, **o))[1]
    )
    assert main(command(str(runs / "vae"))) == 0
    assert set(seen) == {None}
