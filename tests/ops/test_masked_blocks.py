"""gated_masked_conv2d and masked_residual on the CPU: equal to their definitions, causal, clear about bad input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastvae
from fastvae import ops, reference


def tensors(
    channels: int = 4, half: int = 3, kernel_size: int = 3, size: tuple[int, int] = (5, 6), batch: int = 2
) -> list[Tensor]:
    """x, weight, bias, a map for the condition or the residual."""
    shapes = [(batch, channels, *size), (2 * half, channels, kernel_size, kernel_size), (2 * half,)]
    shapes += [(batch, 2 * half, *size)]
    scales = [1.0, 0.2, 1.0, 1.0]
    return [
        (torch.randn(shape, dtype=torch.float64) * scale).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def written_out(x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, mask: Any) -> Tensor:
    """The gate as other code writes it, its mask spelled out tap by tap."""
    size = weight.shape[-1]
    alive = torch.zeros(size, size, dtype=x.dtype)
    alive[: size // 2] = 1
    alive[size // 2, : size // 2 + (mask == "B")] = 1
    h = F.conv2d(x, weight * alive, bias, padding=size // 2) + condition
    half = weight.shape[0] // 2
    return h[:, :half].tanh() * h[:, half:].sigmoid()


@settings(deadline=None, max_examples=25)
@given(
    mask=st.sampled_from(["A", "B"]),
    kernel_size=st.sampled_from([1, 3, 5]),
    channels=st.sampled_from([1, 3, 16, 64]),
    half=st.sampled_from([1, 5, 64]),
    batch=st.integers(0, 2),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_both_equal_what_is_written_out(
    mask: Any, kernel_size: int, channels: int, half: int, batch: int, size: tuple[int, int]
) -> None:
    inputs = tensors(channels, half, kernel_size, size, batch)
    want = written_out(*inputs, mask)
    grad_y = torch.randn_like(want)
    for y in (ops.gated_masked_conv2d(*inputs, mask=mask), reference.gated_masked_conv2d(*inputs, mask)):
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(
            torch.autograd.grad(y, inputs, grad_y), torch.autograd.grad(want, inputs, grad_y, retain_graph=True)
        )
    x, weight, bias, residual = inputs
    h = reference.masked_conv2d(x, weight, bias, mask)
    for name, activated in {"relu": h.clamp(min=0), "elu": torch.where(h > 0, h, h.exp() - 1), "none": h}.items():
        want = residual + activated
        y = ops.masked_residual(*inputs, mask=mask, activation=name)  # type: ignore[arg-type]
        torch.testing.assert_close(y, want)
        grad_y = torch.randn_like(want)
        torch.testing.assert_close(
            torch.autograd.grad(y, inputs, grad_y), torch.autograd.grad(want, inputs, grad_y, retain_graph=True)
        )


def test_a_vector_conditions_every_pixel_of_its_image_alike() -> None:
    x, weight, bias, _ = tensors()
    vector = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    as_map = vector[:, :, None, None].expand(2, 6, 5, 6)
    ours, want = (ops.gated_masked_conv2d(x, weight, bias, c, mask="B") for c in (vector, as_map))
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), vector), torch.autograd.grad(want.square().sum(), vector)
    )


def test_a_condition_of_the_shape_of_one_row_of_pixels_is_a_vector_only_with_two_dimensions() -> None:
    x, weight, bias, condition = tensors(size=(1, 1))
    ours = ops.gated_masked_conv2d(x, weight, bias, condition[:, :, 0, 0], mask="B")
    torch.testing.assert_close(ours, ops.gated_masked_conv2d(x, weight, bias, condition, mask="B"))


@pytest.mark.parametrize("mask", ["A", "B"])
def test_the_jacobian_is_zero_for_the_future_but_the_condition_reaches_all(mask: Any) -> None:
    x, weight, bias, condition = (t.detach() for t in tensors(1, 1, 3, (4, 4), 1))
    weight = weight.abs() + 0.1
    jacobian = torch.func.jacrev(lambda x: ops.gated_masked_conv2d(x, weight, bias, condition, mask=mask))(x)
    table = jacobian.view(16, 16)
    assert (table.triu(1 if mask == "B" else 0) == 0).all()
    assert (table.diagonal() != 0).all() == (mask == "B")
    vector = torch.randn(1, 2, dtype=torch.float64)
    by_vector = torch.func.jacrev(lambda c: ops.gated_masked_conv2d(x, weight, bias, c, mask=mask))(vector)
    assert (by_vector != 0).all()


CALLS: dict[str, Callable[..., Tensor]] = {
    "gated": lambda *t: ops.gated_masked_conv2d(*t, mask="B"),
    "residual": lambda *t: ops.masked_residual(*t, mask="A", activation="elu"),
}
DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "gated": lambda *t: reference.gated_masked_conv2d(*t, "B"),
    "residual": lambda *t: reference.masked_residual(*t, "A", "elu"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_kind_of_derivative_is_right(name: str) -> None:
    inputs = tensors(2, 1, 3, (3, 3), 1)
    ours, want = CALLS[name], DEFINITIONS[name]
    assert torch.autograd.gradcheck(ours, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, inputs)
    given = tuple(t.detach() for t in inputs)
    tangents = tuple(torch.randn_like(t) for t in given)
    torch.testing.assert_close(torch.func.jvp(ours, given, tangents), torch.func.jvp(want, given, tangents))
    in_dims = (0, None, None, 0)
    batched = [given[0].expand(3, -1, -1, -1)[:, None], *given[1:3], given[3].expand(3, -1, -1, -1)[:, None]]
    torch.testing.assert_close(torch.func.vmap(ours, in_dims)(*batched)[0], want(*given))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("channels", [4, 64])
def test_compiles_without_graph_breaks_and_keeps_the_layout(name: str, channels: int) -> None:
    torch.compiler.reset()  # other tests compile the same functions, and a function has a limit
    inputs = tensors(channels, channels, 3, (28, 28))
    want = CALLS[name](*inputs)
    torch.testing.assert_close(torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")(*inputs), want)
    assert want.is_contiguous()
    last = [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs]
    y = CALLS[name](*last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, want)
    y = CALLS[name](last[0], *inputs[1:])  # what is added or conditions does not decide on the layout
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CALLS)
def test_autocast_decides_the_dtype(name: str) -> None:
    inputs = [t.detach().float().requires_grad_() for t in tensors()]
    with torch.autocast("cpu", torch.bfloat16):
        y = CALLS[name](*inputs)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), DEFINITIONS[name](*inputs), rtol=3e-2, atol=5e-2)
    y.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in inputs)


def operator_cases() -> list[Any]:
    x, weight, bias, condition = (t.detach().float().requires_grad_() for t in tensors())
    window, y = weight, condition[:, :3].detach().contiguous()
    taps, ops_ = (5, 1, 1, 1), torch.ops.fastvae
    return [
        (ops_.gated_masked_conv2d, (x, window, bias, condition, *taps, True)),
        (ops_.gated_masked_conv2d, (x.detach(), window.detach(), None, condition[:, :, 0, 0].detach(), *taps, False)),
        (ops_.gate_backward, (condition.detach(), y)),
        (ops_.masked_residual, (x, window, bias, condition, "elu", *taps, True)),
        (ops_.activation_backward, (y, y, "relu")),
    ]


@pytest.mark.parametrize("index", range(5))
def test_is_a_well_formed_operator(index: int) -> None:
    torch.library.opcheck(*operator_cases()[index])


def test_the_operators_equal_the_definitions_and_differentiate_twice() -> None:
    inputs = tensors(2, 1, 3, (3, 3), 1)
    fast = torch.ops.fastvae
    gated = lambda *t: fast.gated_masked_conv2d(*t, 5, 1, 1, 1, True)[0]  # noqa: E731
    residual = lambda *t: fast.masked_residual(*t, "elu", 4, 1, 1, 1, True)[0]  # noqa: E731
    for ours, name in ((gated, "gated"), (residual, "residual")):
        torch.testing.assert_close(ours(*inputs), DEFINITIONS[name](*inputs))
        assert torch.autograd.gradcheck(ours, inputs)
        assert torch.autograd.gradgradcheck(ours, inputs)


def test_a_forced_backend_that_cannot_run_says_why() -> None:
    inputs = [t.detach().float() for t in tensors()]
    for call in CALLS.values():
        with fastvae.backend("triton"), pytest.raises(RuntimeError, match="'triton' is forced but cannot run"):
            call(*inputs)


X, W, C = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3), torch.zeros(2, 6, 8, 8)
BAD_GATED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": X[0]}, ValueError, r"x must be \(N, C, H, W\), got shape \(4, 8, 8\); one image is x\[None\]"),
    ({"weight": W[:5]}, ValueError, "even number of output channels.* got 5"),
    ({"condition": C[:1]}, ValueError, r"condition must have shape \(2, 6\) or \(2, 6, 8, 8\), got \(1, 6, 8, 8\)"),
    ({"condition": C.double()}, TypeError, "condition must have the dtype of x"),
    ({"condition": 3}, TypeError, "condition must be a tensor, got int"),
    ({"mask": "C"}, ValueError, "mask must be .* got 'C'"),
    ({"weight": W[..., :2]}, ValueError, "odd kernel size, got 2"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD_GATED)
def test_bad_input_of_a_gate_is_named(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ops.gated_masked_conv2d(**({"x": X, "weight": W, "mask": "B"} | change))


BAD_RESIDUAL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": X[0]}, ValueError, r"x must be \(N, C, H, W\), got shape \(4, 8, 8\); one image is x\[None\]"),
    ({"residual": X}, ValueError, r"residual must have the shape of the result, \(2, 6, 8, 8\), got \(2, 4, 8, 8\)"),
    ({"residual": C.long()}, TypeError, "residual must be floating point, got torch.int64"),
    ({"activation": "gelu"}, ValueError, "activation must be one of .* got 'gelu'"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD_RESIDUAL)
def test_bad_input_of_a_residual_is_named(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ops.masked_residual(**({"x": X, "weight": W, "bias": None, "residual": C, "mask": "B"} | change))
