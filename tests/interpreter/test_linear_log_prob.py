"""The kernels of the last layer with its Gaussian or categorical likelihood, interpreted, equal their definitions."""

import pytest
import torch
from fastvae_kernels.linear_categorical_log_prob import linear_categorical_forward, linear_categorical_grad_logits
from fastvae_kernels.linear_gaussian_log_prob import linear_gaussian_forward, linear_gaussian_grad_params

import fastvae
from fastvae import ops, reference
from fastvae.ops import linear_operators, linear_rows

# (X, repeats, A, B, H): fewer and more than a tile, several channels, steps that leave a rest, tiles of one datapoint
SHAPES = [(1, 1, 1, 1, 1), (3, 6, 2, 5, 40), (2, 35, 1, 70, 17), (2, 120, 2, 5, 17)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["outputs", "one", "by value"])
def test_gaussian_equals_its_definition(scale: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    num_data, repeats, channels, places, inner = shape
    size = channels * places
    log_scale = {"outputs": None, "one": torch.tensor([-0.7]), "by value": torch.randn(size)}[scale]
    outputs = 2 * size if log_scale is None else size
    x, h = torch.randn(num_data, channels, places), torch.randn(repeats * num_data, inner).to(dtype)
    weight, bias = (torch.randn(outputs, inner) / inner).to(dtype), torch.randn(outputs).to(dtype)
    params = (h.double() @ weight.double().t() + bias.double()).requires_grad_()
    shared = None if log_scale is None else log_scale.double().requires_grad_()
    loc, scales = (params, shared) if shared is not None else params.view(-1, channels, 2, places).unbind(2)
    data = x.double().flatten(1).repeat(repeats, 1)
    want = reference.gaussian_log_prob(data, loc.flatten(1), scales.flatten(1) if scales.ndim > 1 else scales, 1)
    ours = linear_gaussian_forward(x, h, weight, bias, log_scale)
    torch.testing.assert_close(ours.double(), want.detach(), rtol=1e-5, atol=1e-4)

    grad = torch.randn(repeats * num_data)
    by_params, by_shared = linear_gaussian_grad_params(x, h, weight, bias, log_scale, grad)
    wants = torch.autograd.grad(want, [params] if shared is None else [params, shared], grad.double())
    digits = 2e-3 if dtype == torch.float16 else 1e-5  # gradients are in the dtype of h
    torch.testing.assert_close(by_params.double(), wants[0], rtol=digits, atol=digits * float(wants[0].abs().max()))
    assert by_params.dtype == dtype
    if shared is not None:
        torch.testing.assert_close(by_shared.double(), wants[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_levels", [1, 7, 100, 300])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 6, 2, 3, 40), (2, 120, 1, 2, 17)])
def test_categorical_equals_its_definition(shape: tuple[int, ...], num_levels: int, dtype: torch.dtype) -> None:
    num_data, repeats, channels, places, inner = shape
    outputs = channels * num_levels * places
    x, h = torch.randint(num_levels, (num_data, channels, places)), torch.randn(repeats * num_data, inner).to(dtype)
    weight, bias = torch.randn(outputs, inner).to(dtype), (5 * torch.randn(outputs)).to(dtype)
    logits = (h.double() @ weight.double().t() + bias.double()).view(-1, channels, num_levels, places).requires_grad_()
    want = reference.categorical_log_prob(x.repeat(repeats, 1, 1), logits, 2, -2)
    ours = linear_categorical_forward(x, h, weight, bias)
    torch.testing.assert_close(ours.double(), want.detach(), rtol=1e-5, atol=1e-4)

    grad = torch.randn(repeats * num_data)
    weight, bias = (v.unflatten(0, logits.shape[1:]).transpose(1, 2).flatten(0, 2).contiguous() for v in (weight, bias))
    ours = linear_categorical_grad_logits(x.flatten(1), h, weight, bias, grad)
    (wanted,) = torch.autograd.grad(want, logits, grad.double())
    digits = 2e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(ours.double(), wanted.transpose(2, 3).flatten(1), rtol=digits, atol=digits)


def test_a_value_that_is_no_level_has_probability_zero() -> None:
    x = torch.tensor([[[0.0], [1.0]], [[2.0], [0.0]], [[-1.0], [0.0]], [[0.5], [0.0]]])
    ours = linear_categorical_forward(x, torch.zeros(4, 3), torch.zeros(4, 3), None)
    torch.testing.assert_close(ours.exp(), torch.tensor([0.25, 0.0, 0.0, 0.0]))
    grads = linear_categorical_grad_logits(x.flatten(1), torch.zeros(4, 3), torch.zeros(4, 3), None, torch.ones(4))
    want = torch.zeros(4, 4)
    want[:3] = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0, 0.0, 0.5, -0.5], [0.0, 0.0, 0.5, -0.5]])
    torch.testing.assert_close(grads[0], want[0])


def test_the_operators_reach_the_kernels_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_rows, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(linear_operators, "_KEPT", 0)
    monkeypatch.setitem(linear_rows._CHUNK, "cpu", 200)  # several chunks
    h, grad = torch.randn(5, 3, 8, requires_grad=True), torch.randn(5, 3)
    x, levels, log_scale = torch.randn(3, 12), torch.randint(4, (3, 2, 3, 2)), torch.randn(12, requires_grad=True)
    one, two, four = (torch.randn(12 * n, 8, requires_grad=True) for n in (1, 2, 4))
    bias, mixture = torch.randn(12 * 4, requires_grad=True), torch.randn(2 * 10 * 6, 8, requires_grad=True)
    images, pixels = torch.randint(5, (3, 3, 2, 3)), torch.randint(5, (3, 3))
    cases = [
        (lambda ops: ops.linear_gaussian_log_prob(h, two, None, x), (h, two)),
        (lambda ops: ops.linear_gaussian_log_prob(h, one, None, x, log_scale), (h, one, log_scale)),
        (lambda ops: ops.linear_gaussian_log_prob(h, one, None, x, log_scale[0]), (h, one, log_scale)),
        (lambda ops: ops.linear_categorical_log_prob(h, four, bias, levels, 3, -1), (h, four, bias)),
        (lambda ops: ops.linear_categorical_log_prob(h, four, bias, levels, 3, -3), (h, four, bias)),
        (lambda ops: ops.linear_logistic_mixture_log_prob(h, mixture, None, images, 5), (h, mixture)),
        (lambda ops: ops.linear_logistic_mixture_log_prob(h, mixture, None, pixels, 5, 1), (h, mixture)),
    ]
    for call, inputs in cases:
        with fastvae.backend("triton"):
            ours = call(ops)
            grads = torch.autograd.grad(ours, inputs, grad)
        with fastvae.backend("reference"):
            want = call(ops)
        torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(grads, torch.autograd.grad(want, inputs, grad), rtol=1e-4, atol=1e-4)


def test_float64_is_refused_with_the_reason() -> None:
    h, weight = torch.zeros(2, 3).double(), torch.zeros(4, 3).double()
    with fastvae.backend("triton"):
        with pytest.raises(RuntimeError, match="float64"):
            ops.linear_gaussian_log_prob(h, weight, None, torch.zeros(2, 2).double())
        with pytest.raises(RuntimeError, match="float64"):
            ops.linear_categorical_log_prob(h, weight, None, torch.zeros(2, 2))
