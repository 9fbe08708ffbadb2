"""locally_masked_conv2d on the CPU: equal to its definition, causal, differentiable in every way, clear about input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastvae
from fastvae import ops, reference

ORDERS = ["raster", "s_curve", "hilbert", "random"]
# one for each way to compute: an ordinary convolution, one gather, blocks, images unfolded a few at a time
WAYS = [("raster", 4, (9, 11)), ("random", 16, (5, 6)), ("hilbert", 16, (28, 28)), ("random", 4, (28, 28))]
EVERY_WAY = pytest.mark.parametrize(("name", "channels", "size"), WAYS, ids=["static", "small", "blocks", "unfolded"])


def order_of(name: Any, size: tuple[int, int]) -> Tensor:
    return ops.generation_order(name, size, seed=3 if name == "random" else None)


def arguments(
    channels: int = 4, kernel_size: int = 3, size: tuple[int, int] = (9, 11), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, channels, *size, dtype=dtype, requires_grad=True)
    weight = (torch.randn(channels + 1, channels, kernel_size, kernel_size, dtype=dtype) / 5).requires_grad_()
    bias = torch.randn(channels + 1, dtype=dtype, requires_grad=True)
    return x, weight, bias


def check(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int = 1) -> None:
    """Values and all gradients against the definition, through the operators whatever the size."""
    inputs = [t for t in (x, weight, bias) if t is not None]
    want = reference.locally_masked_conv2d(x, weight, bias, mask, dilation)
    grad_y = torch.randn_like(want)
    expected = torch.autograd.grad(want, inputs, grad_y)
    operator = torch.ops.fastvae.locally_masked_conv2d(x, weight, bias, mask, dilation, False)
    for ours in (operator, ops.locally_masked_conv2d(x, weight, bias, mask=mask, dilation=dilation)):
        torch.testing.assert_close(ours, want)
        torch.testing.assert_close(torch.autograd.grad(ours, inputs, grad_y), expected)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(ORDERS),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    mask=st.sampled_from(["A", "B"]),
    dilation=st.integers(1, 3),
    in_channels=st.sampled_from([1, 3, 16, 20]),
    out_channels=st.sampled_from([1, 3, 16, 20]),
    batch=st.integers(1, 3),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    has_bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_definition_in_every_order(
    name: str,
    kernel_size: int,
    mask: Any,
    dilation: int,
    in_channels: int,
    out_channels: int,
    batch: int,
    height: int,
    width: int,
    has_bias: bool,
    channels_last: bool,
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(batch, in_channels, height, width, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(out_channels, dtype=torch.float64, requires_grad=True) if has_bias else None
    size = (height, width)
    check(
        x, weight, bias, ops.tap_bits(order_of(name, size), size, kernel_size, mask=mask, dilation=dilation), dilation
    )


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("per_image", [False, True])
def test_masks_of_no_order_at_all_are_served(channels: int, per_image: bool) -> None:
    x, weight, bias = arguments(channels, 3, (9, 11))
    check(x, weight, bias, torch.randint(0, 1 << 62, (2, 9, 11) if per_image else (9, 11)))


@pytest.mark.parametrize("channels", [1, 16])
def test_every_image_may_have_its_own_order(channels: int) -> None:
    x, weight, bias = arguments(channels, 5, (8, 9))
    names = ("s_curve", "hilbert")
    masks = torch.stack([ops.tap_bits(order_of(name, (8, 9)), (8, 9), 5, mask="B") for name in names])
    check(x, weight, bias, masks)
    both = ops.locally_masked_conv2d(x, weight, bias, mask=masks)
    for image in range(2):
        alone = ops.locally_masked_conv2d(x[image], weight, bias, mask=masks[image])
        torch.testing.assert_close(both[image], alone)


@EVERY_WAY
@pytest.mark.parametrize("mask", ["A", "B"])
def test_the_jacobian_is_zero_for_later_pixels_and_nowhere_else_in_reach(
    name: Any, channels: int, size: tuple[int, int], mask: Any
) -> None:
    order = order_of(name, size)
    rank = torch.empty(size, dtype=torch.long)
    rank[order[:, 0], order[:, 1]] = torch.arange(len(order))
    bits = ops.tap_bits(order, size, 5, mask=mask)
    weight = torch.rand(2, channels, 5, 5) + 0.5  # no zeros, nothing cancels
    x = torch.rand(2, channels, *size, requires_grad=True)
    y = ops.locally_masked_conv2d(x, weight, mask=bits)
    rows, cols = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    for i, j in ((size[0] // 2, size[1] // 2), (0, 1), (size[0] - 1, size[1] - 1)):
        (grad,) = torch.autograd.grad(y[0, 1, i, j], x, retain_graph=True)
        in_reach = ((rows - i).abs() <= 2) & ((cols - j).abs() <= 2)
        earlier = (rank < rank[i, j]) | ((rank == rank[i, j]) & (mask == "B"))
        assert torch.equal((grad[0] != 0).all(0), in_reach & earlier)
        assert torch.equal((grad[0] != 0).any(0), in_reach & earlier)
        assert (grad[1] == 0).all()  # another image


@pytest.mark.parametrize(("name", "channels", "size"), WAYS[1:], ids=["small", "blocks", "unfolded"])
def test_an_invalid_pixel_spoils_only_those_that_see_it(name: Any, channels: int, size: tuple[int, int]) -> None:
    bits = ops.tap_bits(order_of(name, size), size, 3, mask="A")
    x = torch.rand(1, channels, *size)
    x[0, 0, 2, 3] = float("inf")
    y = ops.locally_masked_conv2d(x, torch.rand(5, channels, 3, 3) - 0.5, mask=bits)
    sees = reference.locally_masked_conv2d(x.isinf().float(), torch.ones(5, channels, 3, 3), None, bits) != 0
    assert torch.equal(y.isfinite(), ~sees)


@EVERY_WAY
def test_float32_errs_at_most_twice_as_much_as_the_definition(name: Any, channels: int, size: tuple[int, int]) -> None:
    x, weight, bias = (t.detach() for t in arguments(channels, 5, size))
    bits = ops.tap_bits(order_of(name, size), size, 5, mask="B")
    exact = reference.locally_masked_conv2d(x, weight, bias, bits)
    given = [t.float() for t in (x, weight, bias)]
    ours = ops.locally_masked_conv2d(*given, mask=bits) - exact
    theirs = reference.locally_masked_conv2d(*given, bits) - exact
    assert ours.abs().max() <= 2 * theirs.abs().max() + 4 * torch.finfo(torch.float32).eps * exact.abs().max()


@EVERY_WAY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_err_at_most_twice_as_much_as_the_definition_in_float32_rounded(
    name: Any, channels: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    x, weight, bias = (t.detach().to(dtype).requires_grad_() for t in arguments(channels, 3, size))
    bits = ops.tap_bits(order_of(name, size), size, 3, mask="B")
    y = ops.locally_masked_conv2d(x, weight, bias, mask=bits)
    assert y.dtype == dtype
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want = reference.locally_masked_conv2d(*exact, bits)
    grad_y = torch.randn_like(y)
    ours = (y, *torch.autograd.grad(y, (x, weight, bias), grad_y))
    theirs = (want, *torch.autograd.grad(want, exact, grad_y.double()))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 4 * torch.finfo(dtype).eps * b.abs().max()


@EVERY_WAY
def test_channels_last_is_preserved_and_nothing_is_modified(name: Any, channels: int, size: tuple[int, int]) -> None:
    x, weight, bias = (t.detach() for t in arguments(channels, 3, size, torch.float32))
    bits = ops.tap_bits(order_of(name, size), size, 3, mask="B")
    copies = [t.clone() for t in (x, weight, bias, bits)]
    y = ops.locally_masked_conv2d(x, weight, bias, mask=bits)
    assert y.is_contiguous()
    z = ops.locally_masked_conv2d(x.to(memory_format=torch.channels_last), weight, bias, mask=bits)
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, z)
    assert all(torch.equal(a, b) for a, b in zip(copies, (x, weight, bias, bits), strict=True))


@EVERY_WAY
def test_slices_and_transposes_are_served(name: Any, channels: int, size: tuple[int, int]) -> None:
    height, width = size
    whole = torch.randn(3, channels + 2, height + 1, 2 * width, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, channels, dtype=torch.float64).permute(0, 3, 1, 2)
    bits = ops.tap_bits(order_of(name, size), size, 3, mask="B")
    x = whole[1:, 1:-1, :-1, ::2]
    strided = torch.stack([bits, bits], -1)[..., 0]
    want = reference.locally_masked_conv2d(x.contiguous(), weight.contiguous(), None, bits)
    torch.testing.assert_close(ops.locally_masked_conv2d(x, weight, mask=strided), want)


def test_empty_batches_and_pixels_that_see_nothing_are_served() -> None:
    weight, bias = torch.randn(5, 16, 3, 3, requires_grad=True), torch.randn(5)
    bits = torch.randint(0, 1 << 9, (4, 4))
    y = ops.locally_masked_conv2d(torch.randn(0, 16, 4, 4), weight, bias, mask=bits)
    assert y.shape == (0, 5, 4, 4)
    assert (torch.autograd.grad(y.sum(), weight)[0] == 0).all()
    x = torch.randn(2, 16, 4, 4, requires_grad=True)
    nothing = torch.ops.fastvae.locally_masked_conv2d(x, weight, bias, torch.zeros_like(bits), 1, False)
    assert (nothing == bias[:, None, None]).all()
    assert all((grad == 0).all() for grad in torch.autograd.grad(nothing.sum(), (x, weight)))


@EVERY_WAY
def test_compiles_without_graph_breaks(name: Any, channels: int, size: tuple[int, int]) -> None:
    x, weight, bias = arguments(channels, 3, size)
    bits = ops.tap_bits(order_of(name, size), size, 3, mask="B")
    compiled = torch.compile(
        lambda *t: ops.locally_masked_conv2d(*t, mask=bits).relu(), fullgraph=True, backend="aot_eager"
    )
    want = ops.locally_masked_conv2d(x, weight, bias, mask=bits).relu()
    torch.testing.assert_close(compiled(x, weight, bias), want)
    inputs = (x, weight, bias)
    ours = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad(want.square().sum(), inputs))


def test_transforms_and_forward_mode_are_right_not_zero() -> None:
    x, weight, bias = (t.detach() for t in arguments(16, 3, (28, 28)))
    bits = ops.tap_bits(order_of("hilbert", (28, 28)), (28, 28), 3, mask="B")

    def function(x: Tensor) -> Tensor:
        return ops.locally_masked_conv2d(x, weight, bias, mask=bits)

    _, tangent = torch.func.jvp(function, (x,), (x,))
    torch.testing.assert_close(tangent, function(x) - bias[:, None, None])
    ours = torch.func.grad(lambda x: function(x).square().sum())(x)
    (want,) = torch.autograd.grad(function(x.requires_grad_()).square().sum(), x)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(torch.func.vmap(function)(torch.stack([x, 2 * x]))[1], function(2 * x))


def test_autocast_runs_in_its_dtype_and_trains() -> None:
    x, weight, bias = (t.detach().float().requires_grad_() for t in arguments(16, 3, (28, 28)))
    bits = ops.tap_bits(order_of("s_curve", (28, 28)), (28, 28), 3, mask="B")
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.locally_masked_conv2d(x, weight, bias, mask=bits)
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().square().sum(), (x, weight, bias))
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


def test_the_backend_can_be_forced() -> None:
    x, weight, bias = (t.detach() for t in arguments(16, 3, (28, 28), torch.float32))
    bits = ops.tap_bits(order_of("s_curve", (28, 28)), (28, 28), 3, mask="B")
    with fastvae.backend("triton"), pytest.raises(RuntimeError, match="'triton' is forced but cannot run"):
        ops.locally_masked_conv2d(x, weight, bias, mask=bits)
    with fastvae.backend("reference"):
        want = reference.locally_masked_conv2d(x, weight, bias, bits)
        assert torch.equal(ops.locally_masked_conv2d(x, weight, bias, mask=bits), want)


BITS = torch.randint(0, 1 << 9, (9, 11))
OPERATORS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "locally_masked_conv2d": lambda: (*arguments(16), BITS, 1, False),
    "locally_masked_conv2d_grad_input": lambda: (
        torch.randn(2, 5, 9, 11, requires_grad=True).to(memory_format=torch.channels_last),
        torch.randn(5, 4, 3, 3, requires_grad=True),
        BITS,
        2,
        False,
    ),
    "locally_masked_conv2d_grad_weight": lambda: (
        torch.randn(2, 4, 9, 11, requires_grad=True),
        torch.randn(2, 5, 9, 11, requires_grad=True),
        3,
        torch.stack([BITS, BITS.flip(0)]),
        1,
        False,
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_is_a_well_formed_operator(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.fastvae, name), OPERATORS[name]())


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 2), (2, 13), (2, 2)])
def test_the_operators_are_each_others_derivatives(inputs: int, outputs: int) -> None:
    x = torch.randn(2, inputs, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(outputs, inputs, 3, 3, dtype=torch.float64, requires_grad=True)
    grad_y = torch.randn(2, outputs, 3, 4, dtype=torch.float64, requires_grad=True)
    mask, fast = torch.randint(0, 1 << 9, (3, 4)), torch.ops.fastvae
    options = {"fast_mode": True}
    assert torch.autograd.gradcheck(lambda *t: fast.locally_masked_conv2d(*t, None, mask, 1, False), (x, weight))
    assert torch.autograd.gradgradcheck(
        lambda *t: fast.locally_masked_conv2d(*t, None, mask, 1, False), (x, weight), **options
    )
    assert torch.autograd.gradcheck(
        lambda *t: fast.locally_masked_conv2d_grad_input(*t, mask, 1, False), (grad_y, weight), **options
    )
    assert torch.autograd.gradcheck(
        lambda *t: fast.locally_masked_conv2d_grad_weight(*t, 3, mask, 1, False), (x, grad_y), **options
    )


X, W, M = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3), torch.zeros(8, 8, dtype=torch.long)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"x": X.long()}, TypeError, "x must be floating point, got torch.int64"),
    ({"weight": W.double()}, TypeError, "weight must have the dtype of x, torch.float32, got torch.float64"),
    ({"bias": torch.zeros(6).half()}, TypeError, "bias must have the dtype of x"),
    ({"weight": W.to("meta")}, ValueError, "weight must be on the device of x, cpu, got meta"),
    ({"mask": M.to("meta")}, ValueError, "mask must be on the device of x, cpu, got meta"),
    ({"mask": "B"}, TypeError, "mask must be a tensor, got str"),
    ({"mask": M.bool()}, TypeError, "mask must be int64, .* got torch.bool"),
    ({"mask": M[:7]}, ValueError, r"mask must have shape \(8, 8\), or \(2, 8, 8\) .* got \(7, 8\)"),
    ({"mask": M.expand(3, 8, 8)}, ValueError, r"mask must have shape .* got \(3, 8, 8\)"),
    ({"x": X[0, 0]}, ValueError, r"x must be \(N, C, H, W\) or \(C, H, W\), got shape \(8, 8\)"),
    ({"weight": W[..., :2]}, ValueError, r"weight must be \(C_out, C_in, k, k\), got shape \(6, 4, 3, 2\)"),
    ({"weight": torch.zeros(6, 4, 4, 4)}, ValueError, "odd kernel size of at most 7, got 4"),
    ({"weight": torch.zeros(6, 4, 9, 9)}, ValueError, "odd kernel size of at most 7, got 9"),
    ({"x": X[:, :3]}, ValueError, r"x must have the 4 channels of weight, got shape \(2, 3, 8, 8\)"),
    ({"x": X[:, :, :0]}, ValueError, "only the batch may be empty"),
    ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(6,\), got \(5,\)"),
    ({"dilation": 0}, ValueError, "dilation must be a positive integer, got 0"),
    ({"dilation": True}, ValueError, "dilation must be a positive integer, got True"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ops.locally_masked_conv2d(**({"x": X, "weight": W, "bias": None, "mask": M} | change))
