"""The bound in chunks: the numbers of one graph, in memory that does not grow, and no silent difference."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SmallVAE
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from benchmarks import memory
from fastvae.models import VAE
from fastvae.objectives import elbo, iwae

K = 23
BOUNDS: dict[str, Callable[..., Tensor]] = {
    "iwae": iwae,
    "dreg": lambda *args, **options: iwae(*args, estimator="dreg", **options),
    "vr": lambda *args, **options: iwae(*args, estimator="vr", alpha=0.4, **options),
    "elbo": elbo,
    "elbo stl": lambda *args, **options: elbo(*args, estimator="stl", **options),
}


class Counting(SmallVAE):
    """Notes how many rows each call of the decoder had."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rows: list[int] = []

    def likelihood(self, z: Tensor) -> torch.distributions.Distribution:
        self.rows.append(z.shape[0] * z.shape[1])
        return super().likelihood(z)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, dtype=torch.float64)


def gradient(bound: Tensor, model: nn.Module) -> list[Tensor | None]:
    model.zero_grad()
    weights = torch.linspace(0.5, 2.0, len(bound), dtype=bound.dtype)  # datapoints do not all count the same
    (bound * weights).sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_same(ours: list[Tensor | None], theirs: list[Tensor | None], **tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, **(tolerance or {"rtol": 1e-10, "atol": 1e-12}))


@pytest.mark.parametrize("family", ["ours", "torch", "flow"])
@pytest.mark.parametrize("name", BOUNDS)
def test_chunks_give_value_and_gradient_of_one_graph(name: str, family: str, x: Tensor) -> None:
    model = Counting(family=family)
    want = BOUNDS[name](model, x, K, seed=5)
    wanted = gradient(want, model)
    for max_bytes in (1, 2**11, 2**13):  # single rows; some datapoints at a time; all of them, some samples
        model.rows.clear()
        got = BOUNDS[name](model, x, K, seed=5, max_bytes=max_bytes)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        assert_same(gradient(got, model), wanted)
        assert sum(model.rows) == 2 * 3 * K + 6  # two passes, and the six rows of the probe
        assert max(model.rows) < 3 * K


def test_what_fits_is_one_graph(x: Tensor) -> None:
    model = Counting()
    torch.manual_seed(4)
    want = iwae(model, x, K)
    model.rows.clear()
    torch.manual_seed(4)
    assert torch.equal(iwae(model, x, K, max_bytes=2**30), want)
    assert model.rows == [2, 4, 3 * K]


def test_frozen_and_shared_parameters(x: Tensor) -> None:
    model = SmallVAE(shared=True)
    for frozen in ([], [model.prior_loc, *model.encoder[0].parameters()], model.decoder, model.encoder):
        model.requires_grad_(True)
        for parameter in frozen if isinstance(frozen, list) else frozen.parameters():
            parameter.requires_grad_(False)
        for name in ("iwae", "dreg"):
            one, two = (gradient(BOUNDS[name](model, x, K, seed=1, max_bytes=b), model) for b in (None, 2**11))
            assert_same(two, one)
    model.requires_grad_(False)
    assert not iwae(model, x, K, max_bytes=2**11).requires_grad


def test_callables_with_whatever_their_closures_hold(x: Tensor) -> None:
    """Parameters, data and tensors that have a graph of their own: all get the gradient that autograd would give."""
    base, x = SmallVAE(), x.requires_grad_()
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    found = []
    for max_bytes in (None, 2**11):
        width = (scale * 2).exp()  # outside of every chunk

        def log_joint(x: Tensor, z: Tensor, width: Tensor = width) -> Tensor:
            return Independent(Normal(base.decoder(z), width), 1).log_prob(x) + base.prior().log_prob(z)

        bound = iwae(x=x, num_samples=K, proposal=base.proposal, log_joint=log_joint, seed=0, max_bytes=max_bytes)
        found.append(torch.autograd.grad(bound.sum(), [x, scale, base.prior_loc, base.encoder[0].weight]))
    assert_same(list(found[1]), list(found[0]))


