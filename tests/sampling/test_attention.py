"""Causal self-attention over pixels: keys and values are kept, samples equal naive ones."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import MaskedWeight, randomized
from torch import Tensor, nn

from fastvae import compile_sampler
from fastvae.sampling import UnsupportedModelError

SIZE = (4, 5)
PIXELS = SIZE[0] * SIZE[1]


class Attending(nn.Module):
    """A masked convolution, attention with one of the usual masks, and a residual head."""

    def __init__(self, style: str, heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.style, self.heads = style, heads
        self.first = MaskedWeight("A", 1, width, 3, padding=1)
        self.query, self.key, self.value = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.out, self.last = nn.Conv2d(width, width, 1), nn.Conv2d(width, 1, 1)
        self.register_buffer("mask", torch.ones(PIXELS, PIXELS).tril(-1 if style == "strict" else 0))
        self.register_buffer("start", (torch.arange(PIXELS) > 0).float()[:, None])

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.style == "sdpa":
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if self.style == "sdpa mask":
            return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask.bool())
        scores = query @ key.transpose(2, 3) / 2.0
        if self.style == "strict":  # the first pixel attends to nothing
            return (scores.masked_fill(self.mask == 0, -1e10).softmax(-1) * self.start) @ value
        if self.style == "added":
            return (scores + torch.log(self.mask)).softmax(-1) @ value
        return (scores * self.mask - 1e10 * (1.0 - self.mask)).softmax(-1) @ value

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        batch, width = h.shape[:2]

        def split(tensor: Tensor) -> Tensor:
            return tensor.view(batch, self.heads, width // self.heads, PIXELS).transpose(2, 3)

        mixed = self.mix(split(self.query(h)), split(self.key(h)), split(self.value(h)))
        return self.last(torch.tanh(h + self.out(mixed.transpose(2, 3).reshape(h.shape))))


class SmallTransformer(nn.Module):
    """Tokens that see earlier pixels only, positions learnt, torch's own encoder layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed, self.last = MaskedWeight("A", 1, width, 3, padding=1), nn.Linear(width, 1)
        self.position = nn.Parameter(torch.zeros(1, PIXELS, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.register_buffer("mask", torch.full((PIXELS, PIXELS), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.last(self.layer(tokens, src_mask=self.mask)).transpose(1, 2).view(x.shape)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("style", ["sdpa", "sdpa mask", "strict", "added", "multiplied"])
def test_attention_equals_naive_sampling(style: str, heads: int) -> None:
    model = randomized(Attending(style, heads), gain=2.0)
    sampler = compile_sampler(model, (1, *SIZE), "bernoulli")
    assert sampler.plan.num_steps >= PIXELS - SIZE[0]  # all but the ends of rows wait for the pixel before
    out, naive = sampler(5, seed=1, verify=True), sampler.naive(5, seed=1)
    assert out.certificate.mismatches == 0
    assert torch.equal(out.samples, naive.samples)
    assert 0 < out.samples.mean() < 1
    images = torch.rand(3, 1, *SIZE, dtype=torch.float64).round()
    with torch.no_grad():
        torch.testing.assert_close(sampler.decode(images), model(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_a_transformer_of_torch_layers(training: bool) -> None:
    model = randomized(SmallTransformer(), gain=1.5).train(training)
    sampler = compile_sampler(model, (1, *SIZE), "bernoulli")
    assert sampler.plan.num_steps >= PIXELS - SIZE[0]
    out = sampler(5, seed=1, verify=True)
    assert out.certificate.mismatches == 0
    assert torch.equal(out.samples, sampler.naive(5, seed=1).samples)
    assert 0 < out.samples.mean() < 1


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that is not initialised holds nan."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned_memory")
def test_a_column_first_or_shorter_mask_gives_its_own_order() -> None:
    model = Attending("sdpa mask")
    rows, columns = torch.arange(PIXELS) // SIZE[1], torch.arange(PIXELS) % SIZE[1]
    model.mask = ((rows[:, None] - rows >= 0) & (columns[:, None] - columns).abs().le(1) & model.mask.bool()).float()
    sampler = compile_sampler(randomized(model, gain=2.0), (1, *SIZE), "bernoulli")
    assert sampler.plan.num_steps < PIXELS - SIZE[0]
    assert torch.equal(sampler(5, verify=True).samples, sampler.naive(5).samples)


def test_another_mask_is_planned_again() -> None:
    model = randomized(Attending("sdpa mask"), gain=2.0)
    sampler = compile_sampler(model, (1, *SIZE), "bernoulli")
    steps = sampler.plan.num_steps
    model.mask.copy_(torch.eye(PIXELS))
    assert sampler(3, verify=True).certificate.mismatches == 0
    assert sampler.plan.num_steps < steps


def test_attention_without_a_mask_is_named() -> None:
    class Open(Attending):
        def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return (query @ key.transpose(2, 3)).softmax(-1) @ value

    with pytest.raises(UnsupportedModelError, match="not causal in any order"):
        compile_sampler(randomized(Open("open")), (1, *SIZE), "bernoulli")


def test_scores_that_are_used_otherwise_are_not_taken_for_masked() -> None:
    class Read(Attending):
        def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scores = query @ key.transpose(2, 3)
            return scores.masked_fill(self.mask == 0, -1e10).softmax(-1) @ value + scores.mean(-1, keepdim=True)

    with pytest.raises(UnsupportedModelError, match="not causal in any order"):
        compile_sampler(randomized(Read("strict")), (1, *SIZE), "bernoulli")


def test_a_stale_key_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvae.sampling import CertificateError, run

    real: Any = run.Program._seen

    def stale(self: Any, reader: Any, look: Any, start: int, end: int, calls: Any) -> Tensor:
        shown = real(self, reader, look, start, end, calls)
        return torch.cat([shown[:1], shown[:1], shown[2:]]) if shown.shape[0] > 2 else shown

    monkeypatch.setattr(run.Program, "_seen", stale)
    sampler = compile_sampler(randomized(Attending("sdpa"), gain=3.0), (1, *SIZE), "bernoulli")
    with pytest.raises(CertificateError, match="NOT EXACT"):
        sampler(64, verify=True)
