"""Interrupted evaluations: nothing is lost, nothing counts twice, and the figures are those of one run to the bit."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

import fastvae
from fastvae.evaluation import LogLikelihood, resume

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    return Independent(Normal(z.tanh(), 0.5), 1).log_prob(x) + Independent(Normal(torch.zeros(3), 1.0), 1).log_prob(z)


def diagonal(x: Tensor) -> Normal:
    return Normal(x, torch.full_like(x, 0.7))


def correlated(x: Tensor) -> MultivariateNormal:
    return MultivariateNormal(x, torch.eye(3) * 0.5 + 0.1)


def stopping_after(calls: int, error: BaseException) -> Callable[[Tensor, Tensor], Tensor]:
    def stopped(x: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise error
        return log_joint(x, z)

    return stopped


def evaluate(x: Tensor = X, log_joint: Callable = log_joint, **options: object) -> LogLikelihood:
    arguments = {"proposal": diagonal, "num_samples": 700, "max_bytes": 6000} | options
    return fastvae.log_likelihood(x, log_joint=log_joint, **arguments)


def same_bits(a: LogLikelihood, b: LogLikelihood) -> bool:
    return torch.equal(a.weights.blocks, b.weights.blocks) and torch.equal(a.weights.largest, b.weights.largest)


@pytest.mark.parametrize("proposal", [diagonal, correlated])
@pytest.mark.parametrize("max_bytes", [6000, 15_000])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, proposal: Callable, max_bytes: int) -> None:
    options, calls = {"proposal": proposal, "max_bytes": max_bytes}, 0

    def counted(x: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return log_joint(x, z)

    whole, path, done = evaluate(log_joint=counted, **options), tmp_path / "a.safetensors", []
    for _ in range(2):
        error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            evaluate(log_joint=stopping_after(2 * calls // 5, error), checkpoint=path, **options)
        assert f"{path} keeps what was done; the same call goes on from there" in error.__notes__
        with safetensors.safe_open(path, "pt") as file:
            done.append(int(file.get_tensor("blocks")[0].sum()))
    assert 0 < done[0] < done[-1] < 20 * 700
    result = evaluate(checkpoint=path, **options)
    assert same_bits(result, whole)
    assert same_bits(LogLikelihood.load(path), whole)
    again = evaluate(log_joint=stopping_after(0, AssertionError("work")), checkpoint=path, **options)
    assert same_bits(again, whole)
    assert same_bits(result.extend(10), whole.extend(10))


def test_a_refined_evaluation_goes_on_to_the_same_bits_and_extends(tmp_path: Path) -> None:
    path, calls = tmp_path / "a.safetensors", 0

    def counted(x: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return log_joint(x, z)

    whole = evaluate(refine=3, log_joint=counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(refine=3, log_joint=stopping_after(2 * calls // 3, KeyboardInterrupt()), checkpoint=path)
    with safetensors.safe_open(path, "pt") as file:
        assert 0 < int(file.get_tensor("blocks")[0].sum()) < 20 * 700
    with pytest.raises(ValueError, match="its refine is 3, not 0"):
        evaluate(checkpoint=path)
    assert same_bits(evaluate(refine=3, checkpoint=path), whole)
    torch.testing.assert_close(
        evaluate(refine=3, num_samples=500).extend(200).log_prob, whole.log_prob, rtol=1e-6, atol=1e-6
    )


def test_ctrl_c_is_an_interruption(tmp_path: Path) -> None:
    calls = 0

    def interrupted(x: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            signal.raise_signal(signal.SIGINT)
        return log_joint(x, z)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate(log_joint=interrupted, checkpoint=tmp_path / "a")
    finally:
        signal.signal(signal.SIGINT, before)
    assert same_bits(evaluate(checkpoint=tmp_path / "a"), evaluate())


@pytest.mark.parametrize("entered", [True, False])
def test_an_interruption_inside_the_state_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entered: bool
) -> None:
    path, whole = tmp_path / "a", evaluate()
    update, left = fastvae.LogWeights.update, 7

    def interrupted(self: fastvae.LogWeights, *args: object, **options: object) -> None:
        nonlocal left
        left -= 1
        if entered or left:
            update(self, *args, **options)
        if not left:
            raise KeyboardInterrupt

    monkeypatch.setattr(fastvae.LogWeights, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(checkpoint=path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.get_tensor("blocks")[0].sum() > 0
    assert same_bits(evaluate(checkpoint=path), whole)


def test_the_file_is_written_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a kill that leaves no time to write."""
    monkeypatch.setattr(resume, "_SECONDS", 0.0)
    seen: list[bytes] = []

    def spy(x: Tensor, z: Tensor) -> Tensor:
        if (tmp_path / "a").exists():
            seen.append((tmp_path / "a").read_bytes())
        return log_joint(x, z)

    whole = evaluate(log_joint=spy, checkpoint=tmp_path / "a")
    for content in (seen[0], seen[len(seen) // 2]):
        (tmp_path / "b").write_bytes(content)
        assert same_bits(evaluate(checkpoint=tmp_path / "b"), whole)


def test_a_failing_model_keeps_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(KeyError, match="model"):
        evaluate(log_joint=stopping_after(9, KeyError("model")), checkpoint=path)
    assert same_bits(evaluate(checkpoint=path), evaluate())


def test_a_mistake_in_the_first_call_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a tensor of shape"):
        evaluate(log_joint=lambda x, z: z, checkpoint=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="must name a file in an existing folder"):
        evaluate(log_joint=stopping_after(0, AssertionError("work")), checkpoint=tmp_path / "no" / "such")


def test_datapoints_with_bad_weights_raise_again_and_can_be_counted(tmp_path: Path) -> None:
    def bad(x: Tensor, z: Tensor) -> Tensor:
        return log_joint(x, z).masked_fill((x[:, 0] == X[9, 0]), float("nan"))

    for _ in range(2):
        with pytest.raises(ValueError, match=r"nan or \+inf for datapoints 9 \(700 of 700"):
            evaluate(log_joint=bad, checkpoint=tmp_path / "a")
    result = evaluate(log_joint=bad, checkpoint=tmp_path / "a", on_bad="count")
    assert result.log_prob.isnan().sum() == 1
    with pytest.raises(ValueError, match=r"nan or \+inf for datapoints 9 \(700 of 700"):
        evaluate(log_joint=bad, checkpoint=tmp_path / "a")


def test_finished_datapoints_of_an_unfinished_run_can_be_loaded(tmp_path: Path) -> None:
    path, whole = tmp_path / "a", evaluate()
    with pytest.raises(KeyboardInterrupt):
        evaluate(log_joint=stopping_after(30, KeyboardInterrupt()), checkpoint=path)
    with pytest.raises(ValueError, match=r"has not finished: \d+ of 20 datapoints; go on with log_likelihood"):
        LogLikelihood.load(path)
    part = LogLikelihood.load(path, unfinished=True)
    count = part.weights.num_points
    assert 0 < count < 20
    assert torch.equal(part.log_prob, whole.log_prob[:count])
    assert part.origin.ids.tolist() == list(range(count))
    assert (part.weights.num_samples == 700).all()


def test_a_file_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    path, net = tmp_path / "a", nn.Linear(3, 3)
    evaluate(checkpoint=path, modules=[net])
    before = path.read_bytes()
    with torch.no_grad():
        net.weight[0, 0] += 1e-6
    for options, says in (
        ({"num_samples": 800}, "its num_samples is 700, not 800"),
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"first_sample": 700}, "its first_sample is 0, not 700"),
        ({"max_bytes": 7000}, "its max_bytes is 6000, not 7000"),
        ({"x": X + 1}, "its fingerprint of x is"),
        ({"x": X[:5]}, "its fingerprint of x is"),
        ({"x": X.double()}, "its fingerprint of x is"),
        ({"ids": torch.arange(20) + 1}, "its fingerprint of ids is"),
        ({"modules": [net]}, "its fingerprint of the parameters is"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate(log_joint=stopping_after(0, AssertionError("work")), checkpoint=path, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize("conditions", [(X, None), (None, X), (X, X + 1)])
def test_a_file_of_another_condition_is_refused(tmp_path: Path, conditions: tuple) -> None:
    def run(condition: Tensor | None) -> LogLikelihood:
        return evaluate(
            proposal=lambda x, *_: diagonal(x),
            log_joint=lambda x, z, shift=0.0: log_joint(x + shift, z),
            condition=condition,
            checkpoint=tmp_path / "a",
        )

    first, second = conditions
    run(first)
    with pytest.raises(ValueError, match="another evaluation: its fingerprint of the condition is"):
        run(second)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    evaluate().save(path)
    with pytest.raises(ValueError, match="a result without the arguments of its evaluation"):
        evaluate(checkpoint=path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="truncated or damaged"):
        evaluate(checkpoint=path)
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        evaluate(log_joint=stopping_after(9, KeyboardInterrupt()), checkpoint=path)
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["fastvae.evaluation"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    header["unfinished"] = {"points_done": 0}
    path.write_bytes(safetensors.torch.save(tensors, {"fastvae.evaluation": json.dumps(header)}))
    with pytest.raises(ValueError, match="is damaged: its header says"):
        evaluate(checkpoint=path)


def test_the_bar_starts_where_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(log_joint=stopping_after(30, KeyboardInterrupt()), checkpoint=tmp_path / "a")
    evaluate(checkpoint=tmp_path / "a", progress=True)
    shown = capsys.readouterr().err
    assert "14.0k/14.0k" in shown
    assert "| 0.00/14.0k" not in shown


def test_no_datapoints_are_finished_at_once(tmp_path: Path) -> None:
    assert evaluate(X[:0], checkpoint=tmp_path / "a").log_prob.shape == (0,)
