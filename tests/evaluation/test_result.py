"""Results: going on, putting together, files, JSON, pictures; and every way to count a sample twice is an error."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

import fastvae
from fastvae.evaluation import LogLikelihood, LogWeights

F64 = torch.float64
FIGURES = ("log_prob", "elbo", "std_error", "ess", "khat")


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    return Independent(Normal(z.tanh(), 0.5), 1).log_prob(x) + Independent(Normal(torch.zeros(3), 1.0), 1).log_prob(z)


def diagonal(x: Tensor) -> Normal:
    return Normal(x, torch.full_like(x, 0.7))


def correlated(x: Tensor) -> MultivariateNormal:
    return MultivariateNormal(x, torch.eye(3, dtype=x.dtype) * 0.5 + 0.1)


X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


def evaluate(x: Tensor = X, num_samples: int = 300, proposal: Callable = diagonal, **options: object) -> LogLikelihood:
    return fastvae.log_likelihood(x, proposal=proposal, log_joint=log_joint, num_samples=num_samples, **options)


def assert_same(a: LogLikelihood, b: LogLikelihood, tolerance: float = 1e-12) -> None:
    for name in FIGURES:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance, msg=name)
    for name in ("values", "std_error"):
        torch.testing.assert_close(getattr(a.curve, name), getattr(b.curve, name), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(a.jackknife.std_error, b.jackknife.std_error, rtol=1e-8, atol=1e-10)
    assert a.origin.samples == b.origin.samples
    assert torch.equal(a.origin.ids, b.origin.ids)


@pytest.mark.parametrize("proposal", [diagonal, correlated])
def test_a_result_extends_to_that_of_one_run(proposal: Callable) -> None:
    whole = evaluate(num_samples=701, proposal=proposal)
    grown = evaluate(num_samples=300, proposal=proposal).extend(1).extend(400)
    assert_same(grown, whole)
    assert_same(
        evaluate(num_samples=300, proposal=proposal, first_sample=401).extend(3).extend(1),
        evaluate(num_samples=304, proposal=proposal, first_sample=401),
    )


def test_a_model_extends_too() -> None:
    model = fastvae.models.VAE((1, 4, 4), latent_size=2, hidden_sizes=(8,)).double()
    x = torch.zeros(3, 1, 4, 4, dtype=F64)
    grown = fastvae.log_likelihood(x, model, num_samples=100, seed=3).extend(50)
    assert_same(grown, fastvae.log_likelihood(x, model, num_samples=150, seed=3))
    with pytest.raises(ValueError, match="num_samples must be between 1"):
        grown.extend(0)


def test_parts_of_a_test_set_join_and_extend() -> None:
    ids = torch.arange(20)
    parts = [evaluate(X[i:j], ids=ids[i:j]) for i, j in ((0, 7), (7, 8), (8, 20))]
    joined = LogLikelihood.join(parts)
    assert_same(joined, evaluate())
    assert_same(joined.extend(100), evaluate(num_samples=400))
    assert joined.mean().value == pytest.approx(evaluate().mean().value, rel=1e-12)


def test_no_sample_counts_twice() -> None:
    first = evaluate()
    with pytest.raises(ValueError, match=r"samples 200 to 300 are in both: continue with first_sample=400"):
        first.merge(evaluate(first_sample=200, num_samples=200))
    with pytest.raises(ValueError, match="samples 0 to 300 are in both"):
        first.merge(first)
    with pytest.raises(ValueError, match="both must have one seed, got 0 and 1"):
        first.merge(evaluate(first_sample=300, seed=1))
    with pytest.raises(ValueError, match="same datapoints in the same order"):
        first.merge(evaluate(first_sample=300, ids=torch.arange(20).flip(0)))
    with pytest.raises(ValueError, match="same datapoints"):
        first.merge(evaluate(X[:5], first_sample=300))
    with pytest.raises(ValueError, match="datapoints of 3 values, got 2"):
        first.merge(LogLikelihood(first.weights, 2, first.origin))
    with pytest.raises(TypeError, match="other must be a LogLikelihood, got LogWeights"):
        first.merge(first.weights)  # type: ignore[arg-type]


def test_gaps_and_any_order_of_ranges_merge() -> None:
    a, b, c = (evaluate(num_samples=100, first_sample=first) for first in (0, 100, 250))
    merged = c.merge(a).merge(b)
    assert merged.origin.samples == ((0, 200), (250, 350))
    assert merged.origin.num_samples == 300
    with pytest.raises(ValueError, match="samples 250 to 260 are in both"):
        merged.merge(evaluate(num_samples=60, first_sample=200))


def test_no_datapoint_is_joined_twice() -> None:
    with pytest.raises(ValueError, match=r"numbers 0, 1, 2 are there twice; give each part its numbers with ids="):
        LogLikelihood.join([evaluate(X[:3]), evaluate(X[3:6])])
    with pytest.raises(ValueError, match="both must have one seed, got 0 and 1"):
        LogLikelihood.join([evaluate(X[:3]), evaluate(X[3:6], ids=torch.arange(3, 6), seed=1)])
    with pytest.raises(ValueError, match=r"must have seen the same samples, got the ranges \(\(0, 300\),\)"):
        LogLikelihood.join([evaluate(X[:3]), evaluate(X[3:6], 200, ids=torch.arange(3, 6))])
    with pytest.raises(ValueError, match="parts must hold at least one LogLikelihood"):
        LogLikelihood.join([])
    with pytest.raises(ValueError, match="parts must hold at least one LogWeights"):
        LogWeights.join([])
    with pytest.raises(TypeError, match="parts must be a LogLikelihood, got int"):
        LogLikelihood.join([evaluate(X[:3]), 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="parts must be a LogLikelihood, got int"):
        LogLikelihood.join([3, evaluate(X[:3])])  # type: ignore[list-item]


def test_a_file_gives_back_the_result_and_goes_on(tmp_path: Path) -> None:
    result, path = evaluate(ids=torch.arange(100, 120), seed=2**64 - 1), tmp_path / "result.safetensors"
    result.save(path)
    loaded = LogLikelihood.load(path)
    assert torch.equal(loaded.weights.blocks, result.weights.blocks)
    assert torch.equal(loaded.weights.largest, result.weights.largest)
    assert (loaded.origin.seed, loaded.num_dims) == (2**64 - 1, 3)
    assert_same(loaded, result, 0)
    with pytest.raises(ValueError, match="first_sample=300, and merge the two"):
        loaded.extend(5)
    more = evaluate(ids=torch.arange(100, 120), seed=2**64 - 1, first_sample=300)
    assert_same(loaded.merge(more), result.extend(300), 0)
    assert_same(loaded.merge(more).extend(5), result.extend(305))
    with pytest.raises(ValueError, match="samples 0 to 300 are in both"):
        loaded.merge(result)


def test_the_file_is_four_kibibytes_for_each_datapoint(tmp_path: Path) -> None:
    for n in (0, 20):
        evaluate(X[:n]).save(tmp_path / f"{n}.safetensors")
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in (0, 20)]
    assert (sizes[1] - sizes[0]) / 20 == pytest.approx(4096 + 8, abs=2)
    assert LogLikelihood.load(tmp_path / "0.safetensors").log_prob.shape == (0,)


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    path, result = tmp_path / "a.safetensors", evaluate()
    result.save(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="nothing was overwritten"):
        evaluate(seed=1).save(path)
    with pytest.raises(FileExistsError, match="nothing was overwritten"):
        result.weights.save(path)
    assert path.read_bytes() == before
    result.weights.save(path, overwrite=True)
    assert torch.equal(LogWeights.load(path).blocks, result.weights.blocks)
    for wrong in (tmp_path, tmp_path / "no" / "such"):
        with pytest.raises(ValueError, match="must name a file in an existing folder"):
            result.save(wrong)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path, result = tmp_path / "a.safetensors", evaluate()
    result.save(path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="does not exist"):
        LogLikelihood.load(tmp_path / "b")
    with pytest.raises(ValueError, match="holds a LogLikelihood, expected a LogWeights"):
        LogWeights.load(path)
    for broken in (b"", content[:100], content[:-1], b"x" * 1000):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="truncated or damaged"):
            LogLikelihood.load(path)
    tensors = {"blocks": result.weights.blocks, "largest": result.weights.largest, "ids": result.origin.ids}
    header = {"kind": "LogLikelihood", "format": 1, "fastvae": "0.1.0", "seed": 0, "samples": [[0, 300]], "num_dims": 3}

    def refused(says: str, tensors: dict = tensors, **change: object) -> None:
        changed = {key: value for key, value in (header | change).items() if value is not None}
        path.write_bytes(safetensors.torch.save(tensors, {"fastvae.evaluation": json.dumps(changed)}))
        with pytest.raises(ValueError, match=says):
            LogLikelihood.load(path)

    refused("has format 2, written by fastvae 9;.*update fastvae", format=2, fastvae="9")
    refused("no header of an evaluation", kind=None)
    refused("samples are not those that its header counts", samples=[[0, 200]])
    refused("is damaged: its header is", samples=3)
    refused("is damaged: its header is", num_dims=None)
    refused("is damaged: it holds", {"blocks": tensors["blocks"]})
    refused("is damaged: it holds", tensors | {"blocks": tensors["blocks"].float()})
    refused("is damaged: expected shapes", tensors | {"largest": tensors["largest"][:, :5].contiguous()})
    refused("is damaged: expected shapes", tensors | {"blocks": tensors["blocks"][:, :5].contiguous()})
    refused("samples are not those", tensors | {"ids": tensors["ids"][:5]})
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(ValueError, match="was not written by LogLikelihood"):
        LogLikelihood.load(path)


def test_the_dictionary_is_json_without_nan() -> None:
    def sometimes(x: Tensor, z: Tensor) -> Tensor:
        return log_joint(x, z).masked_fill(x[:, 0] > 0, -torch.inf)

    result = fastvae.log_likelihood(X, proposal=diagonal, log_joint=sometimes, num_samples=300, seed=4)
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    points = report["datapoints"]
    assert all(len(values) == 20 for values in points.values())
    assert points["log_prob"] == [None if v == -math.inf else v for v in result.log_prob.tolist()]
    assert points["id"] == list(range(20))
    assert (report["seed"], report["samples"], report["num_samples"]) == (4, [[0, 300]], 300)
    assert report["mean"]["log_prob"] is None
    report = evaluate().to_dict()
    assert report["mean"]["log_prob"] == pytest.approx(evaluate().log_prob.mean().item())
    assert report["curve"]["num_samples"] == evaluate().curve.num_samples.tolist()
    assert report["curve"]["log_prob"][-1] == pytest.approx(report["mean"]["log_prob"])
    assert report["curve"]["log_prob"][0] == pytest.approx(report["mean"]["elbo"])
    assert json.dumps(evaluate(X[:0]).to_dict(), allow_nan=False)


def test_printing_shows_curve_and_jackknife() -> None:
    result = evaluate(num_samples=3000, proposal=lambda x: Normal(x, 1.2))
    assert result.trusted.all()
    shown = repr(result)
    assert f"jackknife: {result.jackknife.log_prob.mean():.4f} +- " in shown
    assert f"{result.mean().value:.2f} (3000)" in shown


def test_printing_counts_bad_weights() -> None:
    def sometimes_nan(x: Tensor, z: Tensor) -> Tensor:
        return log_joint(x, z).masked_fill((x == X[3]).all(-1), torch.nan)

    result = fastvae.log_likelihood(X, proposal=diagonal, log_joint=sometimes_nan, num_samples=300, on_bad="count")
    assert "nan       1 datapoints, with 300 log-weights that are nan or +inf" in repr(result)
    assert "+inf" not in repr(evaluate())


def test_printing_weights_that_are_all_the_same() -> None:
    result = fastvae.log_likelihood(X, proposal=diagonal, log_joint=lambda x, z: z.sum(-1) * 0, num_samples=300)
    result.khat = torch.full((20,), -torch.inf, dtype=F64)  # what weights without a tail have
    assert "k-hat     median -inf, largest -inf" in repr(result)


def test_the_picture_is_written_once(tmp_path: Path) -> None:
    result = evaluate()
    figure = result.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    left, right = figure.axes
    assert left.get_xscale() == "log"
    assert left.lines[0].get_ydata()[-1] == pytest.approx(result.mean().value)
    assert sum(patch.get_height() for patch in right.patches) == 20
    with pytest.raises(FileExistsError):
        result.plot(tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one datapoint"):
        evaluate(X[:0]).plot()


def test_without_matplotlib_the_picture_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot needs matplotlib: pip install"):
        evaluate().plot()


def test_extending_evaluates_in_eval_mode_with_the_named_modules() -> None:
    dropout = nn.Dropout(0.5)

    def noisy(x: Tensor, z: Tensor) -> Tensor:
        return log_joint(x, dropout(z))

    results = [
        fastvae.log_likelihood(X, proposal=diagonal, log_joint=noisy, num_samples=m, modules=[dropout])
        for m in (50, 90)
    ]
    assert_same(results[0].extend(40), results[1])
    assert dropout.training
