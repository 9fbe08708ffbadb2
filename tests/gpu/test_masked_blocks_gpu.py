"""Gated and residual masked convolutions on a card: right for every row of the table, repeatable, compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which is not installed")

from fastvae_kernels.masked_conv2d_config import is_fastest

import fastvae
from fastvae import ops, reference
from fastvae.nn import CausalStack

pytestmark = pytest.mark.gpu
# the rows of the table with channels that fill no block among them; a cold compilation takes a second
CASES = [("gated", *c, torch.bfloat16) for c in [(3, 64), (16, 16), (32, 32), (64, 128), (120, 120)]]
CASES += [("gated", 64, 128, dtype) for dtype in (torch.float32, torch.float16)]
CASES += [("residual", 64, 64, torch.bfloat16), ("residual", 3, 64, torch.float32)]


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan_and_torch_is_exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


def tensors(in_channels: int, out_channels: int, dtype: torch.dtype, batch: int = 3) -> list[Tensor]:
    """x, weight, bias, condition or residual."""
    pixels = (19, 21)
    shapes = [(batch, in_channels, *pixels), (out_channels, in_channels, 3, 3), (out_channels,)]
    shapes.append((batch, out_channels, *pixels))
    scales = [1.0, in_channels**-0.5, 1.0, 1.0]
    made = [torch.randn(shape, device="cuda") * scale for shape, scale in zip(shapes, scales, strict=True)]
    return [t.to(dtype) for t in made]


def results(function: Callable[..., Tensor], inputs: list[Tensor], seed: int = 0) -> list[Tensor]:
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    y = function(*inputs)
    torch.manual_seed(seed)
    grad_y = torch.randn(y.shape, device="cuda").to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]


def kernels(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forced(*t: Tensor) -> Tensor:
        with fastvae.backend("triton"):
            return function(*t)

    return forced


def gated(*t: Tensor) -> Tensor:
    return ops.gated_masked_conv2d(*t, mask="B")


def residual(*t: Tensor) -> Tensor:
    return ops.masked_residual(*t, mask="A", activation="elu")


CALLS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "gated": (gated, lambda *t: reference.gated_masked_conv2d(*t, "B")),
    "residual": (residual, lambda *t: reference.masked_residual(*t, "A", "elu")),
}


@pytest.mark.parametrize(("name", "in_channels", "out_channels", "dtype"), CASES)
def test_errs_at_most_twice_as_much_as_torch_in_the_same_dtype(
    name: str, in_channels: int, out_channels: int, dtype: torch.dtype
) -> None:
    given = tensors(in_channels, out_channels, dtype, batch=170)  # no tile is made smaller to have enough of them
    ours, definition = CALLS[name]
    exact = results(definition, [t.double() for t in given])
    slack = (32 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps
    for a, b, want in zip(results(kernels(ours), given), results(definition, given), exact, strict=True):
        assert (a - want).abs().max() <= 2 * (b - want).abs().max() + slack * want.abs().max()


def test_a_vector_conditions_every_pixel_alike() -> None:
    x, weight, bias, _ = tensors(64, 128, torch.bfloat16)
    vector = torch.randn(3, 128, device="cuda", dtype=torch.bfloat16)
    as_map = vector[:, :, None, None].expand(3, 128, 19, 21).contiguous()
    by_vector = results(kernels(gated), [x, weight, bias, vector])
    by_map = results(kernels(gated), [x, weight, bias, as_map])
    assert torch.equal(by_vector[0], by_map[0])
    torch.testing.assert_close(by_vector[-1], by_map[-1].sum((2, 3)), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("name", CALLS)
def test_runs_repeat_bit_by_bit(name: str) -> None:
    given = tensors(64, 128, torch.bfloat16)
    first = results(kernels(CALLS[name][0]), given)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, results(kernels(CALLS[name][0]), given), strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_compiles_without_graph_breaks(name: str) -> None:
    given = tensors(32, 32, torch.float32)
    torch.use_deterministic_algorithms(False)
    want = results(kernels(CALLS[name][0]), given)
    with fastvae.backend("triton"):
        got = results(torch.compile(CALLS[name][0], fullgraph=True), given)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_whole_stack_runs_on_the_kernels() -> None:
    stack = CausalStack(3, 32, 3, condition_channels=4).cuda()
    x, condition = torch.randn(2, 3, 12, 12, device="cuda"), torch.randn(2, 4, device="cuda")
    with fastvae.backend("reference"):
        want = stack(x, condition)
    with fastvae.backend("triton"):
        got = stack(x, condition)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CALLS)
def test_the_automatic_choice_is_the_one_of_the_table(name: Any) -> None:
    given = [t.requires_grad_() for t in tensors(64, 128, torch.bfloat16)]
    kernels_ran = "fastvae" in str(CALLS[name][0](*given).grad_fn)
    assert kernels_ran == is_fastest(torch.cuda.get_device_capability(), torch.bfloat16, 64, 128, name)
