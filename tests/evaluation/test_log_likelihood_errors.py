"""Bad input to log_likelihood: a clear error before any work, and never a silently wrong figure."""

import io
import math

import pytest
import torch
import tqdm.std
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import fastvae
from fastvae.distributions import Bernoulli


def proposal(x: Tensor) -> Normal:
    return Normal(x, torch.ones_like(x))


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    return Independent(Normal(z, 1.0), 1).log_prob(x)


X = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be between 1 and 4294967296, got 0"),
        ({"num_samples": 10.0}, TypeError, "num_samples must be an integer, got 10.0"),
        ({"num_samples": True}, TypeError, "num_samples must be an integer, got True"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
        ({"first_sample": -1}, ValueError, "first_sample must be between 0"),
        ({"first_sample": 2**32 - 1}, ValueError, "first_sample [+] num_samples"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be between 1"),
        ({"on_bad": "ignore"}, ValueError, "on_bad must be 'raise' or 'count', got 'ignore'"),
        ({"x": [[0.0]]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.tensor(0.0)}, ValueError, r"add a batch dimension with x\[None\]"),
        ({"ids": [0, 1, 2, 3]}, TypeError, "ids must be an int64 tensor, got list"),
        ({"ids": torch.zeros(4)}, TypeError, "got torch.float32"),
        ({"ids": torch.arange(3)}, ValueError, r"ids must have shape \(4,\)"),
        ({"ids": torch.arange(4) - 1}, ValueError, "got -1 to 2"),
        (
            {"ids": torch.tensor([3, 1, 3, 1])},
            ValueError,
            "ids must be different numbers, but 1, 3 are there",
        ),
        ({"modules": None}, TypeError, "modules must be a list of torch.nn.Module objects, got NoneType"),
        ({"modules": nn.Linear(1, 1)}, TypeError, "modules must be a list of torch.nn.Module objects, got Linear"),
        ({"progress": "a"}, TypeError, "progress must be True, False, None or a bar of tqdm, got 'a'"),
        ({"progress": 3}, TypeError, "progress must be True, False, None or a bar of tqdm, got 3"),
        ({"checkpoint": 5}, TypeError, "checkpoint must be a path, got 5"),
        ({"checkpoint": "/tmp"}, ValueError, "checkpoint must name a file, /tmp is a folder"),
        ({"proposal": None}, TypeError, "pass a model, or both proposal= and log_joint="),
        ({"log_joint": None}, TypeError, "pass a model, or both proposal= and log_joint="),
        ({"proposal": 3}, TypeError, "proposal must be callable, got int"),
        ({"model": nn.Linear(3, 3)}, TypeError, "not both"),
        ({"model": nn.Linear(3, 3), "proposal": None, "log_joint": None}, TypeError, "Linear lacks proposal, prior"),
    ],
)
def test_arguments_are_checked_before_any_work(options: dict, error: type[Exception], says: str) -> None:
    def never(*_: Tensor) -> None:
        raise AssertionError("the model was called")

    arguments = {"x": X, "proposal": never, "log_joint": never, "num_samples": 10} | options
    with pytest.raises(error, match=says):
        fastvae.log_likelihood(arguments.pop("x"), **arguments)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda x, z: Normal(z, 1.0).log_prob(x), r"got \(1, 2, 3\)"),  # not summed over dimensions
        (lambda x, z: log_joint(x, z).sum(0), r"got \(2,\)"),
        (lambda x, z: log_joint(x, z).mean(1, keepdim=True), r"got \(1, 1\)"),  # one weight for the whole batch
        (lambda x, z: log_joint(x, z).T, r"got \(2, 1\)"),
        (lambda x, z: 0.0, "got float"),
    ],
)
def test_log_joint_of_the_wrong_shape_is_named(wrong: object, got: str) -> None:
    with pytest.raises(ValueError, match=r"must be a tensor of shape \(1, 2\) \(samples, datapoints\).*" + got):
        fastvae.log_likelihood(X, proposal=proposal, log_joint=wrong, num_samples=10)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_log_joint_of_the_wrong_dtype_is_named(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"floating point, got {dtype}; log_joint returns nats"):
        fastvae.log_likelihood(X, proposal=proposal, log_joint=lambda x, z: log_joint(x, z).to(dtype), num_samples=10)


def test_a_bar_of_plain_tqdm_goes_on() -> None:
    with tqdm.std.tqdm(total=40, file=io.StringIO()) as bar:
        fastvae.log_likelihood(X, proposal=proposal, log_joint=log_joint, num_samples=10, progress=bar)
        assert bar.n == 10 * len(X)


def test_a_proposal_of_another_batch_is_named() -> None:
    says = r"proposal\(x\) must have batch shape \(2,\), one for each datapoint, got \(4, 3\)"
    with pytest.raises(ValueError, match=says):
        fastvae.log_likelihood(X, proposal=lambda x: proposal(x.repeat(2, 1)), log_joint=log_joint, num_samples=10)
    one_for_all = fastvae.log_likelihood(X, proposal=lambda x: proposal(x[:1]), log_joint=log_joint, num_samples=10)
    assert one_for_all.log_prob.isfinite().all()


