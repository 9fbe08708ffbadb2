"""Every row of the tables of launch configurations, forced, on problems of one whole tile and a bit in each direction.

Rows of other architectures are never chosen by the interpreter, and small problems shrink the blocks of a row: here
each row runs as it stands. Rows of bfloat16 run in float16, which the interpreter multiplies correctly.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fastvae_kernels import locally_masked_conv2d as local_kernels
from fastvae_kernels import locally_masked_conv2d_config as local_config
from fastvae_kernels import masked_conv2d as kernels
from fastvae_kernels import masked_conv2d_config as config
from fastvae_kernels import masked_conv2d_epilogues as epilogues
from fastvae_kernels import masked_conv2d_grad_weight as grad_weight_kernels
from torch import Tensor

from fastvae import reference
from fastvae.ops.tap_bits import mirror_tap_bits

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 5e-5}, torch.float16: {"rtol": 4e-3, "atol": 2e-2}}
KERNEL_SIZE, CENTRE = 3, (1, 1)
FEW = 20  # channels of one tap
MORE = 2  # beyond a whole tile; even, for the halves of a gate
HEIGHT, WIDTH = 5, 7


@pytest.fixture(autouse=True, scope="module")
def _fresh_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(before)


def rows(table: dict[Any, Any], *ops: str) -> list[Any]:
    """(op, dtype, whether few channels share a block, configuration): each once, however many rows say it."""
    found = {}
    for (op, *_arch, dtype, bucket), row in table.items():
        run_as = torch.float32 if dtype == torch.float32 else torch.float16
        is_flat, sizes = bucket == config.FLAT, (row.block_m, row.block_n, row.block_k)
        name = "-".join(map(str, (op, run_as, "flat" if is_flat else "wide", *sizes, row.num_warps, row.num_stages)))
        if op in ops:
            found[name.replace("torch.", "")] = (op, run_as, is_flat, row)
    return [pytest.param(*case, id=name) for name, case in found.items()]


def force(patch: pytest.MonkeyPatch, module: Any, op: str, is_flat: bool, row: Any) -> Callable[[], int]:
    """Let ``module`` launch ``op`` with ``row`` and nothing else; how often it did."""
    launches = 0

    def choose(asked: str, *_: Any, flat: bool, taps: int = 1) -> Any:
        nonlocal launches
        launches += 1
        assert (asked, flat) == (op, is_flat)
        return row

    patch.setattr(module, "choose_config", choose)
    return lambda: launches


def made(dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype)


def images(pixels: int) -> int:
    """How many of them have more than this many pixels, together no multiple of a tile."""
    return pixels // (HEIGHT * WIDTH) + 1


def live_taps(is_flat: bool) -> int:
    """The row above and, where few channels are to fill a block, those of mask B: what runs long is the interpreter."""
    return 5 if is_flat else 3


def problem(row: Any, dtype: torch.dtype, is_flat: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias of a convolution with more pixels, channels out and products than one block of ``row``."""
    in_channels = row.block_k // live_taps(is_flat) + 1 if is_flat else row.block_k + MORE
    out_channels = row.block_n + MORE
    weight = made(dtype, out_channels, in_channels, KERNEL_SIZE, KERNEL_SIZE, scale=in_channels**-0.5)
    return made(dtype, images(row.block_m), in_channels, HEIGHT, WIDTH), weight, made(dtype, out_channels)


def check(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want, **TOLERANCE[got.dtype])


def gradients(convolve: Callable[[Tensor, Tensor], Tensor], grad_y: Tensor, x: Tensor, weight: Tensor) -> Any:
    """Of x and weight by the definition in float64."""
    exact = [t.double().requires_grad_() for t in (x, weight)]
    return torch.autograd.grad(convolve(*exact), exact, grad_y.double())


def masked_to(live: int) -> Callable[..., Tensor]:
    """The definition for a mask of the first ``live`` taps."""
    mask = torch.arange(KERNEL_SIZE**2).view(KERNEL_SIZE, KERNEL_SIZE) < live
    return lambda x, weight, bias=None: reference.masked_conv2d(x, weight, bias, mask, 1)


