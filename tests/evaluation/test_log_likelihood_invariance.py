"""What must not change the estimate: chunk size, batch split, order, interruption; and what must be left as it was."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

import fastvae
from fastvae import ops
from fastvae.distributions import DiagonalGaussian
from fastvae.evaluation import LogLikelihood
from fastvae.models import VAE

F64 = torch.float64


def standard(z: Tensor) -> Tensor:
    return Independent(Normal(torch.zeros_like(z), 1.0), 1).log_prob(z)


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    return Independent(Normal(z.tanh(), 0.5), 1).log_prob(x) + standard(z)


def diagonal(x: Tensor) -> Normal:
    return Normal(x, torch.full_like(x, 0.7))


def gaussian(x: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(x, torch.full_like(x, 0.7).log())


def correlated(x: Tensor) -> MultivariateNormal:
    return MultivariateNormal(x, torch.eye(x.shape[1], dtype=x.dtype) * 0.5 + 0.1)


class Flow:
    """A proposal with nothing but a joint draw and density."""

    def __init__(self, x: Tensor) -> None:
        self.base = Independent(Normal(x, 0.7), 1)

    def rsample_and_log_prob(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        z = self.base.rsample(sample_shape)
        return z, self.base.log_prob(z)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(37, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


def evaluate(x: Tensor, proposal: object = diagonal, num_samples: int = 700, **options: object) -> LogLikelihood:
    return fastvae.log_likelihood(x, proposal=proposal, log_joint=log_joint, num_samples=num_samples, **options)


def assert_same(a: LogLikelihood, b: LogLikelihood) -> None:
    for name in ("log_prob", "elbo", "std_error", "ess", "khat"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("proposal", [diagonal, correlated, Flow])
@pytest.mark.parametrize("max_bytes", [1, 1000, 100_000])
def test_the_chunk_size_does_not_matter(x: Tensor, proposal: object, max_bytes: int) -> None:
    x = x[:18] if max_bytes > 1 else x[:2]  # one full block and a remainder of proposals that sample by themselves
    assert_same(evaluate(x, proposal, 300, max_bytes=max_bytes), evaluate(x, proposal, 300, max_bytes=2**28))


@pytest.mark.parametrize("proposal", [diagonal, correlated])
def test_every_z_is_the_same_to_the_bit_whatever_the_chunk(x: Tensor, proposal: object) -> None:
    def samples(max_bytes: int) -> Tensor:
        seen: list[Tensor] = []

        def spy(x: Tensor, z: Tensor) -> Tensor:
            seen.append(z.clone())
            return log_joint(x, z)

        fastvae.log_likelihood(x[:1], proposal=proposal, log_joint=spy, num_samples=600, max_bytes=max_bytes)
        return torch.cat(seen[2:])  # after the two calls that measure the bytes of a row

    small, large = samples(100), samples(2**28)
    assert small.shape == (600, 1, 3)
    assert torch.equal(small, large)
    assert small.unique(dim=0).shape[0] == 600


@pytest.mark.parametrize("proposal", [diagonal, lambda x: Independent(diagonal(x), 1), gaussian])
@pytest.mark.parametrize("max_bytes", [100, 2**28])
def test_the_noise_is_that_of_its_address(x: Tensor, proposal: object, max_bytes: int) -> None:
    """(seed, datapoint, sample, dimension) and nothing else: the contract that results of all machines rest on."""
    ids, x, seen = torch.tensor([40, 7, 2**32 - 1]), x[:3], {}

    def spy(x: Tensor, z: Tensor) -> Tensor:
        for sample in z:  # (n, 3): the noise, and the datapoint it stands for
            for row, noise in zip(x, (sample - x) / 0.7, strict=True):
                seen.setdefault(tuple(row.tolist()), []).append(noise)
        return log_joint(x, z)

    result = fastvae.log_likelihood(
        x, proposal=proposal, log_joint=spy, num_samples=50, seed=9, ids=ids, first_sample=1000, max_bytes=max_bytes
    )
    assert result.origin.samples == ((1000, 1050),)
    want = ops.normal(9, ids, torch.arange(1000, 1050), 3, dtype=F64)
    for row, noise in zip(x, want, strict=True):
        got = torch.stack(seen[tuple(row.tolist())][-50:])
        torch.testing.assert_close(got, noise, rtol=1e-12, atol=1e-12)


def test_batch_splits_and_order_do_not_matter_when_datapoints_bring_their_numbers(x: Tensor) -> None:
    whole, ids = evaluate(x), torch.arange(37)
    parts = [evaluate(x[i:j], ids=ids[i:j]).log_prob for i, j in ((0, 5), (5, 6), (6, 37))]
    torch.testing.assert_close(torch.cat(parts), whole.log_prob, rtol=1e-10, atol=1e-10)
    order = torch.randperm(37)
    torch.testing.assert_close(evaluate(x[order], ids=ids[order]).log_prob, whole.log_prob[order], rtol=1e-10, atol=0)
    assert not torch.allclose(evaluate(x[5:]).log_prob, whole.log_prob[5:], rtol=1e-10)  # other numbers, other noise


def test_proposals_that_sample_by_themselves_split_at_multiples_of_sixteen(x: Tensor) -> None:
    whole, ids = evaluate(x, correlated), torch.arange(37)
    parts = [evaluate(x[i:j], correlated, ids=ids[i:j]).log_prob for i, j in ((0, 16), (16, 37))]
    torch.testing.assert_close(torch.cat(parts), whole.log_prob, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("proposal", [diagonal, correlated, Flow])
def test_samples_taken_later_merge_into_the_run_that_was_not_interrupted(x: Tensor, proposal: object) -> None:
    first = evaluate(x, proposal, 300)
    rest = evaluate(x, proposal, 400, first_sample=300)
    assert_same(first.merge(rest), evaluate(x, proposal, 700))


def test_the_seed_is_what_changes_the_noise(x: Tensor) -> None:
    for proposal in (diagonal, correlated):
        assert torch.equal(evaluate(x, proposal, seed=5).log_prob, evaluate(x, proposal, seed=5).log_prob)
        assert not torch.equal(evaluate(x, proposal, seed=5).log_prob, evaluate(x, proposal, seed=6).log_prob)


@pytest.mark.parametrize("proposal", [diagonal, correlated, Flow])
def test_the_random_state_of_torch_is_left_as_it_was(x: Tensor, proposal: object) -> None:
    torch.manual_seed(3)
    want = torch.rand(5)
    torch.manual_seed(3)
    evaluate(x, proposal)
    assert torch.equal(torch.rand(5), want)


def test_the_encoder_sees_every_datapoint_once(x: Tensor) -> None:
    batches: list[int] = []

    def proposal(x: Tensor) -> Normal:
        batches.append(len(x))
        return diagonal(x)

    evaluate(x, proposal, 1000, max_bytes=20_000)
    assert batches[:2] == [1, 2]  # the measurement of the bytes of a datapoint
    assert sum(batches[2:]) == 37


@pytest.mark.parametrize("num_samples", [200, 20_000])
def test_the_largest_chunk_is_bounded_by_the_budget_not_by_the_number_of_samples(num_samples: int) -> None:
    model = VAE((1, 10, 10), "bernoulli", latent_size=4, hidden_sizes=(30,))
    x, rows = torch.zeros(2, 1, 10, 10), []
    original = model.likelihood
    model.likelihood = lambda z: (rows.append(z.shape[:2].numel()), original(z))[1]  # type: ignore[method-assign]
    fastvae.log_likelihood(x, model, num_samples=num_samples, max_bytes=50_000)
    logits = 100 * 4  # bytes of the largest tensor of a row
    assert 0.5 * 50_000 < max(rows) * logits <= 50_000
    assert sum(rows[2:]) == 2 * num_samples


def test_modes_of_modules_are_restored_and_evaluation_is_in_eval_mode() -> None:
    model = VAE((1, 4, 4), "bernoulli", latent_size=2, hidden_sizes=(8,))
    model.decoder.net.insert(1, nn.Dropout(0.5))
    model.train()
    model.encoder.eval()
    modes = [part.training for part in model.modules()]
    x = torch.zeros(3, 1, 4, 4)
    result = fastvae.log_likelihood(x, model, num_samples=50)
    assert [part.training for part in model.modules()] == modes
    model.eval()
    assert torch.equal(fastvae.log_likelihood(x, model, num_samples=50).log_prob, result.log_prob)
    model.train()
    with pytest.raises(ValueError, match="0 or 1"):
        fastvae.log_likelihood(x + 0.5, model, num_samples=50)
    assert model.training


def test_methods_of_a_module_are_evaluated_in_eval_mode_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[bool] = set()

        def encode(self, x: Tensor) -> Normal:
            self.seen.add(self.training)
            return diagonal(x)

    net = Net()
    evaluate(torch.zeros(2, 3, dtype=F64), net.encode)
    assert net.seen == {False}
    assert net.training


def test_progress_counts_every_sample(x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(x, progress=True)
    shown = capsys.readouterr().err
    assert "log p(x)" in shown
    assert "25.9k/25.9k" in shown  # 37 x 700
    evaluate(x, progress=False)
    assert capsys.readouterr().err == ""
