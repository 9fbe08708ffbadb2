"""gaussian_log_prob on the CPU: equal to its definition, accurate, differentiable, clear about bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

import fastvae
from fastvae import reference
from fastvae.ops import gaussian_log_prob, likelihood_rows

# shapes of x, of the means and of the log-scales, event (7,)
SHAPES = [
    ((3, 7), (2, 3, 7), (2, 3, 7)),  # learned for every value
    ((3, 7), (2, 3, 7), ()),  # one for all
    ((3, 7), (2, 3, 7), (7,)),  # one per pixel
    ((3, 7), (2, 3, 7), (3, 7)),
    ((3, 7), (2, 3, 7), (3, 1)),
    ((3, 7), (2, 3, 7), (2, 1, 7)),
    ((7,), (2, 3, 7), (3, 7)),
    ((4, 2, 3, 7), (2, 3, 7), (3, 7)),  # more data than means
    ((7,), (7,), (4, 7)),
    ((0, 7), (2, 0, 7), ()),
]


@pytest.fixture(autouse=True)
def every_size_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", 0)


@settings(deadline=None, max_examples=30)
@given(
    samples=st.integers(0, 4),
    points=st.integers(0, 3),
    size=st.integers(1, 300),
    spread=st.sampled_from([0.3, 3.0]),
    shared=st.booleans(),
)
def test_error_is_at_most_twice_that_of_torch(
    samples: int, points: int, size: int, spread: float, shared: bool
) -> None:
    x, loc = torch.randn(points, size), torch.randn(samples, points, size)
    log_scale = torch.randn(() if shared else loc.shape) * spread
    exact = reference.gaussian_log_prob(x, loc.double(), log_scale.double(), 1)
    normal = Normal(loc, log_scale.exp(), validate_args=False).log_prob(x).sum(-1)
    ours = gaussian_log_prob(x, loc, log_scale, event_dims=1)
    assert ours.shape == (samples, points)
    assert ((ours - exact).abs() <= 2 * (normal - exact).abs() + 1e-6 * (size + exact.abs())).all()


def test_definition_is_the_density_of_torch() -> None:
    x, loc, log_scale = (torch.randn(4, 1, 3, 5, dtype=torch.float64) for _ in range(3))
    want = Normal(loc, log_scale.exp()).log_prob(x).sum((-1, -2, -3))
    torch.testing.assert_close(reference.gaussian_log_prob(x, loc, log_scale, 3), want)


@pytest.mark.parametrize("shapes", SHAPES)
def test_every_way_to_share_a_scale_equals_the_definition(shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ours, want = gaussian_log_prob(*inputs, event_dims=1), reference.gaussian_log_prob(*inputs, 1)
    torch.testing.assert_close(ours, want)
    grad = torch.randn_like(want)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(want, inputs, grad))
    with torch.no_grad():
        assert torch.equal(gaussian_log_prob(*inputs, event_dims=1), ours)


@pytest.mark.parametrize("scales", [(1, 3, 700, 800), (700, 800), ()])
def test_rows_larger_than_a_block_and_remainders_equal_the_definition(scales: tuple[int, ...]) -> None:
    for lead, size in (((1, 3), (700, 800)), ((301, 1), (40, 50))):
        x, loc = torch.randn(*lead[1:], *size), torch.randn(*lead, *size, requires_grad=True)
        log_scale = torch.randn(loc.shape if len(scales) == 4 else size if scales else ()).mul(0.3).requires_grad_()
        before = loc.detach().clone(), log_scale.detach().clone()
        ours, want = (f(x, loc, log_scale, 2) for f in (gaussian_log_prob, reference.gaussian_log_prob))
        torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-2)
        grads = [torch.autograd.grad(y.sum(), (loc, log_scale)) for y in (ours, want)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-3)
        assert torch.equal(loc, before[0])
        assert torch.equal(log_scale, before[1])


@pytest.mark.parametrize("few", [0, 2**19])
def test_both_sides_of_the_threshold_agree_in_values_and_dtypes(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood_rows, "FEW", few)
    x, loc = torch.randint(0, 5, (4, 6)), torch.randn(2, 4, 6).half().requires_grad_()
    log_scale = torch.randn(6, dtype=torch.bfloat16, requires_grad=True)
    ours = gaussian_log_prob(x, loc, log_scale, 1)
    assert ours.dtype == torch.float32
    exact = reference.gaussian_log_prob(x, loc.double(), log_scale.double(), 1)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(ours.sum(), (loc, log_scale))
    assert [grad.dtype for grad in grads] == [torch.float16, torch.bfloat16]
    assert gaussian_log_prob(x, loc, log_scale.double(), 1).dtype == torch.float64


def test_tiny_and_huge_scales() -> None:
    loc = torch.tensor([0.0, 0.0, 1e-20, 0.0])
    log_scale = torch.tensor([-46.0, -200.0, -46.0, 1e4], requires_grad=True)  # a standard deviation of 1e-20
    want = reference.gaussian_log_prob(torch.zeros(4), loc.double(), log_scale.double(), 1)
    ours = gaussian_log_prob(torch.zeros(4), loc, log_scale, 1)
    torch.testing.assert_close(ours.double(), want)
    (grad,) = torch.autograd.grad(ours, log_scale)
    noise = 1e-20 * math.exp(46.0)
    torch.testing.assert_close(grad, torch.tensor([-1.0, -1.0, noise**2 - 1.0, -1.0]))


def test_layout_does_not_matter() -> None:
    x = torch.randn(4, 3, 5, 6)
    loc, log_scale = (torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last) for _ in range(2))
    torch.testing.assert_close(gaussian_log_prob(x, loc, log_scale), reference.gaussian_log_prob(x, loc, log_scale, 3))


def test_gradients_match_finite_differences() -> None:
    for shapes in (SHAPES[0], SHAPES[1], SHAPES[2]):
        inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        torch.autograd.gradcheck(lambda *t: gaussian_log_prob(*t, event_dims=1), inputs)


@pytest.mark.parametrize("scales", [(6, 9), (1, 9), (1, 1), (3, 1)])
def test_is_a_well_formed_operator(scales: tuple[int, int]) -> None:
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((3, 9), (6, 9), scales)]
    torch.library.opcheck(torch.ops.fastvae.gaussian_log_prob, inputs)


def test_compiles_without_graph_breaks() -> None:
    x, loc, log_scale = torch.randn(3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4), torch.tensor(0.3)
    compiled = torch.compile(gaussian_log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, loc, log_scale), gaussian_log_prob(x, loc, log_scale))


def test_forward_mode_and_vmap_are_right_not_zero() -> None:
    x, loc, log_scale, v = (torch.randn(3, 7) for _ in range(4))
    _, tangent = torch.func.jvp(lambda l: gaussian_log_prob(x, l, log_scale, 1), (loc,), (v,))
    torch.testing.assert_close(tangent, ((x - loc) * (-2 * log_scale).exp() * v).sum(-1))
    mapped = torch.vmap(lambda l: gaussian_log_prob(x, l, log_scale, 1))(loc.expand(4, 3, 7))
    torch.testing.assert_close(mapped, gaussian_log_prob(x, loc, log_scale, 1).expand(4, 3))


def test_autocast_leaves_the_sum_in_float32() -> None:
    x, loc, log_scale = (torch.randn(2, 500) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gaussian_log_prob(x, loc, log_scale, 1)
    assert torch.equal(inside, gaussian_log_prob(x, loc, log_scale, 1))
    with fastvae.backend("reference"):
        torch.testing.assert_close(gaussian_log_prob(x, loc, log_scale, 1), inside)


@pytest.mark.parametrize(
    ("shapes", "error", "says"),
    [
        (((2, 4), (2, 3), ()), ValueError, r"x must end in the event shape \(3,\) of loc"),
        (((4, 3), (5, 2, 3), ()), ValueError, "leading shape of x must broadcast with that of loc"),
        (((2, 3), (2, 3), (2, 4)), ValueError, r"log_scale must broadcast with loc, got \(2, 4\) and \(2, 3\)"),
        (((2, 3), (2, 3), (5, 3)), ValueError, "log_scale must broadcast with loc"),
        (((2, 1), (2, 1), (2, 3)), ValueError, "log_scale must broadcast with loc"),
        (((), (2, 3), ()), ValueError, "flat data take event_dims=1"),
    ],
)
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        gaussian_log_prob(*(torch.ones(shape) for shape in shapes), event_dims=1)


def test_dtypes_and_devices_that_do_not_fit() -> None:
    ones = torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"log_scale must be floating point, got torch.int64"):
        gaussian_log_prob(ones, ones, ones.long(), 1)
    with pytest.raises(TypeError, match="x must be real"):
        gaussian_log_prob(ones.cfloat(), ones, ones, 1)
    with pytest.raises(ValueError, match="x and loc must be on one device, got cpu and meta"):
        gaussian_log_prob(ones, ones.to("meta"), ones, 1)