def test_noise_of_torch_follows_its_seed_and_moves_on(x: Tensor) -> None:
    model = SmallVAE()
    torch.manual_seed(1)
    first, second = (iwae(model, x, K, max_bytes=2**11) for _ in range(2))
    torch.manual_seed(1)
    again = iwae(model, x, K, max_bytes=2**12)
    state = torch.get_rng_state()
    again.sum().backward()
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(again, first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["iwae", "dreg"])
def test_dropout_is_the_same_in_both_passes(name: str, x: Tensor) -> None:
    """A slope by differences of the value knows nothing of the second pass."""
    model = SmallVAE(dropout=0.5).train()
    weight = model.decoder[5].weight  # of p: the same slope for every estimator

    def value() -> Tensor:
        torch.manual_seed(2)
        return BOUNDS[name](model, x, K, max_bytes=2**11).sum()

    (slope,) = torch.autograd.grad(value(), weight)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight += 1e-5 * direction
        above = value()
        weight -= 2e-5 * direction
        below = value()
    torch.testing.assert_close((slope * direction).sum(), (above - below) / 2e-5, rtol=1e-6, atol=1e-6)


def test_a_model_that_changes_between_the_passes_is_an_error(x: Tensor) -> None:
    model = SmallVAE(dropout=0.5).train()
    bound = iwae(model, x, K, max_bytes=2**11)
    model.eval()
    with pytest.raises(RuntimeError, match=r"not the same in both passes.*differ by up to .* nats"):
        bound.sum().backward()
    bound = iwae(model, x, K, max_bytes=2**11)
    with torch.no_grad():
        model.decoder[0].weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        bound.sum().backward()
    random = np.random.default_rng(0)
    plain = model.likelihood
    model.likelihood = lambda z: plain(z * random.uniform(0.0, 2.0))
    with pytest.raises(RuntimeError, match="not the same in both passes"):
        iwae(model, x, K, max_bytes=2**11).sum().backward()


def test_parameters_that_some_samples_alone_use_are_not_lost(x: Tensor) -> None:
    """A mixture of two decoders, as code in a lambda would choose between them."""
    left, right = SmallVAE(), SmallVAE()

    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        chosen = right if bool((z[..., 0] > threshold).any()) else left
        return chosen.likelihood(z).log_prob(x) + left.prior().log_prob(z)

    def bound(**options: Any) -> Tensor:
        return iwae(None, x, K, proposal=left.proposal, log_joint=log_joint, seed=0, max_bytes=1, **options)

    with torch.no_grad():  # a threshold between the samples, so that single rows differ
        z = left.proposal(x).rsample((1000,))[..., 0]
        threshold = float(z.quantile(0.9))
    total = bound().sum()
    with pytest.raises(RuntimeError, match=r"uses parameters for some samples.*modules=\["):
        total.backward()
    bound(modules=[left, right]).sum().backward()
    assert left.decoder[0].weight.grad is not None
    assert right.decoder[0].weight.grad is not None


def test_batch_normalisation_is_refused_where_it_couples_rows(x: Tensor) -> None:
    def with_layer(layer: nn.Module) -> SmallVAE:
        model = SmallVAE()
        flat = nn.Sequential(nn.Linear(2, 8), layer, nn.Linear(8, 5)).double()
        model.decoder = flat
        model.likelihood = lambda z: Independent(Normal(flat(z.flatten(0, 1)).unflatten(0, z.shape[:2]), 1.0), 1)
        return model

    for layer in (nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False)):
        model = with_layer(layer.double())
        with pytest.raises(ValueError, match=r"max_bytes needs rows .* batch normalisation in training mode"):
            iwae(model, x, K, max_bytes=2**11)
        assert iwae(model, x, K).shape == (3,)
    for layer in (nn.BatchNorm1d(8).eval(), nn.LayerNorm(8)):
        iwae(with_layer(layer), x, K, max_bytes=2**11).sum().backward()


