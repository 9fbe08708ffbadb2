"""MaskedConv2d stands where nn.Conv2d stood: same parameters, same files, same arguments."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fastvae import reference
from fastvae.nn import MaskedConv2d


def test_initialises_exactly_as_conv2d_does() -> None:
    torch.manual_seed(3)
    ours = MaskedConv2d(3, 8, 5, mask="A")
    torch.manual_seed(3)
    theirs = nn.Conv2d(3, 8, 5, padding=2)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "bias"]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("mask", ["A", "B"])
def test_exchanges_state_dicts_with_conv2d_code_in_both_directions(mask: Any) -> None:
    theirs, ours = nn.Conv2d(4, 6, 3, padding=1), MaskedConv2d(4, 6, 3, 1, 1, mask=mask)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 9, 9)
    want = nn.functional.conv2d(x, theirs.weight * reference.raster_mask(3, mask), theirs.bias, padding=1)
    torch.testing.assert_close(ours(x), want)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs.weight, ours.weight)  # the masked taps are stored, not destroyed


def test_takes_the_arguments_of_conv2d_in_its_order() -> None:
    layer = MaskedConv2d(4, 6, 5, 1, 4, 2, 1, False, "zeros", "cpu", torch.float64, mask="B")
    assert layer.bias is None
    assert layer.weight.dtype == torch.float64
    assert (layer.kernel_size, layer.padding, layer.dilation) == ((5, 5), (4, 4), (2, 2))
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference.masked_conv2d(x, layer.weight, None, "B", 2))
    assert MaskedConv2d(4, 6, (3, 3), padding="same", mask="B")(x.float()).shape == (1, 6, 8, 8)


def test_a_deep_copy_is_independent_and_equal() -> None:
    layer = MaskedConv2d(2, 3, 3, mask="A")
    twin = copy.deepcopy(layer)
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(layer(x), twin(x))
    with torch.no_grad():
        layer.weight.zero_()
    assert not torch.equal(layer(x), twin(x))


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrisations_of_the_weight_train(wrap: Any) -> None:
    layer = wrap(MaskedConv2d(4, 6, 3, mask="B"))
    x = torch.randn(2, 4, 7, 7)
    with nn.utils.parametrize.cached():  # spectral norm moves the weight at every look
        y = layer(x)
        torch.testing.assert_close(y, reference.masked_conv2d(x, layer.weight, layer.bias, "B"))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_step_of_training_moves_live_taps_only() -> None:
    layer = MaskedConv2d(64, 64, 3, mask="A")
    before = layer.weight.detach().clone()
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 64, 28, 28)).square().mean().backward()
    optimiser.step()
    moved = (layer.weight != before).flatten(2).any(1).any(0)
    assert moved.tolist() == [True] * 4 + [False] * 5


def test_two_layers_see_only_the_past() -> None:
    net = nn.Sequential(MaskedConv2d(1, 8, 5, mask="A"), nn.ReLU(), MaskedConv2d(8, 1, 3, mask="B")).double()
    jacobian = torch.func.jacrev(net)(torch.randn(1, 1, 4, 5, dtype=torch.float64)).view(20, 20)
    assert (jacobian.triu() == 0).all()
    assert (jacobian[1:, 0] != 0).any()


def test_its_description_names_the_mask() -> None:
    assert repr(MaskedConv2d(1, 2, 3, mask="A")).endswith("padding=(1, 1), mask='A')")


GIVEN = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 1]]) != 0
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "horizontal": ((1, 5), {"mask": "A"}),
    "vertical": (3, {"mask": "vertical"}),
    "vertical-strict": ((3, 5), {"mask": "vertical-strict", "dilation": 2}),
    "colours": (3, {"mask": "A", "num_colours": 3}),
    "given": (3, {"mask": GIVEN}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_mask_runs_compiled_copied_and_moved(name: str) -> None:
    torch.compiler.reset()  # other tests compile the same functions, and a function has a limit
    kernel_size, options = OTHERS[name]
    layer = MaskedConv2d(6, 9, kernel_size, **options)
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = torch.randn(2, 6, 30, 31)
    dilation, colours = options.get("dilation", 1), options.get("num_colours", 1)
    want = reference.masked_conv2d(x, layer.weight, layer.bias, options["mask"], dilation, colours)
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), want)
    double = copy.deepcopy(layer).double()
    torch.testing.assert_close(double(x.double()).float(), want, rtol=1e-4, atol=1e-5)
    assert ("given" if name == "given" else repr(options["mask"])) in repr(layer)


def test_a_given_mask_is_copied() -> None:
    mask = GIVEN.clone()
    layer = MaskedConv2d(2, 2, 3, mask=mask)
    x = torch.randn(1, 2, 5, 5)
    before = layer(x)
    mask.zero_()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("mask", ["A", GIVEN])
def test_nothing_of_an_earlier_weight_is_kept(mask: Any) -> None:
    layer = MaskedConv2d(64, 64, 3, mask=mask)
    x = torch.randn(1, 64, 28, 28)

    def is_up_to_date() -> bool:
        want = reference.masked_conv2d(x, layer.weight, layer.bias, mask)
        return torch.allclose(layer(x), want, rtol=1e-4, atol=1e-5)

    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(x).square().sum().backward()
    optimiser.step()
    assert is_up_to_date()
    layer.load_state_dict({name: torch.randn_like(t) for name, t in layer.state_dict().items()})
    assert is_up_to_date()
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
    assert is_up_to_date()
    layer.weight.data = torch.randn_like(layer.weight)  # the version counter does not move here
    assert is_up_to_date()
    layer.weight.data.mul_(-1)
    assert is_up_to_date()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"mask": "a"}, "mask must be .* got 'a'"),
    ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
    ({"kernel_size": (3, 4)}, r"kernel_size must be odd, got \(3, 4\)"),
    ({"kernel_size": (3, 3, 3)}, r"kernel_size must be one number or two, got \(3, 3, 3\)"),
    ({"kernel_size": (3, 5), "padding": 1}, r"padding must be \(1, 2\) = dilation .* got 1"),
    ({"dilation": (1, 2)}, r"dilation must be one number or two equal ones, got \(1, 2\)"),
    ({"num_colours": 9}, "num_colours must be at most the number of channels"),
    ({"kernel_size": 3.0}, "kernel_size must be an integer, got 3.0"),
    ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
    ({"out_channels": -4}, "out_channels must be a positive integer, got -4"),
    ({"out_channels": True}, "out_channels must be a positive integer, got True"),
    ({"stride": 2}, "stride must be 1, got 2"),
    ({"padding": 0}, r"padding must be 1 = dilation \* \(kernel_size // 2\).* got 0"),
    ({"padding": "valid"}, "padding must be 1 .* got 'valid'"),
    ({"dilation": 0}, "dilation must be a positive integer, got 0"),
    ({"groups": 2}, "groups must be 1, got 2"),
    ({"padding_mode": "circular"}, "padding_mode must be \"zeros\", got 'circular'"),
]


@pytest.mark.parametrize(("change", "says"), BAD)
def test_what_is_not_served_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MaskedConv2d(**({"in_channels": 4, "out_channels": 4, "kernel_size": 3, "mask": "B"} | change))


def test_the_mask_has_to_be_chosen() -> None:
    with pytest.raises(TypeError, match="mask"):
        MaskedConv2d(4, 4, 3)  # type: ignore[call-arg]
