"""Every system has one train command; evaluate and sample work on what it leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvae import checkpoint
from fastvae.__main__ import main
from fastvae.commands.problem import CLASSES, Problem, build_model

_VAE = "--latent-size 3 --hidden 8"
_STACK = "--channels 4 --num-blocks 1 --first-kernel-size 3"
_FLOW = "--flow-hidden 8 --context-size 2"
SYSTEMS = {
    "discretised logistic mixture": f"--model vae {_VAE} --likelihood logistic_mixture",
    "gaussian, learned scale": f"--model vae {_VAE} --likelihood gaussian",
    "gaussian, fixed scale": f"--model vae {_VAE} --likelihood gaussian --scale 0.25",
    "gaussian, scale of each pixel": f"--model vae {_VAE} --likelihood gaussian --scale pixel",
    "two stochastic layers": f"--model iwae {_VAE} --stochastic-layers 2 --upper-latent-size 2 --upper-hidden 4 "
    "--estimator dreg --binarize sample",
    "two stochastic layers, mixture, iaf": f"--model iwae {_VAE} --stochastic-layers 2 --upper-latent-size 2 "
    f"--upper-hidden 4 --prior mixture --prior-components 5 --proposal iaf {_FLOW} --binarize sample",
    "nade": "--model nade --hidden-units 8 --binarize sample",
    "nade, ensemble of orders": "--model nade --hidden-units 8 --order random --num-orders 3 --binarize sample",
    "gated pixelvae": f"--model gated-pixelvae {_VAE} {_STACK} --binarize sample",
    "pixelcnn in another order": f"--model pixelcnn {_STACK} --order hilbert",
    "pixelcnn, ensemble of orders": f"--model pixelcnn {_STACK} --order s_curve --num-orders 8 --binarize sample",
    "gated pixelcnn": f"--model gated-pixelcnn {_STACK}",
    "mixture prior": f"--model vae {_VAE} --prior mixture --prior-components 5 --binarize sample",
    "vampprior": f"--model iwae {_VAE} --prior vamp --prior-components 5 --binarize sample",
    "autoregressive prior": f"--model vae {_VAE} --prior autoregressive --prior-hidden 8 --binarize sample",
    "autoregressive prior of a pixelvae": f"--model pixelvae {_VAE} {_STACK} --prior autoregressive --prior-hidden 8",
    "full covariance": f"--model vae {_VAE} --proposal full --binarize sample",
    "planar flow": f"--model vae {_VAE} --proposal planar --num-flows 2 --binarize sample",
    "affine coupling": f"--model vae {_VAE} --proposal coupling {_FLOW} --binarize sample",
    "iaf": f"--model iwae {_VAE} --proposal iaf {_FLOW} --estimator stl --binarize sample",
    "autoregressive proposal": f"--model vae {_VAE} --proposal autoregressive {_FLOW} --binarize sample",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images of 5 levels."""
    path, random = tmp_path_factory.mktemp("data") / "five.npz", np.random.default_rng(0)
    images = {f"x_{part}": random.integers(0, 5, (24, 4, 5), dtype=np.uint8) for part in ("train", "test")}
    np.savez(path, **images, num_levels=5)
    return path


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_trains_evaluates_and_samples(name: str, data: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    train = ["train", "--data", str(data), "--out", str(run), "--batch-size", "8", *SYSTEMS[name].split()]
    assert main([*train, "--epochs", "1"]) == 0, capsys.readouterr().err
    if "orders" in name:  # the order of a batch is part of the random state
        assert main(["train", "--resume", "--out", str(run), "--epochs", "2"]) == 0
    report = tmp_path / "report.json"
    assert main(["evaluate", str(run), "--num-samples", "20", "--limit", "5", "--out", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["log p(x)"] < (100 if "gaussian" in name else 0)
    assert found.get("ELBO", -np.inf) <= found["log p(x)"]
    assert main(["sample", str(run), "--num", "3", "--out", str(tmp_path / "samples.png")]) == 0
    assert (tmp_path / "samples.png").stat().st_size > 0


def test_a_run_has_the_sizes_that_were_asked_for(data: Path, tmp_path: Path) -> None:
    from fastvae.commands.options import with_defaults

    given = {"data": str(data), "binarize": "sample", "latent_size": 3, "hidden": [8], "prior": "vamp"}
    given |= {"prior_components": 7, "proposal": "planar"}
    problem = Problem.from_options(with_defaults(given))
    model = build_model(with_defaults(given), problem)
    config = model.config()
    assert config["prior"] == {"name": "vamp", "num_components": 7}
    assert config["proposal"] == {"name": "planar", "num_flows": 10}
    two = {"stochastic_layers": "2", "upper_latent_size": 2, "upper_hidden": [4, 5]}
    model = build_model(with_defaults({key: given[key] for key in ("data", "binarize", "hidden")} | two), problem)
    assert model.config()["latent_sizes"] == [32, 2]
    assert model.config()["hidden_sizes"] == [[8], [4, 5]]
    for scale, wanted in (("auto", "shared"), ("pixel", "pixel"), ("0.25", 0.25)):
        options = with_defaults({"data": str(data), "likelihood": "gaussian", "scale": scale})
        family = Problem.from_options(options).family("vae")
        assert family == {"name": "gaussian", "scale": wanted}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--model vae --num-flows 3", "--num-flows applies with --proposal planar or coupling or iaf only"),
        ("--model vae --prior-components 3", "--prior-components applies with --prior mixture or vamp only"),
        ("--model pixelcnn --prior vamp", "--prior does not apply to pixelcnn, only to vae, iwae"),
        ("--model vae --scale 0.1", "--scale applies with --likelihood gaussian only"),
        ("--likelihood gaussian --scale big", "--scale must be auto, shared, pixel or a positive number, got 'big'"),
        ("--likelihood gaussian --scale -1", "--scale must be auto, shared, pixel or a positive number, got '-1'"),
        ("--stochastic-layers 2 --prior vamp", "has no density in closed form; choose mixture or autoregressive"),
        ("--model nade", "--model nade is for binary data, got 5 levels: add --binarize sample"),
        ("--model nade --binarize sample --num-orders 9", "num_orders must be at most 8 for 'raster', got 9"),
        ("--model gated-pixelcnn --order hilbert", "--order does not apply to gated-pixelcnn, only to nade, pixelcnn"),
        ("--proposal coupling --latent-size 1", "features must be at least 2"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left_behind(
    argv: str, says: str, data: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *argv.split()]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_samples_of_an_ensemble_have_no_certificate(data: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    argv = ["train", "--data", str(data), "--out", str(run), "--epochs", "1", *SYSTEMS["nade"].split()]
    assert main(argv) == 0
    assert main(["sample", str(run), "--out", str(tmp_path / "a.png"), "--verify"]) == 2
    assert "--verify is for models with a PixelCNN in raster order, not for a NADE" in capsys.readouterr().err
    model = checkpoint.load_model(run, CLASSES)
    assert torch.equal(model.sample(3, seed=1), model.sample(3, seed=1))
