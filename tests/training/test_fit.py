"""Training: right averages, selection by validation alone, and clear words when something is wrong."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvae.training import fit, mean_loss


class Mean(nn.Module):
    """One parameter; the loss below is the squared distance of it, disturbed by noise, to the data."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.start = start
        self.value = nn.Parameter(torch.tensor(start))

    def config(self) -> dict[str, Any]:
        return {"start": self.start}


def distance(model: Mean, batch: Tensor) -> Tensor:
    return (model.value - batch).square().sum(-1)


def noisy(model: Mean, batch: Tensor) -> Tensor:
    return (model.value + torch.randn(len(batch), 1) - batch).square().sum(-1)


DATA = torch.arange(7.0)[:, None]


def quietly(model: nn.Module, loss: Any, train: Any, valid: Tensor | None = None, **options: Any) -> Any:
    return fit(model, loss, train, valid, **({"epochs": 1, "batch_size": 3, "progress": False} | options))


def test_averages_weigh_datapoints_not_batches() -> None:
    frozen = 1e-12  # a learning rate that moves nothing
    result = quietly(Mean(), distance, DATA, DATA[:5], learning_rate=frozen)
    assert result.history[0]["train"] == pytest.approx(DATA.square().mean().item(), rel=1e-6)
    assert result.history[0]["valid"] == pytest.approx(DATA[:5].square().mean().item(), rel=1e-6)
    # a loss that gives the mean of a batch leads to the same
    result = quietly(Mean(), lambda m, x: distance(m, x).mean(), DATA, DATA[:5], learning_rate=frozen)
    assert result.history[0]["train"] == pytest.approx(DATA.square().mean().item(), rel=1e-6)


def test_every_datapoint_is_seen_once_per_epoch_in_a_new_order() -> None:
    seen: list[list[float]] = [[]]

    def spy(model: Mean, batch: Tensor) -> Tensor:
        if len(seen[-1]) == len(DATA):
            seen.append([])
        seen[-1] += batch.flatten().tolist()
        return distance(model, batch)

    quietly(Mean(), spy, DATA, epochs=3)
    assert all(sorted(order) == DATA.flatten().tolist() for order in seen)
    assert len({tuple(order) for order in seen}) == 3


def test_a_run_depends_on_its_seed_and_leaves_the_random_state_alone() -> None:
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(ends))
        before = torch.get_rng_state()
        model = Mean()
        quietly(model, noisy, DATA, DATA, epochs=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(model.value.item())
    assert ends[0] == ends[1] != ends[2]


def test_first_step_is_that_of_adam_with_the_clipped_gradient() -> None:
    ours, theirs = nn.Linear(3, 1), nn.Linear(3, 1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3)
    quietly(ours, lambda m, b: m(b).square().sum(-1) * 100, x, batch_size=4, clip_norm=1.0, epsilon=1.0)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3, eps=1.0)
    (theirs(x).square().sum(-1) * 100).mean().backward()
    norm = torch.cat([p.grad.flatten() for p in theirs.parameters()]).norm()
    assert norm > 1
    for parameter in theirs.parameters():
        parameter.grad /= norm
    optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_the_best_weights_on_validation_are_left_not_the_last() -> None:
    train, valid = torch.full((4, 1), 10.0), torch.full((4, 1), 3.0)
    model = Mean()
    result = quietly(model, distance, train, valid, epochs=40, learning_rate=0.2)
    losses = [entry["valid"] for entry in result.history]
    assert result.best_epoch == losses.index(min(losses)) + 1 < 40
    assert distance(model, valid).mean().item() == pytest.approx(min(losses))


def test_without_validation_the_last_weights_stay() -> None:
    model = Mean()
    result = quietly(model, distance, DATA, epochs=3, learning_rate=0.2)
    assert result.best_epoch == 3
    assert result.history[-1]["valid"] is None
    assert model.value.item() > 1


def test_patience_stops_after_epochs_without_a_better_validation_loss() -> None:
    train, valid = torch.full((4, 1), 10.0), torch.full((4, 1), 3.0)
    result = quietly(Mean(), distance, train, valid, epochs=100, learning_rate=0.2, patience=4)
    assert result.epoch == result.best_epoch + 4 < 100


def test_validation_noise_is_the_same_each_time_and_in_evaluation_mode() -> None:
    values = []

    def valid_loss(model: Mean, batch: Tensor) -> Tensor:
        assert not model.training
        assert not torch.is_grad_enabled()
        values.append(torch.randn(()).item())
        return distance(model, batch)

    model = Mean().train()
    result = quietly(model, noisy, DATA, DATA[:2], epochs=3, valid_loss=valid_loss)
    assert len(values) == 3
    assert len(set(values)) == 1
    assert model.training
    assert len(result.history) == 3


