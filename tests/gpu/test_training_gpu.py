"""Training on a card: batches and noise live there, and an interrupted run still ends with the same bits."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvae import checkpoint
from fastvae.training import Interrupted, fit, mean_loss

pytestmark = pytest.mark.gpu
TRAIN = torch.randn(22, 3, generator=torch.Generator().manual_seed(1))
VALID = torch.randn(9, 3, generator=torch.Generator().manual_seed(2))


class Noisy(nn.Module):
    """Dropout, and noise in the loss, from the generator of the card."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3))

    def config(self) -> dict[str, Any]:
        return {}


class Loss:
    """During its n-th call Ctrl-C is pressed."""

    def __init__(self, stop_at: int = -1) -> None:
        self.stop_at, self.calls = stop_at, 0

    def __call__(self, model: Noisy, batch: Tensor) -> Tensor:
        assert batch.is_cuda
        self.calls += 1
        if self.calls == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        return (model.net(batch + 0.1 * torch.randn_like(batch)) - batch).square().sum(-1)


def new_model(seed: int = 0) -> Noisy:
    torch.manual_seed(seed)
    return Noisy().cuda()


def run(model: Noisy, loss: Loss, folder: Path, **options: Any) -> Any:
    return fit(
        model, loss, TRAIN, VALID, valid_loss=Loss(), epochs=3, batch_size=5, progress=False, folder=folder, **options
    )


@pytest.fixture(autouse=True)
def _python_handles_ctrl_c() -> Any:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_a_run_interrupted_within_an_epoch_ends_with_the_same_bits(tmp_path: Path) -> None:
    model = new_model()
    want = run(model, Loss(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(new_model(), Loss(stop_at=7), tmp_path / "parts")
    again = new_model(seed=9)
    assert run(again, Loss(), tmp_path / "parts", resume=True) == want
    tensors, _ = checkpoint.read_training(tmp_path / "parts", again)
    for name, tensor in checkpoint.read_training(tmp_path / "whole", model)[0].items():
        assert torch.equal(tensors[name], tensor), name


def test_random_state_of_the_card_is_left_alone(tmp_path: Path) -> None:
    model = new_model()
    before = torch.cuda.get_rng_state()
    run(model, Loss(), tmp_path / "run")
    mean_loss(model, Loss(), VALID)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_checkpoint_of_the_card_is_read_on_the_cpu(tmp_path: Path) -> None:
    model = new_model()
    run(model, Loss(), tmp_path / "run")
    again = checkpoint.load_model(tmp_path / "run", {"Noisy": Noisy})
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert ours.device.type == "cpu"
        assert torch.equal(ours, theirs.cpu())
