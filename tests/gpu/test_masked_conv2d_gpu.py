"""The masked convolution kernels on a card: every row of the table is right, repeatable, and works with autograd."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which is not installed")

from fastvae_kernels import masked_conv2d as kernels
from fastvae_kernels.masked_conv2d_config import is_fastest

import fastvae
from fastvae import ops, reference
from fastvae.nn import MaskedConv2d

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# one pair for every row of the table, and channels that fill no block
CHANNELS = [(1, 64), (3, 130), (64, 3), (16, 16), (32, 32), (64, 64), (128, 128), (120, 120), (64, 256)]


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan_and_torch_is_exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def tensors(in_channels: int, out_channels: int, kernel_size: int, dtype: torch.dtype, batch: int = 3) -> list[Tensor]:
    x = torch.randn(batch, in_channels, 28, 29, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size, device="cuda", dtype=dtype)
    grad_y = torch.randn(batch, out_channels, 28, 29, device="cuda", dtype=dtype)
    return [x, weight / in_channels**0.5, torch.randn(out_channels, device="cuda", dtype=dtype), grad_y]


def forward_and_gradients(function: Any, x: Tensor, weight: Tensor, bias: Tensor, grad_y: Tensor) -> list[Tensor]:
    inputs = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y.to(y.dtype))]


def ours(mask: Any, dilation: int = 1) -> Any:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with fastvae.backend("triton"):  # left before the backward pass
            return ops.masked_conv2d(x, weight, bias, mask=mask, dilation=dilation)

    return function


def definition(mask: Any, dilation: int = 1) -> Any:
    return lambda x, weight, bias: reference.masked_conv2d(x, weight, bias, mask, dilation)


MANY = 90  # images, for which no tile is made smaller so that there are enough of them
# every row with one kind of taps, two layers with the others: a cold compilation takes a second
LAYERS = [(MANY, 3, "B", 1, *channels, dtype) for channels in CHANNELS for dtype in DTYPES]
LAYERS += [
    (3, *taps, *channels, dtype)
    for taps in [(1, "B", 1), (3, "A", 2), (5, "B", 1), (7, "A", 1)]
    for channels in [(3, 130), (64, 64)]
    for dtype in [torch.float32, torch.bfloat16]
]


@pytest.mark.parametrize(("batch", "kernel_size", "mask", "dilation", "in_channels", "out_channels", "dtype"), LAYERS)
def test_errs_at_most_twice_as_much_as_torch_in_the_same_dtype(
    batch: int, kernel_size: int, mask: Any, dilation: int, in_channels: int, out_channels: int, dtype: torch.dtype
) -> None:
    given = tensors(in_channels, out_channels, kernel_size, dtype, batch)
    exact = forward_and_gradients(definition(mask, dilation), *(t.double() for t in given))
    theirs = forward_and_gradients(definition(mask, dilation), *given)
    got = forward_and_gradients(ours(mask, dilation), *given)
    # tensor cores truncate where they add: three float32 products may lose a few bits more than one fused one
    slack = (32 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps
    for name, a, b, want in zip(("y", "x", "weight", "bias"), got, theirs, exact, strict=True):
        allowed = 2 * (b - want).abs().max() + slack * want.abs().max()
        assert (a - want).abs().max() <= allowed, name


@pytest.mark.parametrize(("precision", "eps"), [("highest", 2.0**-18), ("high", 2.0**-9)])
def test_float32_products_are_as_precise_as_torch_is_told(precision: str, eps: float) -> None:
    torch.set_float32_matmul_precision(precision)
    given = tensors(64, 64, 3, torch.float32)
    exact = forward_and_gradients(definition("B"), *(t.double() for t in given))
    for a, want in zip(forward_and_gradients(ours("B"), *given), exact, strict=True):
        assert (a - want).abs().max() <= eps * want.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_runs_repeat_bit_by_bit(dtype: torch.dtype) -> None:
    given = tensors(64, 64, 5, dtype)
    first = forward_and_gradients(ours("B"), *given)
    for _ in range(5):
        again = forward_and_gradients(ours("B"), *given)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("mask", ["A", "B"])
def test_an_invalid_pixel_spoils_exactly_the_outputs_that_may_see_it(mask: Any, channels: int) -> None:
    x, weight, _, _ = tensors(channels, 64, 5, torch.bfloat16)
    i, j = 11, 13
    x[1, 0, i, j] = float("nan")
    spoilt = kernels.forward(x, weight, None, reference.count_live_taps(5, mask), 1, (2, 2)).isnan().any(1)
    rows, cols = torch.meshgrid(torch.arange(28, device="cuda"), torch.arange(29, device="cuda"), indexing="ij")
    in_reach = ((rows - i).abs() <= 2) & ((cols - j).abs() <= 2)
    later = (rows > i) | ((rows == i) & (cols > j)) | ((rows == i) & (cols == j) & (mask == "B"))
    assert torch.equal(spoilt[1], in_reach & later)
    assert not spoilt[[0, 2]].any()


def test_unaligned_and_sliced_inputs_are_served() -> None:
    x, weight, bias, grad_y = tensors(64, 64, 3, torch.float16)
    want = forward_and_gradients(ours("B"), x, weight, bias, grad_y)
    unaligned = torch.empty(x.numel() + 1, device="cuda", dtype=x.dtype)[1:].view(3, 28, 29, 64)
    unaligned.copy_(x.permute(0, 2, 3, 1))
    for other in (unaligned.permute(0, 3, 1, 2), torch.cat([x, x], 1)[:, 64:]):
        got = kernels.forward(other, weight, bias, 5, 1, (1, 1))
        torch.testing.assert_close(got, want[0])


@pytest.mark.parametrize("shape", [(0, 64, 28, 28), (1, 64, 1, 1), (2, 1, 5, 3)])
def test_small_shapes_are_served(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape, device="cuda"), torch.randn(32, shape[1], 7, 7, device="cuda")
    given = (x, weight, torch.randn(32, device="cuda"), torch.randn(shape[0], 32, *shape[2:], device="cuda"))
    for a, b in zip(
        forward_and_gradients(ours("A"), *given), forward_and_gradients(definition("A"), *given), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_offsets_beyond_32_bits_are_right() -> None:
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)
    images = 2**31 // (28 * 28 * 64) + 2
    x = torch.empty(images, 64, 28, 28, device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last).zero_()
    x[-1].normal_()
    assert x.numel() > 2**31
    weight = torch.randn(64, 64, 3, 3, device="cuda", dtype=torch.bfloat16) / 8
    y = kernels.forward(x, weight, None, 5, 1, (1, 1))
    torch.testing.assert_close(y[-1:], kernels.forward(x[-1:], weight, None, 5, 1, (1, 1)))
    assert (y[-3:-1] == 0).all()
    grad = kernels.grad_weight(x, y, (3, 3), 5, 1, (1, 1))
    torch.testing.assert_close(grad, kernels.grad_weight(x[-1:], y[-1:], (3, 3), 5, 1, (1, 1)), rtol=2e-2, atol=2e-2)


def test_layouts_are_preserved() -> None:
    x, weight, bias, _ = tensors(64, 32, 3, torch.bfloat16)
    assert ours("B")(x, weight, bias).is_contiguous(memory_format=torch.channels_last)
    assert ours("B")(x.contiguous(), weight, bias).is_contiguous()


def test_compiles_without_graph_breaks() -> None:
    x, weight, bias, grad_y = tensors(64, 64, 3, torch.float32)
    torch.use_deterministic_algorithms(False)
    with fastvae.backend("triton"):
        compiled = torch.compile(lambda *t: ops.masked_conv2d(*t, mask="B").relu(), fullgraph=True)
        got = forward_and_gradients(compiled, x, weight, bias, grad_y)
    want = forward_and_gradients(lambda *t: ours("B")(*t).relu(), x, weight, bias, grad_y)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_cuda_graph_replays_it() -> None:
    x, weight, bias, _ = tensors(64, 64, 3, torch.bfloat16)
    torch.use_deterministic_algorithms(False)
    with torch.no_grad():
        want = ours("B")(x, weight, bias)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = ours("B")(x, weight, bias)
        x.copy_(x.flip(0))
        graph.replay()
    torch.testing.assert_close(got, want.flip(0))


def test_autocast_trains_a_module_in_bfloat16() -> None:
    layer = MaskedConv2d(16, 16, 3, mask="B").cuda()
    x = torch.randn(2, 16, 9, 9, device="cuda")
    with torch.autocast("cuda", torch.bfloat16), fastvae.backend("triton"):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    exact = reference.masked_conv2d(x.double(), layer.weight.double(), layer.bias.double(), "B")
    torch.testing.assert_close(y.double(), exact, rtol=5e-2, atol=5e-2)


def test_the_automatic_choice_is_the_one_of_the_table() -> None:
    x, weight, bias, _ = tensors(64, 64, 3, torch.bfloat16)
    y = ops.masked_conv2d(x, weight.requires_grad_(), bias, mask="B")
    kernels_ran = "masked_conv2d" in type(y.grad_fn).__name__
    assert kernels_ran == is_fastest(torch.cuda.get_device_capability(), x.dtype, 64, 64)


def test_float64_takes_the_pytorch_path() -> None:
    x, weight, bias, _ = (t.double() for t in tensors(4, 4, 3, torch.float32))
    torch.testing.assert_close(ops.masked_conv2d(x, weight, bias, mask="B"), definition("B")(x, weight, bias))
    with pytest.raises(RuntimeError, match="forced but cannot run"):
        ours("B")(x, weight, bias)
