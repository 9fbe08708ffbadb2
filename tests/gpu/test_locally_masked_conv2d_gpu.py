"""The locally masked convolution kernels on a card: right in every order, repeatable, working with autograd."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which is not installed")

from fastvae_kernels import locally_masked_conv2d as kernels

import fastvae
from fastvae import ops, reference
from fastvae.nn import LocallyMaskedConv2d

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZE = (28, 29)
# one pair for every row of the table, and channels that fill no block
CHANNELS = [(1, 64), (3, 130), (64, 3), (16, 16), (32, 32), (64, 64), (120, 120)]


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan_and_torch_is_exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def bits(name: Any, kernel_size: int, mask: Any = "B", dilation: int = 1, seed: int = 0) -> Tensor:
    order = ops.generation_order(name, SIZE, seed=seed if name == "random" else None)
    return ops.tap_bits(order, SIZE, kernel_size, mask=mask, dilation=dilation).cuda()


def tensors(in_channels: int, out_channels: int, kernel_size: int, dtype: torch.dtype, batch: int = 3) -> list[Tensor]:
    x = torch.randn(batch, in_channels, *SIZE, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size, device="cuda", dtype=dtype)
    grad_y = torch.randn(batch, out_channels, *SIZE, device="cuda", dtype=dtype)
    return [x, weight / in_channels**0.5, torch.randn(out_channels, device="cuda", dtype=dtype), grad_y]


def forward_and_gradients(function: Any, x: Tensor, weight: Tensor, bias: Tensor, grad_y: Tensor) -> list[Tensor]:
    inputs = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y.to(y.dtype))]


def ours(mask: Tensor, dilation: int = 1, backend: Any = "triton") -> Any:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with fastvae.backend(backend):  # left before the backward pass
            return ops.locally_masked_conv2d(x, weight, bias, mask=mask, dilation=dilation)

    return function


def definition(mask: Tensor, dilation: int = 1) -> Any:
    return lambda x, weight, bias: reference.locally_masked_conv2d(x, weight, bias, mask, dilation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("in_channels", "out_channels"), CHANNELS)
@pytest.mark.parametrize(
    ("name", "kernel_size", "mask", "dilation"),
    [("raster", 1, "B", 1), ("random", 3, "A", 2), ("s_curve", 5, "B", 1), ("hilbert", 7, "A", 1)],
)
def test_errs_at_most_twice_as_much_as_torch_in_the_same_dtype(
    name: Any, kernel_size: int, mask: Any, dilation: int, in_channels: int, out_channels: int, dtype: torch.dtype
) -> None:
    # 90 images: no tile is made smaller so that there are enough of them
    given = tensors(in_channels, out_channels, kernel_size, dtype, batch=90 if kernel_size == 3 else 3)
    taps = bits(name, kernel_size, mask, dilation)
    # tensor cores truncate where they add: three float32 products may lose a few bits more than one fused one
    slack = (32 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps
    exact = forward_and_gradients(definition(taps, dilation), *(t.double() for t in given))
    theirs = forward_and_gradients(definition(taps, dilation), *given)
    got = forward_and_gradients(ours(taps, dilation), *given)
    for part, a, b, want in zip(("y", "x", "weight", "bias"), got, theirs, exact, strict=True):
        allowed = 2 * (b - want).abs().max() + slack * want.abs().max()
        assert (a - want).abs().max() <= allowed, part


@pytest.mark.parametrize("channels", [3, 64])
def test_every_image_may_have_its_own_order_and_any_bits(channels: int) -> None:
    given = tensors(channels, 64, 5, torch.float32)
    for masks in (
        torch.stack([bits(name, 5, seed=7) for name in ("random", "hilbert", "s_curve")]),
        torch.randint(0, 1 << 62, (3, *SIZE), device="cuda"),
    ):
        exact = forward_and_gradients(definition(masks), *(t.double() for t in given))
        for a, want in zip(forward_and_gradients(ours(masks), *given), exact, strict=True):
            torch.testing.assert_close(a.double(), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_runs_repeat_bit_by_bit(dtype: torch.dtype) -> None:
    given = tensors(64, 64, 5, dtype)
    first = forward_and_gradients(ours(bits("hilbert", 5)), *given)
    for _ in range(5):
        again = forward_and_gradients(ours(bits("hilbert", 5)), *given)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("mask", ["A", "B"])
def test_an_invalid_pixel_spoils_exactly_the_outputs_that_may_see_it(mask: Any, channels: int) -> None:
    x, weight, _, _ = tensors(channels, 64, 5, torch.bfloat16)
    taps = bits("random", 5, mask)
    x[1, 0, 11, 13] = float("nan")
    spoilt = kernels.forward(x, weight, None, taps, 1).isnan().any(1)
    poison = torch.zeros(1, 1, *SIZE, device="cuda")
    poison[0, 0, 11, 13] = 1
    sees = reference.locally_masked_conv2d(poison, torch.ones(1, 1, 5, 5, device="cuda"), None, taps)[0, 0] != 0
    assert torch.equal(spoilt[1], sees)
    assert not spoilt[[0, 2]].any()


def test_the_torch_path_on_cuda_is_right_too() -> None:
    given = [t.double() for t in tensors(16, 24, 3, torch.float32)]
    taps = bits("hilbert", 3)
    for a, want in zip(
        forward_and_gradients(ours(taps, backend="torch"), *given),
        forward_and_gradients(definition(taps), *given),
        strict=True,
    ):
        torch.testing.assert_close(a, want)


@pytest.mark.parametrize("shape", [(0, 64, 28, 29), (2, 1, 28, 29)])
def test_small_batches_are_served(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape, device="cuda"), torch.randn(32, shape[1], 7, 7, device="cuda")
    given = (x, weight, torch.randn(32, device="cuda"), torch.randn(shape[0], 32, *shape[2:], device="cuda"))
    taps = bits("s_curve", 7, "A")
    for a, b in zip(
        forward_and_gradients(ours(taps), *given), forward_and_gradients(definition(taps), *given), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_offsets_beyond_32_bits_are_right() -> None:
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)
    images = 2**31 // (SIZE[0] * SIZE[1] * 64) + 2
    x = torch.empty(images, 64, *SIZE, device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last).zero_()
    x[-1].normal_()
    assert x.numel() > 2**31
    weight, taps = torch.randn(64, 64, 3, 3, device="cuda", dtype=torch.bfloat16) / 8, bits("s_curve", 3)
    y = kernels.forward(x, weight, None, taps, 1)
    torch.testing.assert_close(y[-1:], kernels.forward(x[-1:], weight, None, taps, 1))
    assert (y[-3:-1] == 0).all()
    grad = kernels.grad_weight(x, y, 3, taps, 1)
    torch.testing.assert_close(grad, kernels.grad_weight(x[-1:], y[-1:], 3, taps, 1), rtol=2e-2, atol=2e-2)


def test_compiles_without_graph_breaks_and_replays_as_a_graph() -> None:
    x, weight, bias, grad_y = tensors(64, 64, 3, torch.float32)
    torch.use_deterministic_algorithms(False)
    taps = bits("hilbert", 3)
    with fastvae.backend("triton"):
        compiled = torch.compile(
            lambda *t: ops.locally_masked_conv2d(*t, mask=taps).relu(), fullgraph=True, backend="inductor"
        )
        got = forward_and_gradients(compiled, x, weight, bias, grad_y)
    want = forward_and_gradients(lambda *t: ours(taps)(*t).relu(), x, weight, bias, grad_y)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        expected = ours(taps)(x, weight, bias)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ours(taps)(x, weight, bias)
        x.copy_(x.flip(0))
        graph.replay()
    torch.testing.assert_close(y, expected.flip(0))


def test_a_module_trains_under_autocast_and_takes_the_kernels_by_itself() -> None:
    layer = LocallyMaskedConv2d(16, 16, 3, mask="B", order="hilbert", size=SIZE).cuda()
    assert layer.bits.is_cuda
    x = torch.randn(2, 16, *SIZE, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    exact = reference.locally_masked_conv2d(x.double(), layer.weight.double(), layer.bias.double(), layer.bits)
    torch.testing.assert_close(y.double(), exact, rtol=5e-2, atol=5e-2)
