"""Which backend runs a plan, what a forced one says where it cannot, and what the sampler prints."""

import pytest
import torch
from networks_in_the_wild import ShiftAndCrop, plain
from torch import nn

import fastvae
from fastvae import compile_sampler
from fastvae.models import PixelCNN

SHAPE = (1, 5, 5)


def sampler_for(backend: str, model: nn.Module | None = None, **options: object) -> fastvae.sampling.Sampler:
    return compile_sampler(model or PixelCNN(SHAPE, "bernoulli", 4, 1), SHAPE, "bernoulli", backend=backend, **options)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of .*'cuda_graph'.* got 'cuda'"):
        sampler_for("cuda")


def test_on_the_cpu_torch_is_chosen() -> None:
    model = PixelCNN(SHAPE, "bernoulli", 4, 1)
    sampler = sampler_for("auto", model)
    assert torch.equal(sampler(3).samples, sampler_for("torch", model)(3).samples)
    text = repr(sampler)
    assert "auto: torch, as the model is on the CPU" in text
    assert "cuda_graph    it needs a CUDA device, the model is on cpu" in text
    assert "triton        it needs a CUDA device" in text


def test_a_backend_that_cannot_run_says_why() -> None:
    with pytest.raises(RuntimeError, match="'cuda_graph' is wanted but cannot run: it needs a CUDA device"):
        sampler_for("cuda_graph")(2)
    with pytest.raises(RuntimeError, match="'triton' is forced but cannot run: it needs CUDA tensors"):
        sampler_for("triton")(2)
    sampler = sampler_for("auto")
    with fastvae.backend("triton"), pytest.raises(RuntimeError, match="it needs CUDA tensors"):
        sampler(2)
    with fastvae.backend("torch"):
        assert sampler(2, verify=True).certificate.ok


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ShiftAndCrop().float(), "it "),
        (plain().double(), "the net in torch.float64"),
        (plain(width=200).float(), "holds up to 64 channels in torch.float32, the net has 256"),
    ],
)
def test_the_reason_why_no_kernel_serves_is_printed(model: nn.Module, reason: str) -> None:
    pytest.importorskip("triton")
    (line,) = (line for line in repr(sampler_for("auto", model)).splitlines() if line.strip().startswith("triton"))
    assert reason in line
