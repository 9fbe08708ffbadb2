"""One-pass sampling of masked MLPs on a CUDA device: the kernel equals full passes, and repeats itself to the bit."""

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae.nn import MADE, NADE

pytestmark = pytest.mark.gpu

CASES = [(784, [1000, 1000], 64), (64, [256, 256], 64), (64, [256, 256], 5000), (20, [512], 9000), (300, [300], 1)]


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan() -> None:
    torch.manual_seed(0)


def solved(made: MADE, noise: Tensor, draw: str, backend: str) -> Tensor:
    with fastvae.backend(backend), torch.no_grad():  # type: ignore[arg-type]
        return made.solve(noise, None, draw)[0]


@pytest.mark.parametrize(("features", "hidden", "batch"), CASES)
def test_an_inverse_fits_its_own_parameters(features: int, hidden: list[int], batch: int) -> None:
    made = MADE(features, hidden, num_params=2, order=torch.randperm(features), device="cuda")
    y = torch.randn(batch, features, device="cuda")
    x = solved(made, y, "affine_inverse", "triton")
    torch.testing.assert_close(x, solved(made, y, "affine_inverse", "torch"), rtol=1e-4, atol=1e-4)
    shift, log_scale = made(x).unbind(-1)
    torch.testing.assert_close(shift + log_scale.exp() * x, y, rtol=1e-4, atol=1e-4)
    assert torch.equal(solved(made, y, "affine_inverse", "triton"), x)  # one order of sums, no races


@pytest.mark.parametrize(("draw", "num_params"), [("bernoulli", 1), ("categorical", 5)])
def test_discrete_values_are_those_of_the_torch_path(draw: str, num_params: int) -> None:
    made = MADE(100, [200, 200], num_params=num_params, residual=True, device="cuda")
    u = torch.rand(300, 100, device="cuda")
    ours, want = (solved(made, u, draw, backend) for backend in ("triton", "torch"))
    rows = (ours != want).any(1)  # where a number meets its probability within rounding, the row goes its own way
    assert rows.float().mean() < 0.02
    x = ours[rows]
    params = made(x)
    edges = params[..., 0].sigmoid()[..., None] if draw == "bernoulli" else params.softmax(-1).cumsum(-1)
    again = (u[rows] < edges[..., 0]).float() if draw == "bernoulli" else (edges[..., :-1] <= u[rows, :, None]).sum(-1)
    assert ((again != x) <= ((edges - u[rows, :, None]).abs() < 1e-5).any(-1)).all()


@pytest.mark.parametrize(("draw", "num_params"), [("bernoulli", 1), ("affine", 2)])
def test_numbers_made_in_the_kernel_are_those_of_the_library(draw: str, num_params: int) -> None:
    made = MADE(33, [50], num_params=num_params, order=torch.randperm(33), device="cuda")
    found = []
    for backend in ("triton", "torch"):
        with fastvae.backend(backend):  # type: ignore[arg-type]
            found.append(made.sample(500, seed=2**63 + 5, draw=draw, first_id=7))
    if draw == "bernoulli":
        assert (found[0] != found[1]).any(1).float().mean() < 0.02
    else:
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_draws_have_gradients() -> None:
    made = MADE(40, [64, 64], num_params=2, context_features=3, device="cuda")
    noise, context = torch.randn(20, 40, device="cuda"), torch.randn(20, 3, device="cuda", requires_grad=True)
    inputs = [context, *made.parameters()]
    found = []
    for backend in ("triton", "reference"):
        with fastvae.backend(backend):  # type: ignore[arg-type]
            found.append(torch.autograd.grad(made.solve(noise, context)[0].square().sum(), inputs))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_a_graph_of_the_whole_draw() -> None:
    made = MADE(30, [64], num_params=2, device="cuda")
    noise = torch.randn(16, 30, device="cuda")
    want = solved(made, noise, "affine", "triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x = solved(made, noise, "affine", "triton")
    x.zero_()
    graph.replay()
    torch.testing.assert_close(x, want)


@pytest.mark.parametrize("batch", [1, 64, 3000])
def test_nade_scans_equal_their_loop(batch: int) -> None:
    nade = NADE(200, 130, order=torch.randperm(200), device="cuda")
    x = nade.sample(batch, seed=1)
    parameters = list(nade.parameters())
    found = []
    for backend in ("triton", "reference"):
        with fastvae.backend(backend):  # type: ignore[arg-type]
            log_prob = nade.log_prob(x)
            found.append([log_prob, *torch.autograd.grad(log_prob.mean(), parameters)])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
