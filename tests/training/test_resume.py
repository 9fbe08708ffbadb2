"""Interrupted at any step and resumed: the same bits as a run that was not interrupted."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvae import checkpoint
from fastvae.training import Fit, Interrupted, fit


class Noisy(nn.Module):
    """Draws from torch's generator in training: dropout, and noise in the loss."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.width = width
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 3))

    def config(self) -> dict[str, Any]:
        return {"width": self.width}


def loss(model: Noisy, batch: Tensor) -> Tensor:
    return (model.net(batch + 0.1 * torch.randn_like(batch)) - batch).square().sum(-1)


TRAIN = torch.randn(22, 3, generator=torch.Generator().manual_seed(1))  # 5 batches of 5, the last one of 2
VALID = torch.randn(9, 3, generator=torch.Generator().manual_seed(2))
OPTIONS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 5,
    "learning_rate": 0.02,
    "clip_norm": 1.0,
    "seed": 3,
    "progress": False,
}


def new_model() -> Noisy:
    torch.manual_seed(0)
    return Noisy()


def epoch_images(epoch: int) -> Tensor:
    return TRAIN + 0.01 * epoch


class Stop:
    """A loss during whose n-th call Ctrl-C is pressed."""

    def __init__(self, call: int) -> None:
        self.call, self.calls = call, 0

    def __call__(self, model: Noisy, batch: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            signal.raise_signal(signal.SIGINT)
        return loss(model, batch)


@pytest.fixture(autouse=True)
def python_handles_ctrl_c() -> Any:
    """As in a terminal, even where the tests themselves were started in the background."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Noisy, Fit, Path]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    model = new_model()
    return model, fit(model, loss, epoch_images, VALID, folder=folder, **OPTIONS), folder


def assert_same_run(folder: Path, other: Path, model: Noisy) -> None:
    ours, state = checkpoint.read_training(folder, model)
    want, want_state = checkpoint.read_training(other, model)
    assert state == want_state
    assert ours.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(ours[name], tensor), name
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("step", [1, 3, 5, 8, 20])  # first, inside, the end of an epoch, inside the second, the last
def test_a_run_interrupted_within_an_epoch_ends_with_the_same_bits(
    step: int, tmp_path: Path, uninterrupted: tuple[Noisy, Fit, Path]
) -> None:
    model, want, reference = uninterrupted
    with pytest.raises(Interrupted, match=rf"after step {step}; saved in .*run: go on with resume=True"):
        fit(new_model(), Stop(step), epoch_images, VALID, folder=tmp_path / "run", valid_loss=loss, **OPTIONS)
    torch.manual_seed(99)  # what happens between the parts must not matter
    again = Noisy()
    result = fit(again, loss, epoch_images, VALID, folder=tmp_path / "run", resume=True, **OPTIONS)
    assert result == want
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert_same_run(tmp_path / "run", reference, again)


def test_an_interruption_during_validation_is_served_between_its_batches(
    tmp_path: Path, uninterrupted: tuple[Noisy, Fit, Path]
) -> None:
    stop = Stop(3)  # the first batch of the second validation: two batches each
    with pytest.raises(Interrupted, match="interrupted in epoch 2 after step 10"):
        fit(new_model(), loss, epoch_images, VALID, folder=tmp_path / "run", valid_loss=stop, **OPTIONS)
    assert stop.calls == 3
    fit(Noisy(), loss, epoch_images, VALID, folder=tmp_path / "run", resume=True, **OPTIONS)
    assert_same_run(tmp_path / "run", uninterrupted[2], Noisy())


def test_many_interruptions_are_as_good_as_none(tmp_path: Path, uninterrupted: tuple[Noisy, Fit, Path]) -> None:
    model, interruptions = new_model(), 0
    while True:
        try:
            fit(
                model,
                Stop(3),
                epoch_images,
                VALID,
                folder=tmp_path / "run",
                valid_loss=loss,
                resume=interruptions > 0,
                **OPTIONS,
            )
            break
        except Interrupted:
            interruptions += 1
            model = Noisy()
    assert interruptions == 6  # 20 steps, three at a time
    assert_same_run(tmp_path / "run", uninterrupted[2], model)


def test_a_killed_run_goes_on_from_the_last_saved_step(tmp_path: Path, uninterrupted: tuple[Noisy, Fit, Path]) -> None:
    class Killed(BaseException):
        pass

    class Kill(Stop):
        def __call__(self, model: Noisy, batch: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == self.call:
                raise Killed
            return loss(model, batch)

    for step, options in ((9, {}), (9, {"save_seconds": 0.0})):
        folder = tmp_path / f"run-{len(options)}"
        with pytest.raises(Killed):
            fit(new_model(), Kill(step), epoch_images, VALID, folder=folder, valid_loss=loss, **OPTIONS, **options)
        saved = checkpoint.read_training(folder, Noisy())[1]["fit"]["step"]
        assert saved == (8 if options else 5)  # every step, or every epoch
        fit(Noisy(), loss, epoch_images, VALID, folder=folder, resume=True, **OPTIONS)
        assert_same_run(folder, uninterrupted[2], Noisy())


def test_a_finished_run_may_be_prolonged(tmp_path: Path, uninterrupted: tuple[Noisy, Fit, Path]) -> None:
    short = OPTIONS | {"epochs": 2}
    fit(new_model(), loss, epoch_images, VALID, folder=tmp_path / "run", **short)
    calls = Stop(-1)
    fit(Noisy(), calls, epoch_images, VALID, folder=tmp_path / "run", resume=True, valid_loss=loss, **short)
    assert calls.calls == 0
    fit(Noisy(), loss, epoch_images, VALID, folder=tmp_path / "run", resume=True, **OPTIONS)
    assert_same_run(tmp_path / "run", uninterrupted[2], Noisy())


def test_a_checkpoint_holds_the_best_weights_apart_from_the_state_of_the_optimiser(tmp_path: Path) -> None:
    model, validations = Noisy(), iter(range(100))

    def worse_each_time(model: Noisy, batch: Tensor) -> Tensor:
        return torch.tensor(float(next(validations)))

    result = fit(model, loss, TRAIN, VALID, folder=tmp_path / "run", valid_loss=worse_each_time, **OPTIONS)
    assert (result.best_epoch, result.epoch) == (1, 4)
    best = checkpoint.load_model(tmp_path / "run", {"Noisy": Noisy})
    last = checkpoint.load_model(tmp_path / "run", {"Noisy": Noisy}, weights="last")
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), model.parameters(), strict=True))
    assert not torch.equal(best.net[0].weight, last.net[0].weight)


def test_the_best_weights_of_before_an_interruption_are_not_forgotten(tmp_path: Path) -> None:
    class WorseEachTime:
        calls = 0

        def __call__(self, model: Noisy, batch: Tensor) -> Tensor:
            self.calls += 1
            return torch.tensor(float(self.calls))

    folder, worse = tmp_path / "run", WorseEachTime()
    with pytest.raises(Interrupted):
        fit(new_model(), Stop(12), TRAIN, VALID, folder=folder, valid_loss=worse, **OPTIONS)
    after = fit(again := Noisy(), loss, TRAIN, VALID, folder=folder, valid_loss=worse, resume=True, **OPTIONS)
    assert after.best_epoch == 1
    first = new_model()
    fit(first, loss, TRAIN, VALID, **(OPTIONS | {"epochs": 1}))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), first.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 6}, "batch_size was 5 when .* got 6: a resumed run needs the same settings"),
        ({"learning_rate": 0.1}, "learning_rate was 0.02"),
        ({"clip_norm": None}, "clip_norm was 1.0"),
        ({"seed": 4}, "seed was 3"),
        ({"train": TRAIN + 1}, r"train was \(22, 3\) torch.float32 .* when"),
        ({"valid": None}, r"valid was \(9, 3\)"),
        ({"model": Noisy(6)}, r"holds another model: its config is \{'width': 5\}, expected \{'width': 6\}"),
    ],
)
def test_a_run_is_not_resumed_as_another(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model": Noisy(), "loss": loss, "train": TRAIN, "valid": VALID, **OPTIONS}
    fit(**(arguments | {"epochs": 1}), folder=tmp_path / "run")
    before = (tmp_path / "run" / "training.safetensors").read_bytes()
    with pytest.raises(ValueError, match=says):
        fit(**(arguments | change), folder=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "training.safetensors").read_bytes() == before


def without(tensors: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda t, s: (t, {}), "its state lacks identity"),
        (lambda t, s: (t, s | {"identity": {}}), "identity of its state lacks batch_size, learning_rate"),
        (lambda t, s: (t, {key: s[key] for key in ("identity", "fit")}), "its state lacks moments"),
        (lambda t, s: (t, s | {"moments": [7]}), r"'moments' must be numbers below 4, got \[7\]"),
        (lambda t, s: (t, s | {"fit": {"epoch": 1}}), "fit of its state lacks batch, step"),
        (lambda t, s: (t, s | {"fit": s["fit"] | {"step": "x"}}), "fit of its state cannot have step 'x'"),
        (lambda t, s: (t, s | {"fit": s["fit"] | {"moon": 1}}), "fit of its state cannot have moon 1"),
        (lambda t, s: (without(t, "random."), s), "it lacks random.cpu"),
        (lambda t, s: (t | {"random.cpu": torch.zeros(3)}, s), r"random.cpu has shape \(3,\) and torch.float32"),
        (lambda t, s: (without(t, "optimizer.1."), s), "it lacks optimizer.1.exp_avg, optimizer.1.exp_avg_sq"),
        (lambda t, s: (t | {"optimizer.9.step": torch.ones(())}, s), "it has unknown optimizer.9.step"),
        (lambda t, s: (t | {"optimizer.0.exp_avg": torch.ones(2)}, s), r"optimizer.0.exp_avg has shape \(2,\)"),
        (lambda t, s: (t | {"moon.0": torch.ones(2)}, s), "moon.0 belongs to none of model, best, optimizer, random"),
        (lambda t, s: (without(t, "best."), s), "best, is of another model: it lacks net.0.bias"),
        (lambda t, s: (without(t, "model.net.0"), s), "model, is of another model: it lacks net.0.bias"),
    ],
)
def test_a_damaged_state_is_refused_before_anything_is_taken_from_it(
    damage: Any, says: str, tmp_path: Path, uninterrupted: tuple[Noisy, Fit, Path]
) -> None:
    model = new_model()
    tensors, state = checkpoint.read_training(uninterrupted[2], model)
    checkpoint.create(tmp_path / "run", model)
    checkpoint.write_training(tmp_path / "run", *damage(tensors, state))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=says) as error:
        fit(model, loss, epoch_images, VALID, folder=tmp_path / "run", resume=True, **OPTIONS)
    assert "training.safetensors" in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_state_that_is_no_object_is_refused(tmp_path: Path) -> None:
    checkpoint.create(tmp_path / "run", new_model())
    checkpoint.write_training(tmp_path / "run", {"a": torch.ones(1)}, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"training\.safetensors holds no state of a run: .* got list"):
        checkpoint.read_training(tmp_path / "run", new_model())


def test_a_parameter_without_a_gradient_does_not_stop_a_run_from_being_resumed(tmp_path: Path) -> None:
    class Idle(Noisy):
        def __init__(self, width: int = 5) -> None:
            super().__init__(width)
            self.idle = nn.Parameter(torch.ones(3))

    for epochs, resume in ((1, False), (2, True)):
        fit(Idle(), loss, TRAIN, folder=tmp_path / "run", resume=resume, **(OPTIONS | {"epochs": epochs}))
    tensors, state = checkpoint.read_training(tmp_path / "run", Idle())
    assert torch.equal(tensors["model.idle"], torch.ones(3))
    assert len(state["moments"]) == len(list(Idle().parameters())) - 1


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run is not a checkpoint: it is not a folder"):
        fit(Noisy(), loss, TRAIN, folder=tmp_path / "run", resume=True, **OPTIONS)


def test_without_a_folder_ctrl_c_still_stops_at_a_step(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="after step 2; nothing was saved: fit had no folder"):
        fit(Noisy(), Stop(2), TRAIN, **OPTIONS)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    class Impatient(Stop):
        def __call__(self, model: Noisy, batch: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return loss(model, batch)

    stop = Impatient(2)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        fit(Noisy(), stop, TRAIN, **OPTIONS)
    assert not isinstance(interrupt.value, Interrupted)
    assert stop.calls == 2


def test_training_in_another_thread_leaves_signals_alone() -> None:
    results: list[Fit] = []
    thread = threading.Thread(target=lambda: results.append(fit(Noisy(), loss, TRAIN, **OPTIONS)))
    thread.start()
    thread.join()
    assert results[0].epoch == 4
