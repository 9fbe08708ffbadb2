"""Checkpoints: read back what was written, refuse what does not fit, survive a kill between any two instructions."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastvae import checkpoint


class Net(nn.Module):
    """A module with a buffer, tied weights and tuples among its arguments."""

    def __init__(self, sizes: tuple[int, ...] = (3, 4), bias: bool = True) -> None:
        super().__init__()
        self.sizes, self.bias = tuple(sizes), bias
        self.first = nn.Linear(*self.sizes, bias=bias)
        self.second = nn.Linear(*self.sizes, bias=bias)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))

    def config(self) -> dict[str, Any]:
        return {"sizes": self.sizes, "bias": self.bias}


class Other(Net):
    pass


def test_a_saved_model_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    model = Net((5, 2))
    checkpoint.save(tmp_path / "a", model, info={"data": "digits"})
    again = checkpoint.load_model(tmp_path / "a", {"Net": Net})
    assert isinstance(again, Net)
    assert not again.training
    assert again.first.weight is again.second.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert checkpoint.read_config(tmp_path / "a")["info"] == {"data": "digits"}


def test_precision_of_the_weights_is_kept(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a", Net().double())
    assert checkpoint.load_model(tmp_path / "a", {"Net": Net}).first.weight.dtype == torch.float64


def test_state_of_a_run_is_read_back_exactly(tmp_path: Path) -> None:
    model = Net()
    checkpoint.create(tmp_path / "a", model)
    tensors = {"x": torch.randn(3), "random": torch.get_rng_state(), "step": torch.tensor(7.0)}
    checkpoint.write_training(tmp_path / "a", tensors, {"loss": 0.1 + 0.2, "none": None})
    found, state = checkpoint.read_training(tmp_path / "a", model)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert state == {"loss": 0.1 + 0.2, "none": None}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("mine", "file"):
        with pytest.raises(ValueError, match=f"{name} exists already; nothing was overwritten"):
            checkpoint.save(tmp_path / name, Net())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    checkpoint.save(tmp_path / "empty", Net())


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a", Net())
    checkpoint.write_training(tmp_path / "a", {"x": torch.ones(2)}, {})
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
        "training.safetensors",
    ]
    assert all(b"\x80\x04" not in path.read_bytes() for path in (tmp_path / "a").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "a", Net())
    checkpoint.write_training(tmp_path / "a", {f"model.{k}": v for k, v in Net().state_dict().items()}, {"step": 1})
    return tmp_path / "a"


def load(folder: Path, **options: Any) -> nn.Module:
    return checkpoint.load_model(folder, {"Net": Net, "Linear": nn.Linear}, **options)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a checkpoint: it is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no config.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "cannot be read"),
        ('{"model": "Net"', "cannot be read"),
        ("[]", "is not the description of a checkpoint: expected entries model, config"),
        ('{"model": "Net"}', "is not the description"),
        ("\udcff", "cannot be read"),
    ],
)
def test_damaged_config_is_refused(folder: Path, content: str, says: str) -> None:
    (folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=says) as error:
        load(folder)
    assert "config.json" in str(error.value)


def change(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def test_newer_formats_are_refused(folder: Path) -> None:
    change(folder, format=99, fastvae="7.0.0")
    with pytest.raises(ValueError, match=r"format 99, written by fastvae 7\.0\.0; this is .* update fastvae"):
        load(folder)


def test_unknown_classes_and_arguments_that_do_not_fit_are_refused(folder: Path) -> None:
    change(folder, model="Transformer")
    with pytest.raises(ValueError, match="holds a model of class Transformer, expected one of Net, Linear"):
        load(folder)
    change(folder, model="Net", config={"size": 3})
    with pytest.raises(ValueError, match=r"config\.json does not fit Net: .*'size'"):
        load(folder)
    change(folder, model="Net", config={"sizes": [3, 9]})
    with pytest.raises(ValueError, match=r"another model: first\.weight has shape \(4, 3\) .*expected \(9, 3\)"):
        load(folder)
    change(folder, model="Net", config={"bias": False})
    with pytest.raises(ValueError, match=r"another model: it has unknown first\.bias, second\.bias"):
        load(folder)
    change(folder, model="Linear", config={"in_features": 3, "out_features": 4})
    with pytest.raises(ValueError, match=r"another model: it lacks bias, weight"):
        load(folder)


@pytest.mark.parametrize(("name", "weights"), [("model.safetensors", "best"), ("training.safetensors", "last")])
def test_missing_and_truncated_weights_are_refused(folder: Path, name: str, weights: str) -> None:
    assert isinstance(load(folder, weights=weights), Net)
    whole = (folder / name).read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{name} is truncated or damaged"):
            load(folder, weights=weights)
    (folder / "training.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=f"is incomplete: {name} is missing"):
        load(folder, weights=weights)


def test_weights_that_nobody_validated_yet_are_not_passed_off_as_the_best(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no validated weights yet: resume its training"):
        load(folder)
    with pytest.raises(ValueError, match="weights must be 'best' or 'last', got 'first'"):
        load(folder, weights="first")


def test_the_run_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds another model: its model is Net, expected Other"):
        checkpoint.read_training(folder, Other())
    with pytest.raises(ValueError, match=r"its config is .*\[3, 4\].* expected .*\[2, 2\]"):
        checkpoint.read_training(folder, Net((2, 2)))
    (folder / "training.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"training\.safetensors holds no state of a run"):
        checkpoint.read_training(folder, Net())


def test_a_model_must_tell_its_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"must have a method config\(\).* got Linear"):
        checkpoint.save(tmp_path / "a", nn.Linear(1, 1))
    with pytest.raises(TypeError, match="info must hold what JSON can"):
        checkpoint.save(tmp_path / "a", Net(), info={"data": torch.ones(1)})
    assert not (tmp_path / "a").exists()


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_weights(folder, Net().state_dict())
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_killed_writer_leaves_a_complete_checkpoint(folder: Path) -> None:
    """A process replaces the state without end and is killed at two moments; what it leaves is whole."""
    code = """
import sys, torch
from fastvae import checkpoint
step = 0
while True:
    step += 1
    checkpoint.write_training(sys.argv[1], {"x": torch.full((100_000,), float(step))}, {"step": step})
    print(step, flush=True)
"""
    for moment in (3, 20):
        writer = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(moment):
            announced = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        tensors, state = checkpoint.read_training(folder, Net())
        assert state["step"] >= announced
        assert torch.equal(tensors["x"], torch.full((100_000,), float(state["step"])))
