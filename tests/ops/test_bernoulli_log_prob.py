"""bernoulli_log_prob on the CPU: equal to its definition, accurate, differentiable, clear about bad input."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvae
from fastvae import reference
from fastvae.ops import bernoulli_log_prob, likelihood_rows


@pytest.fixture(autouse=True)
def every_size_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", 0)


def binary(*shape: int) -> torch.Tensor:
    return torch.bernoulli(torch.full(shape, 0.5))


@settings(deadline=None, max_examples=50)
@given(
    samples=st.integers(0, 4),
    points=st.integers(0, 3),
    size=st.integers(1, 300),
    scale=st.sampled_from([1.0, 30.0, 1e4]),
)
def test_error_is_at_most_twice_that_of_torch(samples: int, points: int, size: int, scale: float) -> None:
    x, logits = binary(points, size), torch.randn(samples, points, size) * scale
    exact = reference.bernoulli_log_prob(x, logits.double(), 1)
    bce = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    ours = bernoulli_log_prob(x, logits, event_dims=1)
    assert ours.shape == (samples, points)
    assert ((ours - exact).abs() <= 2 * (bce - exact).abs() + 1e-6 * (1 + exact.abs())).all()


def test_definition_is_the_textbook_formula() -> None:
    x, logits = binary(4, 1, 3, 5).double(), torch.randn(2, 4, 1, 3, 5, dtype=torch.float64)
    p = logits.sigmoid()
    textbook = (x * p.log() + (1 - x) * (1 - p).log()).sum((-1, -2, -3))
    torch.testing.assert_close(reference.bernoulli_log_prob(x, logits, 3), textbook)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_logits_are_exact(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    logits = torch.tensor([[1e4, -1e4, -1e4, 1e4]], dtype=dtype)
    assert bernoulli_log_prob(x, logits, event_dims=1).item() == -2e4
    assert bernoulli_log_prob(x[:, :2], logits[:, :2], event_dims=1).item() == 0.0


@pytest.mark.parametrize(
    ("x_shape", "logits_shape"),
    [
        ((3, 700, 800), (1, 3, 700, 800)),  # one datapoint is larger than a block of the CPU path
        ((1, 700, 800), (2, 3, 700, 800)),
        ((1, 40, 40), (301, 1, 40, 40)),  # a remainder after the last full block
        ((40, 40), (5, 7, 40, 40)),
        ((5, 1, 40, 40), (5, 7, 40, 40)),  # repeats in the middle
        ((6, 7, 40, 40), (7, 40, 40)),  # more data than logits
    ],
)
def test_blocks_and_broadcasting_equal_the_definition(x_shape: tuple[int, ...], logits_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, logits = binary(*x_shape), torch.randn(logits_shape)
    before = logits.clone()
    torch.testing.assert_close(bernoulli_log_prob(x, logits, 2), reference.bernoulli_log_prob(x, logits, 2))
    assert torch.equal(logits, before)


def test_layout_of_the_logits_does_not_matter() -> None:
    x = binary(4, 3, 5, 6)
    logits = torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last)
    torch.testing.assert_close(bernoulli_log_prob(x, logits), reference.bernoulli_log_prob(x, logits, 3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_data_of_any_dtype(dtype: torch.dtype) -> None:
    x, logits = binary(4, 6), torch.randn(2, 4, 6)
    assert torch.equal(bernoulli_log_prob(x.to(dtype), logits, 1), bernoulli_log_prob(x, logits, 1))


@pytest.mark.parametrize("few", [0, 2**19])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_summed_in_float32(dtype: torch.dtype, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", few)
    x, logits = binary(1, 5000), torch.randn(3, 1, 5000).to(dtype)
    ours = bernoulli_log_prob(x, logits, 1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), reference.bernoulli_log_prob(x, logits.double(), 1), rtol=1e-6, atol=1e-4)
    with fastvae.backend("reference"):
        torch.testing.assert_close(bernoulli_log_prob(x, logits, 1), ours)


def test_gradient_matches_finite_differences_and_the_definition() -> None:
    x = binary(3, 7)
    logits = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda l: bernoulli_log_prob(x, l, 1), logits)
    large = (torch.randn(2, 3, 7) * 100).requires_grad_()
    (ours,) = torch.autograd.grad(bernoulli_log_prob(x, large, 1).sum(), large)
    (want,) = torch.autograd.grad(reference.bernoulli_log_prob(x, large, 1).sum(), large)
    torch.testing.assert_close(ours, want)


def test_gradient_reaches_logits_that_broadcast() -> None:
    x, logits = binary(5, 7), torch.randn(1, 7, requires_grad=True)
    (ours,) = torch.autograd.grad(bernoulli_log_prob(x, logits, 1).sum(), logits)
    (want,) = torch.autograd.grad(reference.bernoulli_log_prob(x, logits, 1).sum(), logits)
    torch.testing.assert_close(ours, want)


def test_relaxed_data_have_a_gradient_too() -> None:
    x, logits = torch.rand(3, 7, dtype=torch.float64, requires_grad=True), torch.randn(3, 7, dtype=torch.float64)
    torch.autograd.gradcheck(lambda data: bernoulli_log_prob(data, logits, 1), x)


def test_is_a_well_formed_operator() -> None:
    logits = torch.randn(6, 9, requires_grad=True)
    torch.library.opcheck(torch.ops.fastvae.bernoulli_log_prob, (binary(3, 9), logits))


def test_compiles_without_graph_breaks() -> None:
    x, logits = binary(3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4)
    compiled = torch.compile(bernoulli_log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, logits), bernoulli_log_prob(x, logits))


def test_forward_mode_and_vmap_are_right_not_zero() -> None:
    x, logits, v = binary(3, 7), torch.randn(3, 7), torch.randn(3, 7)
    _, tangent = torch.func.jvp(lambda l: bernoulli_log_prob(x, l, 1), (logits,), (v,))
    torch.testing.assert_close(tangent, ((x - logits.sigmoid()) * v).sum(-1))
    mapped = torch.vmap(lambda l: bernoulli_log_prob(x, l, 1))(logits.expand(4, 3, 7))
    torch.testing.assert_close(mapped, bernoulli_log_prob(x, logits, 1).expand(4, 3))


@pytest.mark.parametrize(
    ("x", "logits", "event_dims", "error", "says"),
    [
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.long), 1, TypeError, "logits must be floating point"),
        (torch.ones(2, 3), torch.ones(2, 3), 3, ValueError, "flat data take event_dims=1"),
        (torch.ones(2, 4), torch.ones(2, 3), 1, ValueError, r"must end in the event shape \(3,\)"),
        (torch.ones(4, 3), torch.ones(5, 2, 3), 1, ValueError, "must broadcast"),
        (torch.ones(2, 3, device="meta"), torch.ones(2, 3), 1, ValueError, "one device"),
    ],
)
def test_bad_input(x: torch.Tensor, logits: torch.Tensor, event_dims: int, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        bernoulli_log_prob(x, logits, event_dims)
