"""Several processes give the figures of one; a process that dies is an error, and what was done is not lost."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae.evaluation import LogLikelihood, log_likelihood_distributed
from fastvae.evaluation.peers import Peers

ROOT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).parent / "distributed_worker.py"


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What groups of two and three processes wrote."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, str(WORKER), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def assert_same(ours: LogLikelihood, want: LogLikelihood) -> None:
    for name in ("log_prob", "elbo", "std_error", "ess", "khat", "bias"):
        got: Tensor = getattr(ours, name)
        torch.testing.assert_close(got, getattr(want, name), rtol=1e-10, atol=1e-10, equal_nan=True, msg=name)
    torch.testing.assert_close(ours.curve.values, want.curve.values, rtol=1e-10, atol=1e-10, equal_nan=True)
    assert ours.origin.samples == want.origin.samples
    assert torch.equal(ours.origin.ids, want.origin.ids)
    assert ours.num_dims == want.num_dims


def alone(options: dict[str, Any]) -> LogLikelihood:
    return fastvae.log_likelihood(**options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
class TestProcesses:
    @pytest.mark.parametrize("size", [2, 3])
    @pytest.mark.parametrize("name", worker.CASES)
    def test_every_process_has_the_result_of_one(self, folder: Path, name: str, size: int) -> None:
        want = alone(worker.CASES[name])
        for rank in range(size):
            assert_same(LogLikelihood.load(folder / f"{name} {rank} of {size}"), want)

    @pytest.mark.parametrize("size", [2, 3])
    def test_results_extend_in_all_processes(self, folder: Path, size: int) -> None:
        want = alone(worker.CASES["both"] | {"num_samples": 800})
        for rank in range(size):
            assert_same(LogLikelihood.load(folder / f"extended {rank} of {size}"), want)

    def test_a_group_may_be_a_part_of_the_processes(self, folder: Path) -> None:
        for rank in (0, 2):
            assert_same(LogLikelihood.load(folder / f"subgroup {rank}"), alone(worker.CASES["both"]))
        assert "this process is not a member of group" in (folder / "no member").read_text()

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("samples", "num_samples is 700 in process 0 and 701 in process 1"),
            ("data", "x is "),
            ("seeds", "seed is 0 in process 0 and 1 in process 1"),
        ],
    )
    def test_processes_that_do_not_agree_all_say_so(self, folder: Path, name: str, says: str) -> None:
        for rank in range(3):
            said = (folder / f"{name} {rank}").read_text()
            assert said.startswith("ValueError: all processes must evaluate the same, but " + says)

    def test_an_error_of_process_0_is_raised_there_and_named_in_the_others(self, folder: Path) -> None:
        assert (folder / "folder 0").read_text().startswith("ValueError: checkpoint must name a folder, there is no")
        for rank in (1, 2):
            said = (folder / f"folder {rank}").read_text()
            assert said.startswith("OtherProcessFailed: process 0 of 3 failed: ValueError: checkpoint must name a")

    def test_an_error_of_the_model_is_raised_where_it_is_and_the_other_is_told(self, folder: Path) -> None:
        assert (folder / "failed 1").read_text() == "KeyError: 'from the model'"
        assert (folder / "failed 0").read_text().startswith("LostProcess: process 0 of 2 has lost another one")

    def test_a_process_that_is_killed_is_an_error_in_the_others(self, folder: Path) -> None:
        for rank in (0, 2):
            said = (folder / f"killed {rank}").read_text()
            assert said.startswith(f"LostProcess: process {rank} of 3 has lost another one, which died or did not")
            assert said.endswith("states keeps what was done: any number of processes go on from it with the same call")

    def test_what_was_done_before_is_not_done_again(self, folder: Path) -> None:
        for rank in range(2):
            assert_same(LogLikelihood.load(folder / f"resumed {rank} of 2"), alone(worker.LONG))
        evaluated = [int((folder / f"parts {rank} of 2").read_text()) for rank in range(2)]
        assert sum(evaluated) == 1, "the one in which the process was killed, of six"
        assert len(list((folder / "states").iterdir())) == 6


def test_without_processes_it_is_log_likelihood_in_parts(tmp_path: Path) -> None:
    for options in worker.CASES.values():
        assert_same(log_likelihood_distributed(**options), alone(options))
    states = tmp_path / "states"
    first = log_likelihood_distributed(**worker.LONG, checkpoint=states)
    times = {path: path.stat().st_mtime_ns for path in states.iterdir()}
    again = log_likelihood_distributed(**worker.LONG, checkpoint=states)
    assert_same(again, first)
    assert {path: path.stat().st_mtime_ns for path in states.iterdir()} == times
    with pytest.raises(ValueError, match="is the checkpoint of another evaluation: its seed is 0, not 1"):
        log_likelihood_distributed(**worker.LONG, checkpoint=states, seed=1)
    next(iter(times)).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is truncated or damaged"):
        log_likelihood_distributed(**worker.LONG, checkpoint=states)


def test_progress_counts_every_sample(capsys: pytest.CaptureFixture[str]) -> None:
    log_likelihood_distributed(**worker.CASES["both"], progress=True)
    shown = capsys.readouterr().err
    assert "14.0k/14.0k" in shown  # 20 x 700
    assert "process" not in shown
    log_likelihood_distributed(**worker.CASES["both"], progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.tensor(1.0)}, ValueError, "got a scalar"),
        ({"num_samples": 0}, ValueError, "num_samples must be between 1"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
        ({"ids": torch.arange(3)}, ValueError, r"ids must have shape \(20,\)"),
        ({"group": "all"}, ValueError, "torch.distributed is not initialised"),
        ({"checkpoint": __file__}, ValueError, "checkpoint must name a folder, .* is a file"),
        ({"num_sampels": 5}, TypeError, "num_sampels"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        log_likelihood_distributed(**(worker.CASES["both"] | options))


def test_alone_there_is_nobody_to_disagree() -> None:
    peers = Peers()
    peers.agree({"anything": 1})
    with pytest.raises(KeyError, match="mine"):
        peers.agree({}, KeyError("mine"))
    assert str(peers) == "process 0 of 1"
