"""logistic_mixture_log_prob on the CPU: equal to its definition, normalised, exact at extremes, differentiable."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastvae
from fastvae import reference
from fastvae.ops import likelihood_rows, logistic_mixture_log_prob


@pytest.fixture(autouse=True)
def every_size_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", 0)


def levels(num_levels: int, *shape: int) -> Tensor:
    """Random levels, the first and the last among them."""
    x = torch.randint(0, num_levels, shape)
    x.flatten()[:2] = torch.tensor([0, num_levels - 1])[: x.numel()]
    return x


def textbook(x: Tensor, params: Tensor, num_levels: int) -> Tensor:
    """The formula as a difference of probabilities, in float64: (N, C, H, W), (N, P, H, W) -> (N,)."""
    channels, half = x.shape[1], 1 / (num_levels - 1)
    groups = params.unflatten(1, (3 if channels == 1 else 10, -1)).unbind(1)  # K maps each
    scaled = 2 * x.double() / (num_levels - 1) - 1
    means = [groups[1 + 3 * c] for c in range(channels)]
    scales = [groups[2 + 3 * c].exp() for c in range(channels)]
    if channels == 3:
        red, green = scaled[:, None, 0], scaled[:, None, 1]
        means[1] = means[1] + groups[3].tanh() * red
        means[2] = means[2] + groups[6].tanh() * red + groups[9].tanh() * green
    p = groups[0].softmax(1)
    for c in range(channels):
        value, level = scaled[:, None, c], x[:, None, c]
        upper = ((value - means[c] + half) / scales[c]).sigmoid().masked_fill(level == num_levels - 1, 1.0)
        lower = ((value - means[c] - half) / scales[c]).sigmoid().masked_fill(level == 0, 0.0)
        p = p * (upper - lower)
    return p.sum(1).log().sum((1, 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_definition_is_the_textbook_formula(channels: int, num_levels: int) -> None:
    x = levels(num_levels, 4, channels, 2, 3)
    params = torch.randn(4, (3 if channels == 1 else 10) * 5, 2, 3, dtype=torch.float64)
    want = textbook(x, params, num_levels)
    torch.testing.assert_close(reference.logistic_mixture_log_prob(x, params, num_levels), want, rtol=1e-10, atol=0)


@pytest.mark.parametrize("spread", [1.0, 5.0, 30.0])
@pytest.mark.parametrize(("channels", "num_levels"), [(1, 2), (1, 7), (1, 256), (3, 2), (3, 5)])
def test_probabilities_of_all_images_sum_to_one(channels: int, num_levels: int, spread: float) -> None:
    x = torch.tensor(list(itertools.product(range(num_levels), repeat=channels))).view(-1, channels, 1, 1)
    params = torch.randn(4, 1, (3 if channels == 1 else 10) * 3, 1, 1, dtype=torch.float64) * spread
    total = logistic_mixture_log_prob(x, params, num_levels).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=30)
@given(
    samples=st.integers(0, 3),
    points=st.integers(0, 3),
    channels=st.sampled_from([1, 3]),
    components=st.integers(1, 4),
    num_levels=st.sampled_from([2, 17, 256]),
    log_scale=st.sampled_from([-7.0, -3.0, 0.0]),
)
def test_error_is_at_most_twice_that_of_the_definition(
    samples: int, points: int, channels: int, components: int, num_levels: int, log_scale: float
) -> None:
    x = levels(num_levels, points, channels, 3, 4)
    params = torch.randn(samples, points, (3 if channels == 1 else 10) * components, 3, 4)
    params[:, :, 2 * components : 3 * components] += log_scale
    exact = reference.logistic_mixture_log_prob(x, params.double(), num_levels)
    single = reference.logistic_mixture_log_prob(x, params, num_levels)
    ours = logistic_mixture_log_prob(x, params, num_levels)
    assert ours.shape == (samples, points)
    assert ((ours - exact).abs() <= 2 * (single - exact).abs() + 2e-6 * (12 + exact.abs())).all()


@pytest.mark.parametrize(
    ("x_shape", "params_shape"),
    [
        ((3, 1, 4, 5), (2, 3, 9, 4, 5)),
        ((1, 4, 5), (3, 9, 4, 5)),
        ((6, 3, 3, 4, 5), (3, 20, 4, 5)),  # more data than parameters
        ((6, 1, 3, 4, 5), (6, 2, 20, 4, 5)),  # repeats in the middle
        ((0, 3, 4, 5), (2, 0, 20, 4, 5)),
        ((2, 3, 120, 90), (2, 100, 120, 90)),  # one datapoint is larger than a block of the CPU path
        ((301, 1, 20, 20), (301, 6, 20, 20)),  # a remainder after the last full block
    ],
)
def test_shapes_equal_the_definition(x_shape: tuple[int, ...], params_shape: tuple[int, ...]) -> None:
    x, params = levels(17, *x_shape), torch.randn(params_shape, requires_grad=True)
    before, exact = params.detach().clone(), params.detach().double().requires_grad_()
    ours, want = (logistic_mixture_log_prob(x, params, 17), reference.logistic_mixture_log_prob(x, exact, 17))
    torch.testing.assert_close(ours.double(), want, rtol=2e-6, atol=1e-4)
    grad = torch.randn_like(ours)
    (ours_grad,) = torch.autograd.grad(ours, params, grad)
    (want_grad,) = torch.autograd.grad(want, exact, grad.double())
    torch.testing.assert_close(ours_grad.double(), want_grad, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(logistic_mixture_log_prob(x, params, 17), ours)
    assert torch.equal(params, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_keeps_its_layout_in_the_gradient(channels: int) -> None:
    x = levels(17, 4, channels, 6, 8)
    params = torch.randn(4, (3 if channels == 1 else 10) * 3, 6, 8).to(memory_format=torch.channels_last)
    params.requires_grad_()
    ours, want = logistic_mixture_log_prob(x, params, 17), reference.logistic_mixture_log_prob(x, params, 17)
    torch.testing.assert_close(ours, want)
    grads = [torch.autograd.grad(y.sum(), params)[0] for y in (ours, want)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    assert grads[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("few", [0, 2**19])
@pytest.mark.parametrize("log_scale", [-1e4, -30.0, -8.0, 20.0, 100.0, 1e4])
def test_extreme_parameters_are_finite_and_right(log_scale: float, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", few)
    x = levels(256, 1, 1, 2, 3)
    params = torch.randn(1, 6, 2, 3)
    params[:, 0] += 1e4  # logits of the two components
    params[:, 1] -= 1e4
    params[:, 2] = 2 * x[:, 0] / 255.0 - 1.0 + 1e-4  # means within the bin
    params[:, 4:] = log_scale
    params.requires_grad_()
    exact = params.detach().double().requires_grad_()
    ours, want = logistic_mixture_log_prob(x, params, 256), reference.logistic_mixture_log_prob(x, exact, 256)
    torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(ours, params)[0].double(), torch.autograd.grad(want, exact)[0]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


def test_far_from_every_mean_the_logarithm_is_that_of_the_tail_not_a_floor() -> None:
    x = torch.full((1, 1, 1, 1), 200)
    params = torch.tensor([0.0, -1.0, -8.0]).view(1, 3, 1, 1)  # a mean at level 0, a scale of 1/23 of a bin
    ours = logistic_mixture_log_prob(x, params, 256).item()
    distance = (400 - 1) / 255 * math.exp(8)  # to the lower edge, in units of the scale
    assert math.isclose(ours, -distance + math.log1p(-math.exp(-2 / 255 * math.exp(8))), rel_tol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_parameters_are_summed_in_float32(dtype: torch.dtype) -> None:
    x, params = levels(256, 2, 3, 8, 8), torch.randn(3, 2, 20, 8, 8).to(dtype).requires_grad_()
    ours = logistic_mixture_log_prob(x, params)
    assert ours.dtype == torch.float32
    exact = reference.logistic_mixture_log_prob(x, params.double(), 256)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-4)
    (grad,) = torch.autograd.grad(ours.sum(), params)
    (want,) = torch.autograd.grad(exact.sum(), params)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    with fastvae.backend("reference"):
        torch.testing.assert_close(logistic_mixture_log_prob(x, params), ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(logistic_mixture_log_prob(x, params), ours, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64])
def test_data_of_any_dtype(dtype: torch.dtype) -> None:
    x, params = levels(17, 4, 1, 3, 3), torch.randn(2, 4, 6, 3, 3)
    assert torch.equal(logistic_mixture_log_prob(x.to(dtype), params, 17), logistic_mixture_log_prob(x, params, 17))


@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_matches_finite_differences(channels: int) -> None:
    x = levels(4, 3, channels, 1, 2)
    params = torch.randn(2, 3, (3 if channels == 1 else 10) * 2, 1, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda p: logistic_mixture_log_prob(x, p, 4), params)


def test_relaxed_data_have_a_gradient_too() -> None:
    x = (torch.rand(2, 3, 1, 2, dtype=torch.float64) * 14 + 1).requires_grad_()
    params = torch.randn(2, 20, 1, 2, dtype=torch.float64)
    torch.autograd.gradcheck(lambda data: logistic_mixture_log_prob(data, params, 17), x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_is_a_well_formed_operator(layout: str) -> None:
    x, params = levels(17, 3, 3, 4), torch.randn(6, 20, 4)
    params = params if layout == "contiguous" else params.mT.contiguous().mT
    torch.library.opcheck(torch.ops.fastvae.logistic_mixture_log_prob, (x, params.requires_grad_(), 17))


def test_compiles_without_graph_breaks() -> None:
    x, params = levels(17, 3, 1, 4, 4), torch.randn(2, 3, 6, 4, 4)
    compiled = torch.compile(logistic_mixture_log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, params, 17), logistic_mixture_log_prob(x, params, 17))


def test_forward_mode_and_vmap_are_right_not_zero() -> None:
    x, params, v = levels(17, 3, 1, 2, 2), torch.randn(3, 6, 2, 2), torch.randn(3, 6, 2, 2)

    def function(p: Tensor) -> Tensor:
        return logistic_mixture_log_prob(x, p, 17)

    _, tangent = torch.func.jvp(function, (params,), (v,))
    (grad,) = torch.autograd.grad(function(params.requires_grad_()).sum(), params)
    torch.testing.assert_close(tangent, (grad * v).sum((1, 2, 3)), rtol=1e-4, atol=1e-5)
    mapped = torch.vmap(function)(params.detach().expand(4, 3, 6, 2, 2))
    torch.testing.assert_close(mapped, function(params.detach()).expand(4, 3))


@pytest.mark.parametrize(
    ("x", "params", "num_levels", "error", "says"),
    [
        (torch.ones(1, 2, 2), torch.ones(3, 2, 2).long(), 5, TypeError, "params must be floating point"),
        (torch.ones(1, 2, 2), torch.ones(3, 2, 2), 1, ValueError, "num_levels must be at least 2, got 1"),
        (torch.ones(2, 2), torch.ones(3, 2, 2), 5, ValueError, r"x must have shape \(\.\.\., C, H, W\)"),
        (torch.ones(2, 2, 2), torch.ones(6, 2, 2), 5, ValueError, "must have 1 or 3 channels, got 2"),
        (torch.ones(1, 2, 2), torch.ones(4, 2, 2), 5, ValueError, "multiple of 3 channels for images of 1"),
        (torch.ones(3, 2, 2), torch.ones(9, 2, 2), 5, ValueError, "multiple of 10 channels for images of 3"),
        (torch.ones(1, 2, 2), torch.ones(3, 2, 3), 5, ValueError, r"must end in the event shape \(1, 2, 3\) of params"),
        (torch.ones(4, 1, 2, 2), torch.ones(5, 3, 3, 2, 2), 5, ValueError, "must broadcast"),
        (torch.ones(1, 2, 2, device="meta"), torch.ones(3, 2, 2), 5, ValueError, "one device"),
    ],
)
def test_bad_input(x: Tensor, params: Tensor, num_levels: int, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        logistic_mixture_log_prob(x, params, num_levels)