def test_a_proposal_without_its_batch_is_named() -> None:
    class Sampler:
        def __init__(self, x: Tensor) -> None:
            self.inner = Normal(x, 1.0)

        def sample(self, shape: torch.Size) -> Tensor:
            return self.inner.sample(shape)

        def log_prob(self, z: Tensor) -> Tensor:
            return self.inner.log_prob(z)  # (K, N, d)

    with pytest.raises(ValueError, match=r"got \(1, 2, 3\) and \(1, 2, 3\).*torch.distributions.Independent"):
        fastvae.log_likelihood(X, proposal=Sampler, log_joint=log_joint, num_samples=10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_log_weights_raise_and_name_the_datapoints(bad: float) -> None:
    x = X.clone()
    x[2, 0] = 1.0

    def broken(x: Tensor, z: Tensor) -> Tensor:
        value = log_joint(x, z)
        return value.masked_fill((x[:, 0] == 1) & (z[..., 0] > z[..., 0].median()), bad)

    ids = torch.arange(100, 104)
    with pytest.raises(ValueError, match=r"nan or \+inf for datapoints 102 \(\d+ of 50 samples\): the model"):
        fastvae.log_likelihood(x, proposal=proposal, log_joint=broken, num_samples=50, ids=ids)
    result = fastvae.log_likelihood(x, proposal=proposal, log_joint=broken, num_samples=50, on_bad="count")
    assert result.log_prob.isnan().tolist() == [False, False, True, False]
    assert result.weights.num_bad[2] > 0
    assert math.isnan(result.mean().value)


def test_impossible_data_are_minus_infinity_not_an_error() -> None:
    def impossible(x: Tensor, z: Tensor) -> Tensor:
        return torch.full(z.shape[:2], -torch.inf)

    result = fastvae.log_likelihood(X, proposal=proposal, log_joint=impossible, num_samples=50)
    assert (result.log_prob == -math.inf).all()
    assert not result.trusted.any()


def test_an_error_of_the_model_reaches_the_caller_as_it_is() -> None:
    def failing(x: Tensor, z: Tensor) -> Tensor:
        raise KeyError("from the model")

    with pytest.raises(KeyError, match="from the model"):
        fastvae.log_likelihood(X, proposal=proposal, log_joint=failing, num_samples=50)


def test_grey_data_are_refused_in_every_batch_of_datapoints_and_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvae.distributions import bernoulli
    from fastvae.models import VAE

    looks = []
    check = bernoulli._check_binary
    monkeypatch.setattr(bernoulli, "_check_binary", lambda x: (looks.append(len(x)), check(x)))
    model = VAE((1, 4, 4), latent_size=2, hidden_sizes=(8,))
    x = torch.zeros(6, 1, 4, 4)
    fastvae.log_likelihood(x, model, num_samples=500, max_bytes=20_000)
    assert sum(looks) <= 2 * len(x) + 8, "not once for every chunk"
    x[5] = 0.5
    with pytest.raises(ValueError, match="must be 0 or 1"):
        fastvae.log_likelihood(x, model, num_samples=500, max_bytes=20_000)


def test_named_modules_are_evaluated_in_eval_mode_and_put_back() -> None:
    dropout = torch.nn.Dropout(0.5)
    modes = []

    def log_joint(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        modes.append(dropout.training)
        return dropout(z).sum(-1)

    x = torch.zeros(2, 1)
    q = lambda x: torch.distributions.Independent(torch.distributions.Normal(x, 1.0), 1)  # noqa: E731
    fastvae.log_likelihood(x, proposal=q, log_joint=log_joint, num_samples=10, modules=[dropout])
    assert not any(modes)
    assert dropout.training
    with pytest.raises(TypeError, match=r"modules must be .* objects, got str"):
        fastvae.log_likelihood(x, proposal=q, log_joint=log_joint, num_samples=10, modules=["decoder"])
    with pytest.raises(TypeError, match=r"proposal\(x\) must return a distribution with log_prob, got NoneType"):
        fastvae.log_likelihood(x, proposal=lambda x: None, log_joint=log_joint, num_samples=10)


def test_grey_data_are_refused_by_the_documented_likelihood_of_flat_data() -> None:
    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        return Bernoulli(z, event_dims=1).log_prob(x)

    arguments = {"proposal": proposal, "log_joint": log_joint, "num_samples": 10}
    assert fastvae.log_likelihood(X, **arguments).log_prob.isfinite().all()
    with pytest.raises(ValueError, match=r"x must be 0 or 1 for a bernoulli likelihood, got values such as 0\.5"):
        fastvae.log_likelihood(X + 0.5, **arguments)


def test_a_bernoulli_distribution_of_flat_data_is_that_of_its_images() -> None:
    logits, x = torch.randn(5, 2, 12), torch.bernoulli(torch.full((2, 12), 0.5))
    flat, images = Bernoulli(logits, event_dims=1), Bernoulli(logits.unflatten(-1, (3, 2, 2)))
    torch.testing.assert_close(flat.log_prob(x), images.log_prob(x.unflatten(-1, (3, 2, 2))))
    assert flat.sample((4,)).shape == (4, 5, 2, 12)
    for wrong, error, says in (
        (lambda: flat.log_prob(x[:, :11]), ValueError, r"x must have shape \(..., 12\)"),
        (lambda: flat.log_prob(x[0, 0]), ValueError, r"x must have shape \(..., 12\)"),
        (lambda: Bernoulli(logits, event_dims=4), ValueError, "at least event_dims=4 dimensions, got"),
        (lambda: Bernoulli(logits, event_dims=0), ValueError, "event_dims must be at least 1, got 0"),
        (lambda: Bernoulli(logits, event_dims=1.0), TypeError, "event_dims must be an integer, got 1.0"),
    ):
        with pytest.raises(error, match=says):
            wrong()