@pytest.mark.parametrize(("op", "dtype", "is_flat", "row"), rows(config.TABLE, "conv"))
def test_convolution_and_input_gradient(
    op: str, dtype: torch.dtype, is_flat: bool, row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches, live = force(monkeypatch, kernels, op, is_flat, row), live_taps(is_flat)
    masked = masked_to(live)
    x, weight, bias = problem(row, dtype, is_flat)
    check(kernels.forward(x, weight, bias, live, 1, CENTRE), masked(x.double(), weight.double(), bias.double()))
    # the input gradient reduces over the channels out: x is the gradient, and the weight the other way round
    weight = weight.transpose(0, 1)
    grad_x = gradients(masked, x, torch.zeros(x.shape[0], weight.shape[1], HEIGHT, WIDTH), weight)[0]
    check(kernels.grad_input(x, weight, live, 1, CENTRE), grad_x)
    assert launches() == 2


@pytest.mark.parametrize(("op", "dtype", "is_flat", "row"), rows(config.TABLE, "block"))
def test_blocks(op: str, dtype: torch.dtype, is_flat: bool, row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    launches, live = force(monkeypatch, kernels, op, is_flat, row), live_taps(is_flat)
    masked = masked_to(live)
    x, weight, bias = problem(row, dtype, is_flat)
    added = made(dtype, x.shape[0], weight.shape[0], HEIGHT, WIDTH)
    h = masked(x.double(), weight.double(), bias.double())
    f, g = (h + added.double()).chunk(2, 1)
    y, saved = epilogues.gated_forward(x, weight, bias, added, live, 1, CENTRE, save=True)
    check(y, f.tanh() * g.sigmoid())
    check(saved, torch.cat((f.tanh(), g.sigmoid()), 1))
    y, saved = epilogues.residual_forward(x, weight, bias, added, "elu", live, 1, CENTRE, save=True)
    check(y, added.double() + torch.nn.functional.elu(h))
    check(saved, torch.nn.functional.elu(h))
    assert launches() == 2


def weight_problems(row: Any, dtype: torch.dtype, is_flat: bool, taps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """x and the gradient of y for more channels than one block of ``row``, and more pixels; if flat, for two shares.

    A block of more channels than there are covers several taps: once they fill it, and once they do not.
    """
    batch = images(8 * row.block_k if is_flat else row.block_k)
    for in_channels in [row.block_n // taps + 1] if is_flat else {row.block_n + MORE, min(row.block_n + MORE, FEW)}:
        x = made(dtype, batch, in_channels, HEIGHT, WIDTH)
        yield x, made(dtype, batch, row.block_m + MORE, HEIGHT, WIDTH, scale=0.1)


@pytest.mark.parametrize(("op", "dtype", "is_flat", "row"), rows(config.TABLE, "grad_weight"))
def test_weight_gradient(op: str, dtype: torch.dtype, is_flat: bool, row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    launches, live, problems = force(monkeypatch, grad_weight_kernels, op, is_flat, row), live_taps(is_flat), 0
    for x, grad_y in weight_problems(row, dtype, is_flat, live):
        problems += 1
        shape = (grad_y.shape[1], x.shape[1], KERNEL_SIZE, KERNEL_SIZE)
        got = kernels.grad_weight(x, grad_y, (KERNEL_SIZE, KERNEL_SIZE), live, 1, CENTRE)
        check(got, gradients(masked_to(live), grad_y, x, torch.zeros(shape))[1])
    assert launches() == problems


def any_bits() -> Tensor:
    return torch.randint(0, 1 << KERNEL_SIZE**2, (HEIGHT, WIDTH))


@pytest.mark.parametrize(("op", "dtype", "is_flat", "row"), rows(local_config.TABLE, "conv"))
def test_local_convolution_and_input_gradient(
    op: str, dtype: torch.dtype, is_flat: bool, row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = force(monkeypatch, local_kernels, op, is_flat, row)
    (x, weight, bias), bits = problem(row, dtype, is_flat), any_bits()

    def masked(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return reference.locally_masked_conv2d(x, weight, bias, bits, 1)

    check(local_kernels.forward(x, weight, bias, bits, 1), masked(x.double(), weight.double(), bias.double()))
    weight = weight.transpose(0, 1)
    grad_x = gradients(masked, x, torch.zeros(x.shape[0], weight.shape[1], HEIGHT, WIDTH), weight)[0]
    check(local_kernels.grad_input(x, weight, mirror_tap_bits(bits, KERNEL_SIZE, 1), 1), grad_x)
    assert launches() == 2


@pytest.mark.parametrize(("op", "dtype", "is_flat", "row"), rows(local_config.TABLE, "grad_weight"))
def test_local_weight_gradient(
    op: str, dtype: torch.dtype, is_flat: bool, row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches, bits, problems = force(monkeypatch, local_kernels, op, is_flat, row), any_bits(), 0

    def masked(x: Tensor, weight: Tensor) -> Tensor:
        return reference.locally_masked_conv2d(x, weight, None, bits, 1)

    for x, grad_y in weight_problems(row, dtype, is_flat, KERNEL_SIZE**2):
        problems += 1
        shape = (grad_y.shape[1], x.shape[1], KERNEL_SIZE, KERNEL_SIZE)
        got = local_kernels.grad_weight(x, grad_y, KERNEL_SIZE, bits, 1)
        check(got, gradients(masked, grad_y, x, torch.zeros(shape))[1])
    assert launches() == problems