def test_under_autocast_both_passes_run_in_its_precision() -> None:
    torch.manual_seed(0)
    model, x = VAE((1, 4, 4), latent_size=3, hidden_sizes=(8,)), torch.rand(4, 1, 4, 4).round()
    with torch.autocast("cpu", torch.bfloat16):
        one, two = (iwae(model, x, 200, seed=0, estimator="dreg", max_bytes=b) for b in (None, 2**14))
    torch.testing.assert_close(two, one)  # the chunks do not change the rounding of a row
    wanted = gradient(one, model)
    assert_same(gradient(two, model), wanted, rtol=0.05, atol=0.02)  # sums of bfloat16 products in another order


def test_is_differentiated_once() -> None:
    model, x = SmallVAE(), torch.randn(3, 5, dtype=torch.float64)
    bound = iwae(model, x, K, max_bytes=2**11).square().sum()
    (slope,) = torch.autograd.grad(bound, model.prior_loc, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_zero_and_bad_weights_are_those_of_one_graph(x: Tensor) -> None:
    model = SmallVAE()

    def log_joint(value: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, z: torch.where(
            z[..., 0] > model.prior_loc[0], model.likelihood(z).log_prob(x) + model.prior().log_prob(z), value
        )

    for value in (-torch.inf, torch.nan):
        call = {"proposal": model.proposal, "log_joint": log_joint(value), "seed": 0}
        one, two = (iwae(None, x, 200, max_bytes=b, **call) for b in (None, 2**11))
        torch.testing.assert_close(two, one, equal_nan=True)
        assert value == -torch.inf or bool(one.isnan().all())
        if value == -torch.inf:
            assert_same(gradient(two, model), gradient(one, model))


@pytest.mark.parametrize("name", ["iwae", "dreg", "vr"])
def test_a_datapoint_without_any_weight_has_no_gradient(name: str, x: Tensor) -> None:
    model = SmallVAE()
    x[1, 0] = 9.0

    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        value = model.likelihood(z).log_prob(x) + model.prior().log_prob(z)
        return value + torch.where(x[:, 0] == 9.0, -torch.inf, 0.0)

    call = {"proposal": model.proposal, "log_joint": log_joint, "seed": 0}
    one, two = (BOUNDS[name](None, x, 200, max_bytes=b, **call) for b in (None, 2**11))
    assert one.isinf().tolist() == [False, True, False]
    (slope,) = torch.autograd.grad(one[1], model.prior_loc, retain_graph=True)
    assert not slope.any()
    assert_same(gradient(one, model), gradient(two, model))


def test_an_empty_batch_and_no_gradient() -> None:
    vae, images = VAE((1, 2, 2), latent_size=2, hidden_sizes=(3,)), torch.zeros(0, 1, 2, 2)
    for name, bound in BOUNDS.items():
        assert bound(vae, images, K, max_bytes=1).shape == (0,), name
        bound(vae, images, K).sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in vae.parameters()), name

    def normal(x: Tensor) -> Independent:
        return Independent(Normal(x, 1.0), 1)

    for size in (None, 10):
        none = iwae(
            None, torch.zeros(0, 3), proposal=normal, log_joint=lambda x, z: normal(z).log_prob(x), max_bytes=size
        )
        assert none.shape == (0,)
        none.sum().backward()
    model, x = SmallVAE(), torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        quiet = iwae(model, x, K, seed=0, max_bytes=2**11)
    assert not quiet.requires_grad
    assert torch.equal(quiet, iwae(model, x, K, seed=0, max_bytes=2**11).detach())


@pytest.mark.skipif(not memory.AVAILABLE, reason="reads the peak from Linux's /proc")
def test_memory_does_not_grow_with_the_samples() -> None:
    model, x = VAE((1, 28, 28), latent_size=8, hidden_sizes=(32,)), torch.zeros(4, 1, 28, 28)

    def peak(num_samples: int) -> float:
        memory.forget_peak()
        before = memory.peak_mebibytes()
        iwae(model, x, num_samples, estimator="dreg", max_bytes=2**22).mean().backward()
        return memory.peak_mebibytes() - before

    peak(100)  # libraries and the allocator take theirs
    assert peak(4000) < 25  # one graph of them all takes 16,000 rows x 2 x 3 KB = 100 MB and more
