"""A call that looks like an earlier one skips its checks: never its results, its errors or what is around it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae import ops, reference
from fastvae.nn import GatedMaskedConv2d, MaskedConv2d
from fastvae.ops import locally_masked_small
from fastvae.ops.masked_conv2d_taps import Seen

# channels and image: tiny, whole, cropped; a kernel of one row, and one that lies wholly outside of the image
SIZES = [(2, 1, 4, (3, 3)), (4, 2, 8, (5, 5)), (32, 2, 16, (3, 3)), (32, 4, 12, (1, 5)), (48, 8, 2, (7, 7))]


def arguments(channels: int, batch: int, size: int, kernel: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((batch, channels, size, size), (2 * channels, channels, *kernel), (2 * channels,))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize(("mask", "dilation", "colours"), [("A", 1, 1), ("B", 2, 1), ("vertical", 1, 1), ("B", 1, 2)])
def test_the_second_call_is_the_definition_too(case: Any, mask: Any, dilation: int, colours: int) -> None:
    x, weight, bias = (t.float().requires_grad_() for t in arguments(*case))
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want = reference.masked_conv2d(*wide, mask, dilation, colours)  # type: ignore[arg-type]
    wants = torch.autograd.grad(want.sin().sum(), wide)
    for _ in range(2):
        y = ops.masked_conv2d(x, weight, bias, mask=mask, dilation=dilation, num_colours=colours)
        got = torch.autograd.grad(y.sin().sum(), (x, weight, bias))
        torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-4)
        for gradient, exact in zip(got, wants, strict=True):
            torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=1e-3)
        assert torch.equal(got[1] == 0, wants[1] == 0)
        with torch.no_grad():
            y = ops.masked_conv2d(x, weight, bias, mask=mask, dilation=dilation, num_colours=colours)
        torch.testing.assert_close(y.double(), want.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", SIZES[:4])
def test_blocks_are_their_definition_the_second_time_too(case: Any) -> None:
    x, weight, bias = arguments(*case)
    other = torch.randn(x.shape[0], weight.shape[0], *x.shape[2:], dtype=x.dtype)
    h = reference.masked_conv2d(x, weight, bias, "B")
    for added in (other, other[:, :, 0, 0]):
        for _ in range(2):
            kept = added.clone()
            y = ops.gated_masked_conv2d(x, weight, bias, added, mask="B")
            torch.testing.assert_close(y, reference.gate(h, added))
            assert torch.equal(added, kept)
    for activation in ("relu", "elu", "none", "relu"):
        y = ops.masked_residual(x, weight, bias, other, mask="B", activation=activation)  # type: ignore[arg-type]
        torch.testing.assert_close(y, other + reference.activate(h, activation))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation must be one of"):
        ops.masked_residual(x, weight, bias, other, mask="B", activation="tanh")  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [MaskedConv2d(4, 6, 3, mask="B"), GatedMaskedConv2d(4, 3, 3, mask="B")])
@pytest.mark.parametrize("edit", ["in place", "data", "load", "replace"])
def test_a_weight_is_never_stale(layer: Any, edit: str) -> None:
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        for _ in range(2):
            layer(x)
        new = torch.randn_like(layer.weight)
        if edit == "in place":
            layer.weight.copy_(new)
        elif edit == "data":
            layer.weight.data[:] = new
        elif edit == "load":
            layer.load_state_dict({**layer.state_dict(), "weight": new})
        else:
            layer.weight = torch.nn.Parameter(new)
        h = reference.masked_conv2d(x, new, layer.bias, "B")
        torch.testing.assert_close(layer(x), reference.gate(h, None) if h.shape != layer(x).shape else h)


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        (MaskedConv2d(48, 48, 3, mask="B"), {"weight": torch.nn.Parameter(torch.randn(48, 48, 5, 5))}),
        (MaskedConv2d(48, 48, 3, mask="vertical"), {"mask_name": "vertical-strict"}),
        (MaskedConv2d(48, 48, (1, 3), mask="B"), {"num_colours": 3}),
        (GatedMaskedConv2d(48, 24, 3, mask="B"), {"weight": torch.nn.Parameter(torch.randn(48, 48, 5, 5))}),
    ],
)
def test_a_changed_layer_spoils_no_later_call(layer: Any, change: dict[str, Any]) -> None:
    x = torch.randn(4, 48, 19, 23)
    for name, value in change.items():
        setattr(layer, name, value)
    with torch.no_grad():
        y = layer(x)
        h = reference.masked_conv2d(x, layer.weight, layer.bias, layer.mask_name, 1, layer.num_colours)
        torch.testing.assert_close(y, reference.gate(h, None) if h.shape != y.shape else h, rtol=1e-3, atol=1e-3)
        given = {"mask": layer.mask_name, "num_colours": layer.num_colours}
        torch.testing.assert_close(ops.masked_conv2d(x, layer.weight, layer.bias, **given), h, rtol=1e-3, atol=1e-3)


X, W, B = (t.float() for t in arguments(4, 2, 8, (3, 3)))
BITS = torch.full((8, 8), 27)
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "masked": lambda x=X, w=W, b=B, **given: ops.masked_conv2d(x, w, b, **{"mask": "B", **given}),
    "gated": lambda x=X, w=W, b=B, **given: ops.gated_masked_conv2d(x, w, b, **{"mask": "B", **given}),
    "residual": lambda x=X, w=W, b=B, **given: ops.masked_residual(
        x, w, b, B.expand(2, 8, 8, 8).transpose(1, 3), **{"mask": "B", **given}
    ),
    "locally masked": lambda x=X, w=W, b=B, **given: ops.locally_masked_conv2d(x, w, b, **{"mask": BITS, **given}),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_errors_come_after_good_calls_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = OPERATORS[name]
    for _ in range(2):
        operator()
    for change, error, says in (
        ({"x": X.to_sparse()}, TypeError, "x must be dense"),
        ({"x": X.numpy()}, TypeError, "x must be a tensor"),
        ({"w": W.double()}, TypeError, "weight must have the dtype of x"),
        ({"w": W.to("meta")}, ValueError, "weight must be on the device of x"),
        ({"b": B.half()}, TypeError, "bias must have the dtype of x"),
        ({"dilation": True}, ValueError, "dilation must be a positive integer"),
        ({"dilation": 1.0}, ValueError, "dilation must be a positive integer"),
        ({"mask": "C"}, (ValueError, TypeError), "mask must be"),
        ({"mask": BITS.double()}, TypeError, "mask must be"),
    ):
        with pytest.raises(error, match=says):  # type: ignore[call-overload]
            operator(**change)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with fastvae.backend("triton"), pytest.raises(RuntimeError, match="forced but cannot run"):
        operator()
    monkeypatch.setenv("FASTVAE_BACKEND", "fast")
    with pytest.raises(ValueError, match="FASTVAE_BACKEND must be one of"):
        operator()


@pytest.mark.filterwarnings("ignore:Converting a tensor", "ignore:`torch.jit.trace", "ignore:`torch.jit")
@pytest.mark.parametrize("name", OPERATORS)
def test_what_looks_on_is_noticed_after_plain_calls(name: str) -> None:
    operator = OPERATORS[name]
    want = [operator() for _ in range(2)][1]
    with torch.autocast("cpu", torch.bfloat16):
        assert operator().dtype == torch.bfloat16
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(operator, fullgraph=True, backend="aot_eager")(), want)
    torch.testing.assert_close(torch.jit.trace(operator, (X,))(X), want)
    alone = torch.func.vmap(lambda x: OPERATORS["masked"](x))(X.unsqueeze(1))
    torch.testing.assert_close(alone[:, 0], OPERATORS["masked"]())
    x = X.clone().requires_grad_()
    _, tangent = torch.func.jvp(lambda x: operator(x=x), (X,), (torch.ones_like(X),))
    y = operator(x=x)
    (back,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    torch.testing.assert_close(back.sum(), tangent.sum(), rtol=1e-3, atol=1e-2)


def test_small_local_calls_have_derivatives_of_every_order() -> None:
    bits = torch.randint(0, 1 << 9, (4, 4))
    for channels in (2, 12):
        inputs = [
            torch.randn(s, dtype=torch.float64).requires_grad_()
            for s in ((2, channels, 4, 4), (3, channels, 3, 3), (3,))
        ]

        def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return ops.locally_masked_conv2d(x, weight, bias, mask=bits)

        assert torch.autograd.gradcheck(layer, inputs, fast_mode=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)


@pytest.mark.parametrize("bits", [torch.full((5, 7), 27), torch.randint(0, 1 << 9, (5, 7))])
def test_small_local_calls_train_after_inference(bits: Tensor) -> None:
    x, weight = torch.randn(1, 2, 5, 7), torch.randn(3, 2, 3, 3, requires_grad=True)
    with torch.inference_mode():
        ops.locally_masked_conv2d(x, weight, mask=bits)
    y = ops.locally_masked_conv2d(x, weight, mask=bits)
    wide = weight.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(reference.locally_masked_conv2d(x.double(), wide, None, bits, 1).sum(), wide)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), weight)[0].double(), want, rtol=1e-4, atol=1e-4)


def test_small_local_calls_train_with_bits_of_inference() -> None:
    x, weight = torch.randn(1, 2, 6, 7), torch.randn(3, 2, 3, 3, requires_grad=True)
    with torch.inference_mode():
        bits = torch.randint(0, 1 << 9, (6, 7))
    got, want = (
        torch.autograd.grad(ops.locally_masked_conv2d(x, weight, mask=m).sin().sum(), weight)[0]
        for m in (bits, bits.clone())
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("batch", [1, 64])
def test_local_calls_ignore_the_default_device(batch: int) -> None:
    x, weight = torch.randn(batch, 12, 15, 15), torch.randn(12, 12, 3, 3)
    for bits in (torch.full((15, 15), 26), torch.randint(0, 1 << 9, (15, 15))):
        with torch.device("meta"):
            y = ops.locally_masked_conv2d(x, weight, mask=bits)
        torch.testing.assert_close(y, reference.locally_masked_conv2d(x, weight, None, bits, 1), rtol=1e-4, atol=1e-3)


def test_a_gradient_of_many_channels_is_not_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    bits, asked = torch.randint(0, 1 << 9, (24, 24)), []
    kept = locally_masked_small.kept_bits
    monkeypatch.setattr(locally_masked_small, "kept_bits", lambda *given: (asked.append(given), kept(*given))[1])
    for channels, times in ((24, 1), (240, 0)):
        x = torch.randn(1, 12, 24, 24, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(channels, 12, 3, 3, dtype=torch.float64)
        y = ops.locally_masked_conv2d(x, weight, mask=bits)
        (got,) = torch.autograd.grad(y.sin().sum(), x)
        (want,) = torch.autograd.grad(reference.locally_masked_conv2d(x, weight, None, bits, 1).sin().sum(), x)
        torch.testing.assert_close(got, want)
        assert len(asked) == times
        asked.clear()


def test_large_float_masks_are_compared_by_value() -> None:
    for shape in ((64, 64, 3, 3), (65, 9, 3, 3)):
        mask = torch.ones(shape)
        seen = Seen(mask)
        assert seen.is_same(mask)
        mask.data[-1, -1, -1, -1] = 0
        assert not seen.is_same(mask)
        assert Seen(mask).is_same(mask)
    part = torch.ones(66, 64, 3, 3)[1:]
    seen = Seen(part)
    assert seen.is_same(part)
    part.data[0, 0, 0, 0] = 0
    assert not seen.is_same(part)
