"""Flows: log-determinants are autograd's, both ways fit, densities integrate to one, and whose past is seen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, LowerCholeskyTransform, TanhTransform, Transform

from fastvae.distributions import DiagonalGaussian, Flow
from fastvae.distributions.flows import (
    AffineCoupling,
    InverseAutoregressive,
    MaskedAutoregressive,
    PlanarTransform,
    to_data,
    to_noise,
)

D, C = 4, 3
CLOSE = {"rtol": 1e-5, "atol": 1e-4}  # of chains: a planar step may be nearly flat


def randomised(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


LAYERS: dict[str, Callable[[], Transform]] = {
    "planar": lambda: PlanarTransform(random(D), random(D), random(1)[0]),
    "planar, w v below -1": lambda: PlanarTransform(-3 * torch.ones(D).double(), torch.ones(D).double(), random(1)[0]),
    "coupling": lambda: randomised(AffineCoupling(D, [8]))(),
    "coupling, flipped, context": lambda: randomised(AffineCoupling(D, [8], context_features=C, flip=True))(random(C)),
    "coupling, odd": lambda: randomised(AffineCoupling(3, [8]))(),
    "maf": lambda: randomised(MaskedAutoregressive(D, [8, 8]))(),
    "maf, context, order": lambda: randomised(MaskedAutoregressive(D, [9], context_features=C, order=[2, 0, 3, 1]))(
        random(C)
    ),
    "iaf": lambda: randomised(InverseAutoregressive(D, [8, 8]))(),
    "iaf, gate, context": lambda: randomised(InverseAutoregressive(D, [9], context_features=C, gate_bias=1.5))(
        random(C)
    ),
    "maf, gate": lambda: randomised(MaskedAutoregressive(D, [9], gate_bias=1.5, order=[3, 2, 1, 0]))(),
    "torch": lambda: AffineTransform(random(D), random(D)),
    "zuko": lambda: zuko.transforms.SOSPolynomialTransform(random(D, 2, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_log_determinants_are_those_of_autograd_and_both_ways_fit(name: str) -> None:
    transform = LAYERS[name]()
    noise = random(3 if "odd" in name else D)
    data, log_det = to_data(transform, noise)
    jacobian = torch.autograd.functional.jacobian(lambda u: to_data(transform, u)[0], noise)
    assert isinstance(jacobian, Tensor)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], rtol=1e-10, atol=1e-10)
    back, log_det_back = to_noise(transform, data)
    tolerance = 1e-5 if name == "zuko" else 1e-9  # zuko's bisection
    torch.testing.assert_close(back, noise, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(log_det_back, -log_det, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "zuko"])
def test_gradients_of_the_way_back_are_exact(name: str) -> None:
    transform = LAYERS[name]()
    data = random(3 if "odd" in name else D)
    back = torch.autograd.functional.jacobian(lambda z: to_noise(transform, z)[0], data)
    there = torch.autograd.functional.jacobian(lambda u: to_data(transform, u)[0], to_noise(transform, data)[0])
    assert isinstance(back, Tensor)
    torch.testing.assert_close(back @ there, torch.eye(len(data)).double(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["coupling", "maf", "iaf, gate, context"])
def test_transforms_work_in_the_classes_of_torch(name: str) -> None:
    transform = LAYERS[name]()
    base = Independent(Normal(torch.zeros(D).double(), torch.ones(D).double()), 1)
    z = random(5, D)
    ours, theirs = Flow(base, [transform]), TransformedDistribution(base, [transform])
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))


def flow(batch: int) -> Flow:
    """One of each kind, with parameters of their own for every datapoint where they take some."""
    context = random(batch, C)
    return Flow(
        DiagonalGaussian(random(batch, D), 0.3 * random(batch, D)),
        [
            PlanarTransform(random(batch, D), random(batch, D), random(batch)),
            randomised(AffineCoupling(D, [8], context_features=C))(context),
            randomised(InverseAutoregressive(D, [8], context_features=C, gate_bias=1.0))(context),
            randomised(MaskedAutoregressive(D, [8]))(),
        ],
    )


def test_draws_come_with_the_density_that_their_points_have() -> None:
    q = flow(6)
    z, log_q = q.rsample_and_log_prob((5,))
    assert (z.shape, log_q.shape, q.batch_shape, q.event_shape) == ((5, 6, D), (5, 6), (6,), (D,))
    torch.testing.assert_close(q.log_prob(z), log_q, **CLOSE)
    noise = random(5, 6, q.noise_size)
    z, log_q = q.from_noise(noise)
    torch.testing.assert_close(q.log_prob(z), log_q, **CLOSE)
    one = q.log_prob(z[:, 2:3])[:, 2]  # points broadcast with the batch
    torch.testing.assert_close(one, log_q[:, 2], **CLOSE)


def test_a_flow_is_a_density() -> None:
    base = DiagonalGaussian(torch.zeros(2).double(), torch.zeros(2).double())
    layers = [InverseAutoregressive(2, [5]), AffineCoupling(2, [5]), MaskedAutoregressive(2, [5], order=[1, 0])]
    q = Flow(base, [PlanarTransform(random(2), random(2), random(1)[0]), *(randomised(layer)() for layer in layers)])
    z = q.sample((100_000,))
    wide = DiagonalGaussian(z.mean(0), z.std(0).log() + 0.7)
    points = wide.sample((100_000,))
    with torch.no_grad():
        weights = (q.log_prob(points) - wide.log_prob(points)).exp()
    assert abs(weights.mean() - 1) < 5 * weights.std() / 100_000**0.5


def test_a_gaussian_of_torch_as_base_takes_noise_too_and_others_draw_for_themselves() -> None:
    q = Flow(Independent(Normal(random(6, D), torch.ones(6, D).double()), 1), [TanhTransform()])
    assert q.noise_size == D
    z, log_q = q.from_noise(0.1 * random(2, 6, D))
    torch.testing.assert_close(q.log_prob(z), log_q)
    correlated = Flow(MultivariateNormal(random(D), torch.eye(D).double()), [TanhTransform()])
    assert not hasattr(correlated, "from_noise")
    assert not hasattr(correlated, "noise_size")
    z, log_q = correlated.rsample_and_log_prob((3,))
    assert z.shape == (3, D)
    assert log_q.shape == (3,)


def test_new_layers_are_the_identity_and_a_gate_nearly() -> None:
    noise = torch.randn(5, D)
    for layer in (AffineCoupling(D), MaskedAutoregressive(D), InverseAutoregressive(D)):
        z, log_det = layer().to_data(noise)
        assert torch.equal(z, noise)
        assert not log_det.any()
    z, _ = InverseAutoregressive(D, gate_bias=2.0)().to_data(noise)
    torch.testing.assert_close(z, noise * torch.sigmoid(torch.tensor(2.0)))


@pytest.mark.parametrize("kind", [MaskedAutoregressive, InverseAutoregressive])
def test_each_dimension_moves_with_exactly_the_declared_past(kind: Any) -> None:
    order = [2, 0, 3, 1]
    layer = randomised(kind(D, [40, 40], order=order))
    move = layer().to_noise if kind is MaskedAutoregressive else layer().to_data  # the parallel way
    jacobian = torch.autograd.functional.jacobian(lambda x: move(x)[0], random(D))
    assert torch.equal(jacobian[order][:, order] != 0, torch.ones(D, D).tril() != 0)


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: Flow(3, []), TypeError, "base must be a torch.distributions.Distribution, got int"),
        (lambda: Flow(Normal(torch.zeros(4), 1.0), []), ValueError, r"base must have an event \(d,\), got \(\)"),
        (
            lambda: Flow(DiagonalGaussian(torch.zeros(4), torch.zeros(4)), [AffineCoupling(4)]),
            TypeError,
            r"got AffineCoupling; a layer with weights gives one when it is called: layer\(context\)",
        ),
        (
            lambda: Flow(DiagonalGaussian(torch.zeros(4), torch.zeros(4)), [LowerCholeskyTransform()]),
            ValueError,
            "transforms must act on vectors",
        ),
        (
            lambda: Flow(DiagonalGaussian(torch.zeros(4), torch.zeros(4)), []).log_prob(torch.zeros(3)),
            ValueError,
            r"value must end in \(4,\), got shape \(3,\)",
        ),
        (lambda: AffineCoupling(1), ValueError, "features must be at least 2"),
        (lambda: AffineCoupling(3, context_features=2)(), ValueError, "context must have 2 features, got 0"),
        (
            lambda: PlanarTransform(torch.zeros(3), torch.zeros(2), torch.zeros(())),
            ValueError,
            r"got \(3,\) and \(2,\) and \(\)",
        ),
    ],
)
def test_bad_arguments_say_what_is_wrong(build: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build()
