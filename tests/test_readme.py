"""The README's examples run as they are printed."""

import re
from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, Normal

from fastvae.__main__ import main
from fastvae.distributions import Bernoulli
from fastvae.models import PixelCNN

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_examples_run() -> None:
    class Encoder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Independent:
            return Independent(Normal(x.flatten(1)[:, :4], 1.0), 1)

    class Decoder(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> Bernoulli:
            return Bernoulli(z.repeat_interleave(4, -1).unflatten(-1, (1, 4, 4)))

    names = {
        "model": PixelCNN((1, 8, 8), channels=4, num_blocks=1),
        "x": torch.randint(0, 2, (3, 1, 4, 4)).float(),
        "encoder": Encoder(),
        "decoder": Decoder(),
        "prior": Independent(Normal(torch.zeros(4), 1.0), 1),
        "pixelcnn": PixelCNN((1, 28, 28), channels=4, num_blocks=2),
    }
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3, "one for each use"
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["result"].log_prob.shape == (3,)
    assert names["sampler"].plan.num_steps == 136
    assert names["out"].certificate.ok


def test_the_commands_exist_with_the_options_shown(capsys) -> None:
    lines = re.findall(
        r"python -m fastvae (train|evaluate|calibrate|sample|demo|reproduce|accelerate-report)(.*)", README
    )
    assert {command for command, _ in lines} == {
        "train",
        "evaluate",
        "calibrate",
        "sample",
        "demo",
        "reproduce",
        "accelerate-report",
    }
    for command, options in lines:
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0
        text = capsys.readouterr().out
        for option in re.findall(r"(--[a-z-]+)", options):
            assert option in text, f"{command} has no {option}"


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 120
