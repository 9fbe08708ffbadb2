"""Planned sampling on a CUDA device: exact, certified, and the same images as on the CPU."""

import pytest
import torch

from fastvae import compile_sampler
from fastvae.models import PixelCNN

pytestmark = pytest.mark.gpu


def network(dtype: torch.dtype) -> PixelCNN:
    torch.manual_seed(0)
    net = PixelCNN((1, 12, 11), "bernoulli", channels=16, num_blocks=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0)
    return net.to(dtype)


def test_decoding_equals_the_parallel_pass() -> None:
    net = network(torch.float64).cuda()
    images = torch.rand(5, 1, 12, 11, dtype=torch.float64, device="cuda").round()
    with torch.no_grad():
        torch.testing.assert_close(compile_sampler(net).decode(images), net(images), rtol=1e-12, atol=1e-12)


def test_one_seed_gives_one_image_on_every_device() -> None:
    net = network(torch.float64)
    on_cpu = compile_sampler(net)(9, seed=4)
    on_cuda = compile_sampler(net.cuda())(9, seed=4, verify=True)
    assert on_cuda.certificate.mismatches == 0
    assert torch.equal(on_cuda.samples.cpu(), on_cpu.samples)
    torch.testing.assert_close(on_cuda.log_prob.cpu(), on_cpu.log_prob)


@pytest.mark.parametrize("batch", [1, 16, 200])
def test_single_precision_is_certified(batch: int) -> None:
    net = network(torch.float32)
    sampler = compile_sampler(net)
    net.cuda()  # planned again on the new device
    out = sampler(batch, verify=True)
    assert out.samples.is_cuda
    assert out.certificate.ok
