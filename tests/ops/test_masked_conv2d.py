"""masked_conv2d on the CPU: equal to its definition, causal, differentiable in every way, clear about bad input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastvae
from fastvae import ops, reference

# smaller and larger than the sizes from which the kernel is cropped
CROPPED_OR_NOT = pytest.mark.parametrize("channels", [4, 64])


def arguments(
    channels: int = 4, kernel_size: int = 3, size: tuple[int, int] = (9, 11), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, channels, *size, dtype=dtype, requires_grad=True)
    weight = (torch.randn(channels + 1, channels, kernel_size, kernel_size, dtype=dtype) / 5).requires_grad_()
    bias = torch.randn(channels + 1, dtype=dtype, requires_grad=True)
    return x, weight, bias


@settings(deadline=None, max_examples=60)
@given(
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    mask=st.sampled_from(["A", "B"]),
    dilation=st.integers(1, 3),
    in_channels=st.sampled_from([1, 3, 16, 20, 64, 120]),
    out_channels=st.sampled_from([1, 3, 16, 20, 64, 120]),
    batch=st.integers(0, 3),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    has_bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_definition(
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
    inputs = [x, weight] + ([bias] if bias is not None else [])
    ours = ops.masked_conv2d(x, weight, bias, mask=mask, dilation=dilation)
    want = reference.masked_conv2d(x, weight, bias, mask, dilation)
    torch.testing.assert_close(ours, want)
    grad_y = torch.randn_like(want)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, grad_y), torch.autograd.grad(want, inputs, grad_y), strict=True
    ):
        torch.testing.assert_close(got, expected)


@CROPPED_OR_NOT
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_float32_errs_at_most_twice_as_much_as_the_masked_convolution(kernel_size: int, channels: int) -> None:
    x, weight, bias = (t.detach() for t in arguments(channels, kernel_size, (28, 28)))
    exact = reference.masked_conv2d(x, weight, bias, "B")
    ours = ops.masked_conv2d(x.float(), weight.float(), bias.float(), mask="B") - exact
    theirs = reference.masked_conv2d(x.float(), weight.float(), bias.float(), "B") - exact
    assert ours.abs().max() <= 2 * theirs.abs().max()


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize(("channels", "kernel_size"), [(1, 3), (2, 5), (64, 3)])
def test_the_jacobian_is_zero_for_the_future_and_nowhere_else(channels: int, kernel_size: int, mask: Any) -> None:
    height, width, reach = (28, 28, kernel_size // 2) if channels == 64 else (5, 6, kernel_size // 2)
    weight = torch.rand(channels, channels, kernel_size, kernel_size) + 0.5
    i, j = height // 2, width // 2
    x = torch.rand(2, channels, height, width, requires_grad=True)
    y = ops.masked_conv2d(x, weight, mask=mask)[0, :, i, j]
    for out in range(min(channels, 3)):
        (grad,) = torch.autograd.grad(y[out], x, retain_graph=True)
        assert (grad[1] == 0).all()  # another image
        for u in range(height):
            for v in range(width):
                in_reach = max(abs(u - i), abs(v - j)) <= reach
                earlier = (u, v) < (i, j) or (mask == "B" and (u, v) == (i, j))
                assert (grad[0, :, u, v] != 0).all() == (in_reach and earlier), (u, v)
                assert (grad[0, :, u, v] == 0).all() == (not (in_reach and earlier)), (u, v)


@CROPPED_OR_NOT
@pytest.mark.parametrize("mask", ["A", "B"])
def test_masked_taps_have_no_effect_and_a_gradient_of_exactly_zero(mask: Any, channels: int) -> None:
    x, weight, bias = arguments(channels, 5, (28, 28))
    dead = reference.raster_mask(5, mask) == 0
    changed = weight.detach().masked_fill(dead, 1e6).requires_grad_()
    y = ops.masked_conv2d(x, changed, bias, mask=mask)
    assert torch.equal(y, ops.masked_conv2d(x, weight, bias, mask=mask))
    (grad,) = torch.autograd.grad(y.square().sum(), changed)
    assert (grad[..., dead] == 0).all()
    assert (grad[..., ~dead] != 0).all()


def test_a_single_masked_tap_leaves_the_bias_and_gradients_of_zero() -> None:
    x, weight, bias = arguments(kernel_size=1)
    y = ops.masked_conv2d(x, weight, bias, mask="A")
    assert (y == bias[:, None, None]).all()
    assert all((grad == 0).all() for grad in torch.autograd.grad(y.sum(), (x, weight)))


@CROPPED_OR_NOT
def test_channels_last_is_preserved_and_nothing_is_modified(channels: int) -> None:
    x, weight, bias = (t.detach() for t in arguments(channels, 3, (28, 28), torch.float32))
    y = ops.masked_conv2d(x, weight, bias, mask="B")
    assert y.is_contiguous()
    copies = [t.clone() for t in (x, weight, bias)]
    z = ops.masked_conv2d(x.to(memory_format=torch.channels_last), weight, bias, mask="B")
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, z)
    assert all(torch.equal(a, b) for a, b in zip(copies, (x, weight, bias), strict=True))


@CROPPED_OR_NOT
def test_slices_and_transposes_are_served(channels: int) -> None:
    whole = torch.randn(3, channels + 2, 29, 31, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, channels, dtype=torch.float64).permute(0, 3, 1, 2)
    for x in (whole[1:, 1:-1, :-1, ::2], whole[1:, 2:].transpose(2, 3)):
        want = reference.masked_conv2d(x.contiguous(), weight.contiguous(), None, "B")
        torch.testing.assert_close(ops.masked_conv2d(x, weight, mask="B"), want)


@CROPPED_OR_NOT
def test_an_image_without_a_batch_is_served(channels: int) -> None:
    x, weight, bias = arguments(channels, 3, (28, 28))
    alone = ops.masked_conv2d(x[0], weight, bias, mask="B")
    torch.testing.assert_close(alone, ops.masked_conv2d(x, weight, bias, mask="B")[0])


@pytest.mark.parametrize("shape", [(0, 64, 28, 28), (2, 64, 1, 1), (1, 64, 1, 200)])
def test_empty_batches_and_thin_images_are_served(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(64, 64, 7, 7, requires_grad=True), torch.randn(64)
    y = ops.masked_conv2d(x, weight, bias, mask="B")
    torch.testing.assert_close(y, reference.masked_conv2d(x, weight, bias, "B"), rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(y.sum(), weight)
    assert grad.isfinite().all()


@pytest.mark.parametrize("mask", ["A", "B"])
def test_first_and_second_derivatives_pass_gradcheck(mask: Any) -> None:
    x, weight, bias = arguments(2, 3, (3, 4))

    def function(*inputs: Tensor) -> Tensor:
        return ops.masked_conv2d(*inputs, mask=mask)

    assert torch.autograd.gradcheck(function, (x, weight, bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, weight, bias))


@CROPPED_OR_NOT
def test_transforms_of_torch_func_are_right_not_zero(channels: int) -> None:
    inputs = tuple(t.detach() for t in arguments(channels, 3, (28, 28)))
    tangents = tuple(torch.randn_like(t) for t in inputs)

    def ours(*t: Tensor) -> Tensor:
        return ops.masked_conv2d(*t, mask="B")

    def want(*t: Tensor) -> Tensor:
        return reference.masked_conv2d(*t, "B")

    torch.testing.assert_close(torch.func.jvp(ours, inputs, tangents), torch.func.jvp(want, inputs, tangents))
    for argnum in range(3):
        loss = torch.func.grad(lambda *t: ours(*t).square().sum(), argnum)(*inputs)
        torch.testing.assert_close(loss, torch.func.grad(lambda *t: want(*t).square().sum(), argnum)(*inputs))
    per_sample = torch.func.vmap(ours, in_dims=(0, None, None))(*inputs)
    torch.testing.assert_close(per_sample, want(*inputs))


@CROPPED_OR_NOT
def test_compiles_without_graph_breaks(channels: int) -> None:
    inputs = arguments(channels, 3, (28, 28))
    compiled = torch.compile(ops.masked_conv2d, fullgraph=True, backend="aot_eager")
    y = compiled(*inputs, mask="A")
    torch.testing.assert_close(y, ops.masked_conv2d(*inputs, mask="A"))
    want = torch.autograd.grad(ops.masked_conv2d(*inputs, mask="A").sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), inputs), want)


def test_a_compiled_function_keeps_the_backend_it_was_traced_under() -> None:
    x, weight, bias = (t.detach() for t in arguments(64, 3, (28, 28)))
    poisoned = weight.clone()
    poisoned[..., -1, -1] = float("nan")  # the definition multiplies it by zero, the cropped path does not read it
    with fastvae.backend("reference"):
        compiled = torch.compile(ops.masked_conv2d, fullgraph=True, backend="eager")
        assert compiled(x, poisoned, bias, mask="B").isnan().any()
    torch.compiler.reset()
    assert not compiled(x, poisoned, bias, mask="B").isnan().any()


def test_autocast_decides_the_dtype() -> None:
    x, weight, bias = arguments(64, 3, (28, 28), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.masked_conv2d(x, weight, bias, mask="B")
        want = reference.masked_conv2d(x, weight, bias, "B")
    assert y.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(y, want, rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_a_forced_backend_that_cannot_run_says_why() -> None:
    x, weight, bias = (t.detach() for t in arguments())
    with fastvae.backend("triton"), pytest.raises(RuntimeError, match="'triton' is forced but cannot run"):
        ops.masked_conv2d(x, weight, bias, mask="B")
    with fastvae.backend("reference"):
        torch.testing.assert_close(
            ops.masked_conv2d(x, weight, bias, mask="B"), reference.masked_conv2d(x, weight, bias, "B")
        )


OPERATORS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "masked_conv2d": lambda: (*arguments(), 5, 1, 1, 1),
    "masked_conv2d_grad_input": lambda: (
        torch.randn(2, 5, 9, 11, requires_grad=True).to(memory_format=torch.channels_last),
        torch.randn(5, 4, 3, 3, requires_grad=True),
        4,
        1,
        1,
        2,
    ),
    "masked_conv2d_grad_weight": lambda: (
        torch.randn(2, 4, 9, 11, requires_grad=True),
        torch.randn(2, 5, 9, 11, requires_grad=True),
        3,
        3,
        5,
        1,
        1,
        1,
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_is_a_well_formed_operator(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.fastvae, name), OPERATORS[name]())


def test_the_operators_are_each_others_derivatives() -> None:
    x, weight, bias = arguments(2, 3, (3, 4))
    grad_y = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    fast = torch.ops.fastvae
    assert torch.autograd.gradcheck(lambda *t: fast.masked_conv2d(*t, 5, 1, 1, 1), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *t: fast.masked_conv2d(*t, 5, 1, 1, 1), (x, weight, bias))
    assert torch.autograd.gradcheck(lambda *t: fast.masked_conv2d_grad_input(*t, 4, 1, 1, 1), (grad_y, weight))
    assert torch.autograd.gradcheck(lambda *t: fast.masked_conv2d_grad_weight(*t, 3, 3, 5, 1, 1, 1), (x, grad_y))


X, W = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"x": X.long()}, TypeError, "x must be floating point, got torch.int64"),
    ({"weight": W.double()}, TypeError, "weight must have the dtype of x, torch.float32, got torch.float64"),
    ({"bias": torch.zeros(6).half()}, TypeError, "bias must have the dtype of x"),
    ({"weight": W.to("meta")}, ValueError, "weight must be on the device of x, cpu, got meta"),
    ({"x": X[0, 0]}, ValueError, r"x must be \(N, C, H, W\) or \(C, H, W\), got shape \(8, 8\)"),
    ({"weight": W[0]}, ValueError, r"weight must be \(C_out, C_in, kH, kW\), got shape \(4, 3, 3\)"),
    ({"weight": W[..., :2]}, ValueError, "odd kernel size, got 2: an even one has no centre"),
    ({"weight": torch.zeros(6, 4, 4, 4)}, ValueError, "odd kernel size, got 4"),
    ({"x": X[:, :3]}, ValueError, r"x must have the 4 channels of weight, got shape \(2, 3, 8, 8\)"),
    ({"x": X[:, :, :0]}, ValueError, "only the batch may be empty"),
    ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(6,\), got \(5,\)"),
    ({"mask": "C"}, ValueError, "mask must be .* got 'C'"),
    ({"dilation": 0}, ValueError, "dilation must be a positive integer, got 0"),
    ({"dilation": True}, ValueError, "dilation must be a positive integer, got True"),
    ({"mask": torch.ones(3, 3)}, TypeError, "a given mask must be boolean, got torch.float32; pass mask != 0"),
    ({"mask": torch.ones(3, 2, dtype=torch.bool)}, ValueError, r"mask must broadcast .* got shape \(3, 2\)"),
    ({"mask": torch.ones(1, 6, 4, 3, 3, dtype=torch.bool)}, ValueError, "mask must broadcast"),
    ({"mask": torch.ones(3, 3, dtype=torch.bool, device="meta")}, ValueError, "mask must be on the device of weight"),
    ({"num_colours": 0}, ValueError, "num_colours must be a positive integer, got 0"),
    ({"num_colours": 5}, ValueError, "num_colours must be at most the number of channels.* got 5"),
    ({"num_colours": 2, "mask": "vertical"}, ValueError, "num_colours=2 needs mask A or B"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ops.masked_conv2d(**({"x": X, "weight": W, "bias": None, "mask": "B"} | change))