def test_images_may_depend_on_the_epoch() -> None:
    asked = []

    def images(epoch: int) -> Tensor:
        asked.append(epoch)
        return DATA + epoch

    result = quietly(Mean(), distance, images, epochs=3, learning_rate=1e-12)
    assert asked == [0, 1, 2]
    assert result.history[2]["train"] == pytest.approx((DATA + 2).square().mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match="7 datapoints in every epoch, got 6"):
        quietly(Mean(), distance, lambda epoch: DATA[epoch:], epochs=2)


def test_learning_rate_may_depend_on_the_epoch() -> None:
    asked = []

    def rate(epoch: int) -> float:
        asked.append(epoch)
        return 0.5 if epoch == 1 else 1e-12

    model = Mean()
    quietly(model, distance, DATA[:3] + 5, epochs=3, learning_rate=rate)
    assert model.value.item() == pytest.approx(0.5, rel=1e-4)  # Adam's step is the learning rate while gradients agree
    assert set(asked) == {0, 1, 2}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step_and_spares_the_weights(bad: float) -> None:
    calls: list[float] = []
    model = Mean()

    def breaks(model: Mean, batch: Tensor) -> Tensor:
        calls.append(model.value.item())
        return distance(model, batch) + (bad if len(calls) == 5 else 0.0)

    with pytest.raises(RuntimeError, match=rf"loss became {bad} in step 5 \(epoch 2, batch 2\)"):
        quietly(model, breaks, DATA, epochs=4)
    assert model.value.item() == calls[4]


def test_a_gradient_that_is_not_finite_is_an_error_too() -> None:
    with pytest.raises(RuntimeError, match="gradient's norm became inf in step 1"):
        quietly(Mean(), lambda m, x: m.value.sqrt() + 0 * x.sum(-1), DATA)


def test_a_validation_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="validation loss became nan after epoch 1"):
        quietly(Mean(), distance, DATA, torch.full((2, 1), math.nan))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"patience": 0, "valid": DATA}, "patience must be"),
        ({"patience": 2}, "patience needs valid"),
        ({"learning_rate": -1.0}, "learning_rate must be positive and finite, got -1"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, got nan"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"seed": -1}, "seed must be in"),
        ({"valid": DATA[:0]}, "valid must hold at least one"),
        ({"train": DATA[:0]}, "train must be a tensor"),
        ({"train": [1, 2]}, "train must be a tensor"),
        ({"resume": True}, "resume=True needs folder"),
        ({"loss": lambda m, x: x}, r"loss must return nats per datapoint, \(3,\), or their mean, \(\); got \(3, 1\)"),
        ({"loss": lambda m, x: 1.0}, "got float"),
        ({"loss": lambda m, x: x.sum(-1)}, "loss must depend on the parameters"),
        ({"model": nn.Identity()}, "model must have parameters"),
    ],
)
def test_bad_arguments(options: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"model": Mean(), "loss": distance, "train": DATA} | options
    with pytest.raises(ValueError, match=says):
        quietly(**arguments)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 0.5}, r"seed must be an integer in \[0, 2\^63\), got 0.5"),
        ({"seed": True}, "seed must be an integer"),
        ({"learning_rate": "a"}, "learning_rate must be a number, got 'a'"),
        ({"learning_rate": None}, "learning_rate must be a number, got None"),
        ({"epsilon": "tiny"}, "epsilon must be a number, got 'tiny'"),
        ({"clip_norm": [1.0]}, r"clip_norm must be a number, got \[1.0\]"),
    ],
)
def test_arguments_of_another_type_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        quietly(Mean(), distance, DATA, **options)


def test_an_existing_folder_is_not_trained_into(tmp_path: Path) -> None:
    quietly(Mean(), distance, DATA, folder=tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match="run exists already; nothing was overwritten"):
        quietly(Mean(), distance, DATA, folder=tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_mean_loss_is_the_same_for_every_batch_size() -> None:
    x = torch.randn(23, 4, dtype=torch.float64)
    means = [mean_loss(nn.Identity(), lambda m, b: b.square().sum(-1), x, batch_size=size) for size in (1, 5, 22, 100)]
    assert means == pytest.approx([x.square().sum(-1).mean().item()] * 4, rel=1e-12)
    with pytest.raises(ValueError, match="images must hold at least one"):
        mean_loss(nn.Identity(), lambda m, b: b, x[:0])
