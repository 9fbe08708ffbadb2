"""categorical_log_prob on the CPU: equal to its definition, accurate, differentiable, clear about bad input."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastvae
from fastvae import reference
from fastvae.ops import categorical_log_prob, likelihood_rows


@pytest.fixture(autouse=True)
def every_size_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", 0)


@settings(deadline=None, max_examples=30)
@given(
    samples=st.integers(0, 4),
    points=st.integers(0, 3),
    size=st.integers(1, 30),
    levels=st.sampled_from([1, 2, 17, 256]),
    scale=st.sampled_from([1.0, 30.0, 1e4]),
)
def test_error_is_at_most_twice_that_of_torch(samples: int, points: int, size: int, levels: int, scale: float) -> None:
    x, logits = torch.randint(0, levels, (points, size)), torch.randn(samples, points, levels, size) * scale
    exact = reference.categorical_log_prob(x, logits.double(), 1, -2)
    cross_entropy = -F.cross_entropy(
        logits.flatten(0, 1), x.expand(samples, points, size).flatten(0, 1), reduction="none"
    ).view(samples, points, size)
    ours = categorical_log_prob(x, logits, event_dims=1, levels_dim=-2)
    assert ours.shape == (samples, points)
    assert ((ours - exact).abs() <= 2 * (cross_entropy.sum(-1) - exact).abs() + 1e-6 * (1 + exact.abs())).all()


def test_definition_is_the_textbook_formula_and_sums_to_one() -> None:
    logits = 5 * torch.randn(1, 3, 4, 2, dtype=torch.float64)  # (N, C, L, W)
    x = torch.tensor(list(itertools.product(range(4), repeat=6))).view(-1, 3, 2)
    log_prob = reference.categorical_log_prob(x, logits, 2, -2)
    p = logits.exp() / logits.exp().sum(-2, keepdim=True)
    textbook = p.expand(len(x), -1, -1, -1).gather(2, x.unsqueeze(2)).log().sum((1, 2, 3))
    torch.testing.assert_close(log_prob, textbook)
    torch.testing.assert_close(log_prob.exp().sum().item(), 1.0, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("x_shape", "logits_shape", "event_dims", "levels_dim"),
    [
        ((3, 2, 5, 4), (6, 3, 2, 7, 5, 4), 3, -3),
        ((2, 5, 4), (3, 2, 7, 5, 4), 3, -3),
        ((6, 3, 2, 5, 4), (3, 2, 7, 5, 4), 3, -3),  # more data than logits
        ((6, 1, 2, 5, 4), (6, 3, 2, 7, 5, 4), 3, -3),  # repeats in the middle
        ((3, 9), (2, 3, 9, 7), 1, -1),
        ((3, 9), (2, 3, 7, 9), 1, -2),
        ((3, 2, 5, 4), (3, 2, 5, 4, 7), 3, -1),
        ((0, 9), (2, 0, 9, 7), 1, -1),
        ((700, 300), (2, 700, 300, 3), 2, -1),  # one datapoint is larger than a block of the CPU path
        ((1, 3, 700), (9, 1, 3, 300, 700), 2, -2),
        ((40, 40), (401, 40, 7, 40), 2, -2),  # a remainder after the last full block
    ],
)
def test_shapes_equal_the_definition(
    x_shape: tuple[int, ...], logits_shape: tuple[int, ...], event_dims: int, levels_dim: int
) -> None:
    x = torch.randint(0, logits_shape[levels_dim], x_shape)
    logits = torch.randn(logits_shape, requires_grad=True)
    before, exact = logits.detach().clone(), logits.detach().double().requires_grad_()
    ours = categorical_log_prob(x, logits, event_dims, levels_dim)
    want = reference.categorical_log_prob(x, exact, event_dims, levels_dim)
    torch.testing.assert_close(ours.double(), want, rtol=2e-6, atol=1e-4)
    grad = torch.randn_like(ours)
    (ours_grad,) = torch.autograd.grad(ours, logits, grad)
    (want_grad,) = torch.autograd.grad(want, exact, grad.double())
    torch.testing.assert_close(ours_grad.double(), want_grad, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(categorical_log_prob(x, logits, event_dims, levels_dim), ours)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_keeps_its_layout_in_the_gradient(channels: int) -> None:
    x = torch.randint(0, 5, (4, channels, 6, 8))
    params = torch.randn(4, channels * 5, 6, 8).to(memory_format=torch.channels_last).requires_grad_()
    logits = params.unflatten(1, (channels, 5))
    ours = categorical_log_prob(x, logits)
    want = reference.categorical_log_prob(x, logits, 3, -3)
    torch.testing.assert_close(ours, want)
    (grad,) = torch.autograd.grad(ours.sum(), params, retain_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(want.sum(), params)[0])
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("few", [0, 2**19])
def test_bytes_have_256_levels(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", few)
    x, logits = torch.arange(256).view(2, 128), torch.randn(2, 128, 256)
    torch.testing.assert_close(categorical_log_prob(x.byte(), logits, 1, -1), categorical_log_prob(x, logits, 1, -1))
    exact = logits.log_softmax(-1).flatten(0, 1).diagonal().view(2, 128).sum(1)
    torch.testing.assert_close(categorical_log_prob(x.byte(), logits, 1, -1), exact)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32, torch.float64])
def test_data_of_any_dtype(dtype: torch.dtype) -> None:
    x, logits = torch.randint(0, 17, (4, 6)), torch.randn(2, 4, 6, 17)
    assert torch.equal(categorical_log_prob(x.to(dtype), logits, 1, -1), categorical_log_prob(x, logits, 1, -1))
    binary = (x > 8) if dtype == torch.uint8 else (x > 8).to(dtype)
    torch.testing.assert_close(
        categorical_log_prob(binary, logits[..., :2], 1, -1),
        categorical_log_prob((x > 8).long(), logits[..., :2], 1, -1),
    )


@pytest.mark.parametrize("few", [0, 2**19])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_summed_in_float32(dtype: torch.dtype, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", few)
    x, logits = torch.randint(0, 5, (1, 3000)), torch.randn(3, 1, 3000, 5).to(dtype).requires_grad_()
    ours = categorical_log_prob(x, logits, 1, -1)
    assert ours.dtype == torch.float32
    exact = reference.categorical_log_prob(x, logits.double(), 1, -1)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-4)
    (grad,) = torch.autograd.grad(ours.sum(), logits, retain_graph=True)
    (want,) = torch.autograd.grad(exact.sum(), logits)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    with fastvae.backend("reference"):
        torch.testing.assert_close(categorical_log_prob(x, logits, 1, -1), ours)


@pytest.mark.parametrize("layout", [-1, -2])
def test_large_and_infinite_logits_keep_their_digits(layout: int) -> None:
    x = torch.tensor([0, 1, 2, 0])
    logits = torch.randn(4, 5)
    logits[1] += 1e4  # all of them: nothing changes
    logits[2, 2] = -1e4
    logits[3, 1:3] = -torch.inf
    logits = logits if layout == -1 else logits.T.contiguous()
    logits, exact = logits.requires_grad_(), logits.detach().double().requires_grad_()
    ours, want = categorical_log_prob(x, logits, 1, layout), reference.categorical_log_prob(x, exact, 1, layout)
    torch.testing.assert_close(ours.double(), want, rtol=1e-7, atol=0)
    grads = torch.autograd.grad(ours, logits)[0].double(), torch.autograd.grad(want, exact)[0]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-7)


def test_values_that_are_no_level_have_probability_zero_and_no_gradient() -> None:
    x = torch.tensor([[-1.0, 0.0], [0.5, 0.0], [3.0, 0.0], [torch.nan, 0.0], [2.0, 0.0]])
    logits = torch.randn(5, 2, 3, requires_grad=True)
    ours, want = categorical_log_prob(x, logits, 1, -1), reference.categorical_log_prob(x, logits, 1, -1)
    assert ours[:4].tolist() == [-torch.inf] * 4
    torch.testing.assert_close(ours, want)
    grads = [torch.autograd.grad(y.sum(), logits, retain_graph=True)[0] for y in (ours, want)]
    torch.testing.assert_close(*grads)


def test_gradient_matches_finite_differences() -> None:
    x = torch.randint(0, 4, (3, 2))
    logits = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda l: categorical_log_prob(x, l, 1, -1), logits)


@pytest.mark.parametrize("shape", [(6, 2, 5, 3), (6, 2, 5, 1)])
def test_is_a_well_formed_operator(shape: tuple[int, ...]) -> None:
    x, logits = torch.randint(0, 5, (3, 2, shape[-1])), torch.randn(shape, requires_grad=True)
    torch.library.opcheck(torch.ops.fastvae.categorical_log_prob, (x, logits))


def test_compiles_without_graph_breaks() -> None:
    x, logits = torch.randint(0, 5, (3, 1, 4, 4)), torch.randn(2, 3, 1, 5, 4, 4)
    compiled = torch.compile(categorical_log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, logits), categorical_log_prob(x, logits))


def test_forward_mode_and_vmap_are_right_not_zero() -> None:
    x, logits, v = torch.randint(0, 5, (3, 7)), torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    _, tangent = torch.func.jvp(lambda l: categorical_log_prob(x, l, 1, -1), (logits,), (v,))
    torch.testing.assert_close(tangent, ((F.one_hot(x, 5) - logits.softmax(-1)) * v).sum((-1, -2)))
    mapped = torch.vmap(lambda l: categorical_log_prob(x, l, 1, -1))(logits.expand(4, 3, 7, 5))
    torch.testing.assert_close(mapped, categorical_log_prob(x, logits, 1, -1).expand(4, 3))


def test_autocast_leaves_the_sum_in_float32() -> None:
    x, logits = torch.randint(0, 5, (2, 500)), torch.randn(2, 500, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = categorical_log_prob(x, logits, 1, -1)
    assert torch.equal(inside, categorical_log_prob(x, logits, 1, -1))


@pytest.mark.parametrize(
    ("x", "logits", "options", "error", "says"),
    [
        (torch.ones(2, 3), torch.ones(2, 3, 5, dtype=torch.long), {}, TypeError, "logits must be floating point"),
        (torch.ones(2, 3), torch.ones(2, 3, 5), {"event_dims": 3}, ValueError, "event_dims must be between 1 and"),
        (torch.ones(2, 3), torch.ones(2, 3, 5), {"levels_dim": -3}, ValueError, "levels_dim must be between -2 and -1"),
        (torch.ones(2, 3), torch.ones(2, 3, 5), {"levels_dim": 2}, ValueError, "levels_dim must be between"),
        (torch.ones(2, 4), torch.ones(2, 3, 5), {}, ValueError, r"must end in the event shape \(3,\) of logits"),
        (torch.ones(4, 3), torch.ones(5, 2, 3, 5), {}, ValueError, "must broadcast"),
        (torch.ones(2, 3), torch.ones(2, 3, 0), {}, ValueError, "at least one level"),
        (torch.ones(2, 3, device="meta"), torch.ones(2, 3, 5), {}, ValueError, "one device"),
    ],
)
def test_bad_input(x: Tensor, logits: Tensor, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        categorical_log_prob(x, logits, **({"event_dims": 1, "levels_dim": -1} | options))
