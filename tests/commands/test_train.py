"""``fastvae train``: every model and likelihood, clear refusals, and a run that Ctrl-C does not change."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvae import checkpoint, models
from fastvae.__main__ import main
from fastvae.commands.options import TRAINING
from fastvae.commands.problem import Problem, bound, build_model

SMALL = {
    "vae": "--latent-size 3 --hidden 8",
    "iwae": "--latent-size 3 --hidden 8 6 --num-samples 3",
    "pixelcnn": "--channels 4 --num-blocks 1 --first-kernel-size 3",
    "pixelvae": "--latent-size 3 --hidden 8 --channels 4 --num-blocks 1 --first-kernel-size 3",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data sets: 2, 5 and 256 levels."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, levels in (("binary", 2), ("five", 5), ("grey", 256)):
        train, test = (random.integers(0, levels, (count, 5, 4), dtype=np.uint8) for count in (30, 6))
        train[0, 0, 0] = levels - 1
        np.savez(folder / f"{name}.npz", x_train=train, x_test=test, num_levels=levels)
    return folder


def train(out: Path, *argv: object) -> int:
    return main(["train", "--out", str(out), "--epochs", "2", "--batch-size", "8", *map(str, argv)])


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize(
    ("data", "likelihood", "binarize"),
    [
        ("binary", "auto", "none"),
        ("five", "auto", "none"),
        ("grey", "gaussian", "none"),
        ("five", "auto", "sample"),
        ("grey", "bernoulli", "threshold"),
        ("five", "logistic_mixture", "none"),
    ],
)
def test_every_model_trains_with_every_likelihood(
    model: str, data: str, likelihood: str, binarize: str, tmp_path: Path, files: Path, capsys: Any
) -> None:
    options = ["--data", files / f"{data}.npz", "--likelihood", likelihood, "--binarize", binarize]
    assert train(tmp_path / "run", "--model", model, *options, *SMALL[model].split()) == 0
    assert "nats per validation image" in capsys.readouterr().out
    net = checkpoint.load_model(
        tmp_path / "run", {name: getattr(models, name) for name in ("VAE", "PixelCNN", "PixelVAE")}
    )
    info = checkpoint.read_config(tmp_path / "run")["info"]
    problem = Problem.from_options(info["options"])
    automatic = "categorical" if (data, binarize) == ("five", "none") else "bernoulli"
    assert problem.likelihood == net.family.name == (automatic if likelihood == "auto" else likelihood)
    assert info["protocol"] == problem.data.protocol
    values = bound(info["options"], net, problem.frozen("test"))
    assert values.shape == (6,)
    assert torch.isfinite(values).all()


def test_the_loss_is_the_negative_bound_that_was_asked_for(files: Path) -> None:
    from fastvae.commands.options import with_defaults
    from fastvae.objectives import elbo, iwae

    options = with_defaults({"data": str(files / "binary.npz"), "model": "iwae", "num_samples": 4})
    problem = Problem.from_options(options)
    model, x = build_model(options, problem), problem.frozen("valid")
    for name, want in (("iwae", iwae(model, x, num_samples=4)), ("vae", elbo(model, x, num_samples=4))):
        torch.manual_seed(1)
        got = bound(options | {"model": name}, model, x)
        torch.manual_seed(1)
        again = iwae(model, x, num_samples=4) if name == "iwae" else elbo(model, x, num_samples=4)
        assert torch.equal(got, again)
        assert want.shape == got.shape


@pytest.mark.parametrize("estimator", ["dreg", "stl", "vr"])
def test_the_estimator_and_the_memory_are_those_that_were_asked_for(estimator: str, files: Path) -> None:
    from fastvae.commands.options import with_defaults
    from fastvae.objectives import iwae

    given = {"data": str(files / "binary.npz"), "model": "iwae", "num_samples": 4000, "hidden": [8], "latent_size": 2}
    options = with_defaults(given | {"estimator": estimator, "alpha": 0.25, "max_mib": 1})
    problem = Problem.from_options(options)
    model, x = build_model(options, problem), problem.frozen("valid")
    found = []
    for value in (
        lambda: bound(options, model, x),
        lambda: iwae(model, x, 4000, estimator=estimator, alpha=0.25 if estimator == "vr" else None, max_bytes=2**20),
    ):
        model.zero_grad()
        torch.manual_seed(1)
        total = value().sum()
        total.backward()
        found.append([total, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(ours, want) for ours, want in zip(*found, strict=True))
    assert type(total.grad_fn.next_functions[0][0]).__name__ == "_BoundBackward"  # in two passes


@pytest.mark.parametrize(
    ("given", "estimator"), [({}, "elbo"), ({"prior": "vamp"}, "stl"), ({"prior": "vamp", "proposal": "iaf"}, "elbo")]
)
def test_a_vae_whose_prior_leaves_no_closed_form_learns_with_stl(given: Any, estimator: Any, files: Path) -> None:
    from fastvae.commands.options import with_defaults
    from fastvae.objectives import elbo

    options = with_defaults({"data": str(files / "binary.npz"), "hidden": [8], "latent_size": 2} | given)
    problem = Problem.from_options(options)
    model, x = build_model(options, problem), problem.frozen("valid")
    found = []
    for value in (lambda: bound(options, model, x), lambda: elbo(model, x, estimator=estimator)):
        model.zero_grad()
        torch.manual_seed(1)
        value().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(ours, want) for ours, want in zip(*found, strict=True))


def test_defaults_of_the_help_are_those_of_the_run() -> None:
    from fastvae.commands.options import with_defaults

    for model in SMALL:
        options = with_defaults({"model": model})
        for name, value in options.items():
            default = TRAINING[name].default
            wanted = default.get(model, 1) if isinstance(default, dict) else default
            assert value == (model if name == "model" else wanted)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_seed_of_a_run_does_not_move_the_test_set(seed: int, files: Path) -> None:
    from fastvae.commands.options import with_defaults

    parts = []
    for likelihood, binarize in (("auto", "sample"), ("gaussian", "none")):
        given = {"data": str(files / "grey.npz"), "likelihood": likelihood, "binarize": binarize}
        want = Problem.from_options(with_defaults(given)).frozen("test")
        parts.append(torch.equal(Problem.from_options(with_defaults(given | {"seed": seed})).frozen("test"), want))
    assert parts == [True, True]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            "--likelihood bernoulli --data {grey}",
            "bernoulli needs binary data, grey.npz has 256 levels: add --binarize",
        ),
        ("--binarize sample --data {binary}", "binary.npz is binary already"),
        ("--data {missing}", "missing.npz does not exist"),
        ("--data {broken}", "broken.npz cannot be read as a .npz archive"),
        ("--channels 8", "--channels does not apply to vae, only to pixelcnn, pixelvae"),
        ("--model pixelcnn --num-samples 3", "--num-samples does not apply to pixelcnn"),
        ("--model pixelcnn --kernel-size 4", "--kernel-size must be odd, got 4"),
        ("--model pixelcnn --first-kernel-size 6", "--first-kernel-size must be odd, got 6"),
        ("--model pixelcnn --num-blocks 0", "--num-blocks must be an integer of at least 1, got 0"),
        ("--model iwae --num-samples 0", "--num-samples must be an integer of at least 1, got 0"),
        ("--model vae --estimator dreg", "--estimator does not apply to vae, only to iwae"),
        ("--model iwae --alpha 1.5", "--alpha must be positive and at most 1, got 1.5"),
        ("--max-mib 0", "--max-mib must be an integer of at least 1, got 0"),
        ("--latent-size 0", "--latent-size must be an integer of at least 1, got 0"),
        ("--hidden 8 0", "--hidden must be integers of at least 1, got [8, 0]"),
        ("--epochs 0", "--epochs must be an integer of at least 1, got 0"),
        ("--batch-size -3", "--batch-size must be an integer of at least 1, got -3"),
        ("--learning-rate nan", "--learning-rate must be positive and finite, got nan"),
        ("--clip-norm 0", "--clip-norm must be positive and finite, got 0"),
        ("--seed -1", "--seed must be in [0, 2^63), got -1"),
        ("--seed 9223372036854775808", "--seed must be in [0, 2^63)"),
        ("--device meta", "--device must be auto, cpu or cuda, got 'meta'"),
        ("--device moon", "--device must be auto, cpu or cuda, got 'moon'"),
        ("--device cuda:99", "CUDA devices"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left_behind(
    argv: str, says: str, tmp_path: Path, files: Path, capsys: Any
) -> None:
    names = {name: files / f"{name}.npz" for name in ("grey", "binary", "missing")} | {
        "broken": tmp_path / "broken.npz"
    }
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 but no more")
    data = [] if "--data" in argv else ["--data", files / "binary.npz"]
    assert train(tmp_path / "run", *data, *argv.format(**names).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = captured.err.splitlines()[-1]
    assert error.startswith("fastvae train: error: ")
    assert says in error
    assert not (tmp_path / "run").exists()


def test_an_empty_data_path_is_not_the_current_folder(tmp_path: Path, capsys: Any) -> None:
    assert train(tmp_path / "run", "--data", "") == 2
    assert "--data must be" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path, files: Path, capsys: Any) -> None:
    options = ["--data", files / "grey.npz", "--likelihood", "gaussian", "--learning-rate", "1e30"]
    assert train(tmp_path / "run", *options) == 2
    assert re.search(r"became (nan|inf|-inf) (in step \d+ \(epoch \d+, batch|after epoch)", capsys.readouterr().err)


def test_an_existing_folder_is_left_alone(tmp_path: Path, files: Path, capsys: Any) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("mine")
    assert train(tmp_path / "run", "--data", files / "binary.npz") == 2
    assert "exists already; choose a new name, or add --resume" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_text() == "mine"


def test_resuming_takes_the_options_of_the_run(tmp_path: Path, files: Path, capsys: Any) -> None:
    options = ["--data", files / "binary.npz", "--model", "vae", *SMALL["vae"].split()]
    assert train(tmp_path / "run", *options) == 0
    assert main(["train", "--resume", "--out", str(tmp_path / "run"), "--epochs", "3"]) == 0
    assert "3 epochs, 12 steps" in capsys.readouterr().out
    for argv, says in (
        (["--seed", "5"], "--seed 5 differs from 0"),
        (["--data", "digits"], "--data digits differs from"),
        (["--hidden", "9"], r"--hidden [9] differs from [8]"),
    ):
        assert main(["train", "--resume", "--out", str(tmp_path / "run"), *argv]) == 2
        assert says in capsys.readouterr().err


def test_there_must_be_a_run_to_resume(tmp_path: Path, capsys: Any) -> None:
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "run is not a checkpoint" in capsys.readouterr().err
    checkpoint.save(tmp_path / "other", models.VAE((1, 2, 2), latent_size=1, hidden_sizes=(2,)))
    assert main(["train", "--resume", "--out", str(tmp_path / "other")]) == 2
    assert "was not made by 'fastvae train'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "its training options name no model"),
        ({"model": "moon"}, "its training options name no model"),
        ({"model": "vae"}, "its training options name no data"),
        ({"+epochs": "many"}, "option epochs must be an integer of at least 1, got 'many'"),
        ({"+hidden": 8}, "option hidden must be integers of at least 1, got 8"),
        ({"+data": None}, "option data must be a text that is not empty, got None"),
    ],
)
def test_damaged_options_of_a_run_are_named(
    change: dict[str, Any], says: str, tmp_path: Path, files: Path, capsys: Any
) -> None:
    assert train(tmp_path / "run", "--data", files / "binary.npz", *SMALL["vae"].split()) == 0
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    added = {key[1:]: value for key, value in change.items() if key.startswith("+")}
    config["info"]["options"] = config["info"]["options"] | added if added else change
    path.write_text(json.dumps(config))
    capsys.readouterr()
    for argv in (["train", "--resume", "--out"], ["evaluate"], ["sample", "--out", str(tmp_path / "a.png")]):
        assert main([*argv, str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert "config.json is damaged" in error


def test_a_checkpoint_from_before_an_option_existed_is_read_and_resumed(
    tmp_path: Path, files: Path, capsys: Any
) -> None:
    argv = ["--data", files / "binary.npz", *SMALL["vae"].split()]
    for name in ("new", "old"):
        assert train(tmp_path / name, *argv) == 0
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    for option in ("prior", "proposal", "stochastic_layers", "schedule", "warm_up"):
        del config["info"]["options"][option]
    for argument in ("prior", "proposal"):
        del config["config"][argument]
    path.write_text(json.dumps(config))
    for name in ("new", "old"):
        assert main(["train", "--resume", "--out", str(tmp_path / name), "--epochs", "3"]) == 0
        out = str(tmp_path / f"{name}.json")
        assert main(["evaluate", str(tmp_path / name), "--num-samples", "20", "--limit", "3", "--out", out]) == 0
    new, old = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("new", "old"))
    assert new["log p(x)"] == old["log p(x)"]


def test_options_of_another_version_are_named(tmp_path: Path, files: Path, capsys: Any) -> None:
    assert train(tmp_path / "run", "--data", files / "binary.npz", *SMALL["vae"].split()) == 0
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["info"]["options"] |= {"moons": 3, "comets": None}
    path.write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "options that are not known here, comets, moons: it was made by another version of fastvae" in error
    assert "damaged" not in error


def interrupted_in_a_process(argv: list[str]) -> tuple[int, str]:
    """Run, press Ctrl-C once some steps are done, and return exit code and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastvae", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # even if the tests run in the background
    )
    assert process.stderr is not None
    seen = b""
    while not re.search(rb"[1-9]\d*/\d+ \[", seen):  # the progress bar has moved
        chunk = process.stderr.read1()  # type: ignore[attr-defined]
        assert chunk, seen.decode()
        seen += chunk
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    return process.wait(), (seen + rest).decode()


