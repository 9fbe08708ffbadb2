"""Gated masked layers and the two-stack net of them: the past, all of it and nothing else, and the condition."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvae import reference
from fastvae.nn import CausalLayer, CausalStack, GatedMaskedConv2d


def gated(x: Tensor, layer: Any, before_gate: Tensor | None, mask: Any) -> Tensor:
    return reference.gated_masked_conv2d(x, layer.weight, layer.bias, before_gate, mask)


@pytest.mark.parametrize("is_map", [False, True])
@pytest.mark.parametrize("mask", ["A", "B", "vertical"])
def test_a_layer_is_the_gated_convolution_of_its_condition(mask: Any, is_map: bool) -> None:
    layer = GatedMaskedConv2d(3, 4, 3, mask=mask, condition_channels=5)
    x, condition = torch.randn(2, 3, 6, 7), torch.randn(2, 5, 6, 7) if is_map else torch.randn(2, 5)
    weight = layer.condition.weight[:, :, 0, 0]
    before_gate = torch.einsum("of,nf...->no...", weight, condition)
    torch.testing.assert_close(layer(x, condition), gated(x, layer, before_gate, mask))
    added = torch.randn(2, 8, 6, 7)
    both = added + (before_gate if is_map else before_gate[:, :, None, None])
    torch.testing.assert_close(layer(x, condition, added), gated(x, layer, both, mask))


def test_a_layer_without_condition_takes_what_is_added_alone() -> None:
    layer, x, added = GatedMaskedConv2d(3, 4, 5, 2, False, mask="B"), torch.randn(2, 3, 6, 7), torch.randn(2, 8, 6, 7)
    want = reference.gated_masked_conv2d(x, layer.weight, None, None, "B", 2)
    torch.testing.assert_close(layer(x), want)
    want = reference.gated_masked_conv2d(x, layer.weight, None, added, "B", 2)
    torch.testing.assert_close(layer(x, added=added), want)
    assert list(layer.state_dict()) == ["weight"]


def test_a_layer_runs_compiled_copied_and_saved() -> None:
    torch.compiler.reset()  # other tests compile the same functions, and a function has a limit
    layer = GatedMaskedConv2d(64, 64, 3, mask="A", condition_channels=5)
    x, condition = torch.randn(1, 64, 28, 28), torch.randn(1, 5)
    want = layer(x, condition)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, condition), want)
    torch.testing.assert_close(copy.deepcopy(layer)(x, condition), want)
    other = GatedMaskedConv2d(64, 64, 3, mask="A", condition_channels=5)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x, condition), want)
    with torch.no_grad():
        layer.weight.mul_(0.5)
    torch.testing.assert_close(layer(x, condition), gated(x, layer, layer.condition(condition[..., None, None]), "A"))


def test_a_parametrised_layer_trains() -> None:
    layer = nn.utils.parametrizations.weight_norm(GatedMaskedConv2d(4, 6, 3, mask="B"))
    x = torch.randn(2, 4, 7, 7)
    y = layer(x)
    torch.testing.assert_close(y, gated(x, layer, None, "B"))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def pixels_seen(stack: nn.Module, height: int, width: int, at: tuple[int, int]) -> Tensor:
    """(H, W) whether the features at a pixel depend on each pixel of the image."""
    x = torch.randn(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(stack(x)[0, :, at[0], at[1]].square().sum(), x)
    return grad[0, 0] != 0


@pytest.mark.parametrize(
    ("num_layers", "kernel_size", "first"), [(1, 3, 3), (1, 3, 5), (2, 3, 3), (3, 3, 5), (2, 5, 3)]
)
@pytest.mark.parametrize("at", [(9, 8), (0, 3), (4, 0), (3, 15), (11, 15)])
def test_a_stack_sees_every_earlier_pixel_in_reach_and_no_other(
    num_layers: int, kernel_size: int, first: int, at: tuple[int, int]
) -> None:
    torch.manual_seed(num_layers)
    stack = CausalStack(1, 6, num_layers, kernel_size, first).double()
    reach = first // 2 + (num_layers - 1) * (kernel_size // 2)
    rows, columns = torch.arange(12)[:, None] - at[0], torch.arange(16)[None, :] - at[1]
    above = (rows < 0) & (rows >= -reach - 1) & (columns.abs() <= reach)
    left = (rows == 0) & (columns < 0) & (columns >= -reach)
    assert torch.equal(pixels_seen(stack, 12, 16, at), above | left)


def test_the_condition_reaches_the_first_pixel() -> None:
    stack = CausalStack(1, 6, 3, condition_channels=4)
    condition = torch.randn(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(stack(torch.randn(1, 1, 5, 5), condition)[0, :, 0, 0].sum(), condition)
    assert (grad != 0).all()


@pytest.mark.parametrize("condition_channels", [0, 4])
def test_what_has_not_been_drawn_yet_makes_no_difference(condition_channels: int) -> None:
    torch.manual_seed(0)
    stack = CausalStack(2, 8, 3, 3, 3, condition_channels)
    condition = torch.randn(2, 4) if condition_channels else None
    image = torch.randn(2, 2, 6, 7)
    whole = stack(image, condition)
    for i in range(6):
        for j in range(7):
            later = torch.arange(42).view(6, 7) >= 7 * i + j
            known = image.masked_fill(later, 5.0)
            torch.testing.assert_close(stack(known, condition)[..., i, j], whole[..., i, j])


def test_a_stack_compiles_and_trains() -> None:
    torch.compiler.reset()  # other tests compile the same functions, and a function has a limit
    stack = CausalStack(3, 8, 3, condition_channels=2)
    x, condition = torch.randn(2, 3, 9, 9), torch.randn(2, 2)
    want = stack(x, condition)
    torch.testing.assert_close(torch.compile(stack, fullgraph=True, backend="aot_eager")(x, condition), want)
    want.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stack.parameters())


def test_only_layers_of_one_width_add_a_residual() -> None:
    x = torch.randn(1, 4, 5, 5)
    for into, is_first, expected in ((4, False, True), (4, True, False), (3, False, False)):
        layer = CausalLayer(into, 4, 3, is_first=is_first)
        nn.init.zeros_(layer.mix.weight)
        nn.init.zeros_(layer.mix.bias)
        given = x[:, :into]
        _, horizontal = layer(given, given)
        assert torch.equal(horizontal, given if expected else torch.zeros(1, 4, 5, 5))


BAD: list[tuple[Any, str]] = [
    (lambda: GatedMaskedConv2d(3, 4, 4, mask="A"), "kernel_size must be odd, got 4"),
    (lambda: GatedMaskedConv2d(3, 4, 3, mask="a"), "mask must be .* got 'a'"),
    *[
        (
            lambda value=value: GatedMaskedConv2d(3, 4, 3, mask="A", condition_channels=value),
            f"condition_channels must be 0 or a positive integer, got {value!r}",
        )
        for value in (-1, 1.5, "2", None)
    ],
    *[
        (
            lambda value=value: GatedMaskedConv2d(3, value, 3, mask="A"),
            f"out_channels must be a positive integer, got {value!r}",
        )
        for value in ("8", 1.5, 0)
    ],
    (lambda: CausalLayer(1, "8", 3), "channels must be a positive integer, got '8'"),  # type: ignore[arg-type]
    (lambda: CausalLayer(0, 8, 3), "in_channels must be a positive integer, got 0"),
    (lambda: CausalStack(1, 8, 2, condition_channels=2.5), "condition_channels must be 0 or .*, got 2.5"),  # type: ignore[arg-type]
    (lambda: CausalStack(1, 8, 0), "num_layers must be a positive integer, got 0"),
    (lambda: CausalStack(1, 8, 2, kernel_size=2), "kernel_size must be odd, got 2"),
    (lambda: CausalStack(1, 8, 2)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2)), r"takes no condition, got one of shape"),
    (
        lambda: CausalStack(1, 8, 2, condition_channels=2)(torch.zeros(1, 1, 4, 4)),
        "a condition of 2 channels, got none",
    ),
    (
        lambda: CausalStack(1, 8, 2, condition_channels=2)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 3)),
        r"condition must have shape \(1, 2\) or \(1, 2, 4, 4\), got \(1, 3\)",
    ),
]


@pytest.mark.parametrize(("call", "says"), BAD)
def test_what_does_not_fit_is_refused_by_name(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("condition_channels", [0, 2])
def test_what_is_added_has_to_fit(condition_channels: int) -> None:
    layer = GatedMaskedConv2d(3, 4, 3, mask="A", condition_channels=condition_channels)
    x, condition = torch.zeros(2, 3, 5, 5), torch.zeros(2, 2) if condition_channels else None
    # vectors and single images would be broadcast
    for shape in ((2, 3, 5, 5), (2, 8), (1, 8, 5, 5)):
        with pytest.raises(ValueError, match=r"added must have shape \(2, 8, 5, 5\), got \("):
            layer(x, condition, torch.zeros(shape))
    with pytest.raises(TypeError, match="added must be a tensor, got str"):
        layer(x, condition, "a")


def test_a_condition_is_a_tensor_even_where_none_is_taken() -> None:
    with pytest.raises(TypeError, match="condition must be a tensor, got list"):
        GatedMaskedConv2d(3, 4, 3, mask="A")(torch.zeros(2, 3, 5, 5), [1.0])
