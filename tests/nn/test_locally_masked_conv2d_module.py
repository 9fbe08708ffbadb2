"""LocallyMaskedConv2d: the parameters of nn.Conv2d, any order, several orders with one set of weights."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvae import ops, reference
from fastvae.nn import LocallyMaskedConv2d
from fastvae.ops.tap_bits import neighbours

SIZE = (6, 7)


def layer(**changes: Any) -> LocallyMaskedConv2d:
    return LocallyMaskedConv2d(
        **({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "mask": "B", "size": SIZE} | changes)
    )


def test_initialises_as_conv2d_does_and_has_its_state_dict() -> None:
    torch.manual_seed(3)
    ours = layer(order="hilbert", kernel_size=5)
    torch.manual_seed(3)
    theirs = nn.Conv2d(2, 3, 5, padding=2)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "bias"]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def sees(conv: LocallyMaskedConv2d) -> Tensor:
    """(H * W, H * W) which pixels a pixel sees through one layer."""
    size = conv.kernel_size[0]
    live = reference.unpack_tap_bits(conv.bits, size).flatten(1).t()  # (H * W, k * k)
    seen = torch.zeros(SIZE[0] * SIZE[1], SIZE[0] * SIZE[1] + 1)
    seen.scatter_add_(1, neighbours(*SIZE, size, 1), live.float())
    return seen[:, :-1]


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("order", ["raster", "s_curve", "hilbert"])
def test_two_layers_see_exactly_what_their_masks_reach(order: Any, mask: Any) -> None:
    first, second = layer(order=order, mask="A", kernel_size=5), layer(in_channels=3, order=order, mask=mask)
    net = nn.Sequential(first, second).double()
    jacobian = torch.func.jacrev(net)(torch.randn(1, 2, *SIZE, dtype=torch.float64))  # (1, 3, H, W, 1, 2, H, W)
    depends = (jacobian.permute(2, 3, 6, 7, 0, 1, 4, 5).reshape(42, 42, -1) != 0).any(-1)
    assert torch.equal(depends, sees(second) @ sees(first) > 0)
    flat = ops.generation_order(order, SIZE) @ torch.tensor([SIZE[1], 1])
    assert not depends[flat][:, flat].triu().any()  # nothing of the pixel itself or of later ones


def test_one_set_of_weights_serves_several_orders() -> None:
    conv, x = layer(), torch.randn(2, 2, *SIZE)
    random = ops.generation_order("random", SIZE, seed=1)
    want = reference.locally_masked_conv2d(x, conv.weight, conv.bias, ops.tap_bits(random, SIZE, 3, mask="B"))
    torch.testing.assert_close(conv(x, order=random), want)
    torch.testing.assert_close(conv(x, bits=conv.tap_bits(random)), want)
    both = torch.stack([conv.bits, conv.tap_bits("s_curve")])
    torch.testing.assert_close(conv(x, bits=both)[:1], conv(x)[:1])
    torch.testing.assert_close(conv(x, bits=both)[1:], conv(x, order="s_curve")[1:])


def test_is_moved_copied_and_trained_like_any_layer() -> None:
    conv = layer(order="hilbert", dtype=torch.float64, bias=False, dilation=2)
    assert conv.bias is None
    assert conv.to("meta").bits.device.type == "meta"
    conv = layer(order="hilbert")
    twin = copy.deepcopy(conv).double()
    assert twin.bits.dtype == torch.int64
    x = torch.randn(2, 2, *SIZE)
    torch.testing.assert_close(twin(x.double()).float(), conv(x))
    optimiser = torch.optim.SGD(conv.parameters(), lr=0.1)
    before = conv(x).square().mean()
    before.backward()
    optimiser.step()
    assert conv(x).square().mean() < before


def test_weight_norm_trains() -> None:
    conv = nn.utils.parametrizations.weight_norm(layer(order="s_curve"))
    conv(torch.randn(2, 2, *SIZE)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in conv.parameters())


def test_its_description_names_mask_and_size() -> None:
    assert repr(layer(mask="A")).endswith("mask='A', size=(6, 7))")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"order": "random"}, ValueError, "order must be one of .* got 'random'"),
        ({"order": [[0, 0]]}, ValueError, r"order must be \(42, 2\)"),
        ({"kernel_size": 2}, ValueError, "kernel_size must be odd and at most 7, got 2"),
        ({"in_channels": -3}, ValueError, "in_channels must be a positive integer, got -3"),
        ({"in_channels": 0}, ValueError, "in_channels must be a positive integer, got 0"),
        ({"out_channels": "4"}, ValueError, "out_channels must be a positive integer, got '4'"),
        ({"mask": "a"}, ValueError, "mask must be .* got 'a'"),
        ({"dilation": 0}, ValueError, "dilation must be a positive integer"),
        ({"size": (3,)}, ValueError, r"size must be \(H, W\)"),
    ],
)
def test_what_is_not_served_is_refused_by_name(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        layer(**change)


def test_images_of_another_size_and_two_orders_at_once_are_refused() -> None:
    conv = layer()
    with pytest.raises(ValueError, match=r"mask must have shape \(5, 5\)"):
        conv(torch.zeros(1, 2, 5, 5))
    with pytest.raises(ValueError, match="order and bits exclude each other"):
        conv(torch.zeros(1, 2, *SIZE), order="raster", bits=conv.bits)