def test_ctrl_c_within_an_epoch_and_resume_give_the_bits_of_one_run(tmp_path: Path, files: Path) -> None:
    argv = [
        "train",
        "--model",
        "pixelvae",
        "--data",
        str(files / "five.npz"),
        "--binarize",
        "sample",
        "--batch-size",
        "1",
    ]
    argv += [*SMALL["pixelvae"].split(), "--epochs", "40", "--patience", "40"]  # 1000 steps
    code, error = interrupted_in_a_process([*argv, "--out", str(tmp_path / "a")])
    assert code == 130
    assert "Traceback" not in error
    command = error.splitlines()[-1].split("go on with: python -m fastvae ")[1].split()
    model = checkpoint.load_model(tmp_path / "a", {"PixelVAE": models.PixelVAE}, weights="last")
    part = checkpoint.read_training(tmp_path / "a", model)[1]["fit"]
    assert 0 < part["step"] < 1000
    assert main(command) == 0
    assert main([*argv, "--out", str(tmp_path / "b")]) == 0
    ours, state = checkpoint.read_training(tmp_path / "a", model)
    want, want_state = checkpoint.read_training(tmp_path / "b", model)
    assert state == want_state
    assert ours.keys() == want.keys()
    assert all(torch.equal(ours[name], want[name]) for name in want)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
