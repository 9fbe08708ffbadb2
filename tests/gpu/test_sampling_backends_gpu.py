"""Backends of planned sampling on a CUDA device: certified, and the images of the steps on torch."""

import pytest
import torch
from torch import Tensor, nn

from fastvae import compile_sampler
from fastvae.models import PixelCNN
from fastvae.nn import CausalStack

pytestmark = pytest.mark.gpu


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = CausalStack(1, 32, 4, 3, 5)
        self.last = nn.Conv2d(32, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.stack(x).relu())


def network(kind: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    net = PixelCNN((1, 14, 13), "bernoulli", 32, 3) if kind == "plain" else Gated()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    return net.to("cuda", dtype)


@pytest.mark.parametrize("backend", ["cuda_graph", "triton"])
@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, "highest"), (torch.float32, "high"),
                                                  (torch.bfloat16, "highest")])  # fmt: skip
def test_many_images_are_certified(backend: str, kind: str, dtype: torch.dtype, precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        sampler = compile_sampler(network(kind, dtype), (1, 14, 13), "bernoulli", backend=backend)
        for batch in (1, 1000):
            assert sampler(batch, seed=3, verify=True).certificate.ok
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", ["cuda_graph", "triton"])
def test_runs_repeat_and_follow_the_weights(backend: str) -> None:
    net = network("plain", torch.float32)
    sampler = compile_sampler(net, backend=backend)
    first, again = sampler(300), sampler(300)
    assert torch.equal(first.samples, again.samples)
    assert torch.equal(first.log_prob, again.log_prob)
    with torch.no_grad():
        net.last.bias.add_(2.0)
    moved = sampler(300, verify=True)
    assert moved.certificate.ok
    assert moved.samples.mean() > first.samples.mean()


def test_a_graph_draws_the_images_of_torch() -> None:
    net = network("gated", torch.float64)
    wanted = compile_sampler(net, (1, 14, 13), "bernoulli", backend="torch")(20, seed=1)
    got = compile_sampler(net, (1, 14, 13), "bernoulli", backend="cuda_graph")(20, seed=1, verify=True)
    assert torch.equal(got.samples, wanted.samples)
    assert got.certificate.mismatches == 0
