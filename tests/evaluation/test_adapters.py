"""The adapters alone: what they follow, what they refuse, and the errors that name the way out."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Gamma, Independent, Normal

import fastvae
from fastvae.distributions import DiagonalGaussian
from fastvae.evaluation.adapters import Chain, folded, logits

BIG = torch.linspace(-200, 200, 24).view(2, 3, 4)  # probabilities of exactly 0 and 1


def in_place(h: Tensor) -> Tensor:
    return h.clone().sigmoid_()


AFTER_THE_SIGMOID: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda p: p,
    "view": lambda p: p.view(6, 4),
    "reshape of a transposed one": lambda p: p.transpose(0, 1).reshape(3, 8),
    "permute and contiguous": lambda p: p.permute(2, 0, 1).contiguous(),
    "slice": lambda p: p[:, 1:, ::2],
    "select and unsqueeze": lambda p: p[1][:, None],
    "expand": lambda p: p[:, None].expand(2, 5, 3, 4),
    "squeeze": lambda p: p[:1].squeeze(0),
    "detach": lambda p: p.detach(),
}


@pytest.mark.parametrize("after", AFTER_THE_SIGMOID)
@pytest.mark.parametrize("sigmoid", [torch.sigmoid, torch.special.expit, nn.Sigmoid(), in_place])
def test_logits_are_followed_to_the_bit(after: str, sigmoid: Callable[[Tensor], Tensor]) -> None:
    move = AFTER_THE_SIGMOID[after]
    got = logits(lambda h: move(sigmoid(h)))(BIG)
    assert torch.equal(got, move(BIG))
    assert got.shape == move(BIG).shape


def test_the_last_sigmoid_counts_and_gates_before_it_do_not() -> None:
    gate = torch.randn(2, 3, 4)
    got = logits(lambda h: (h * gate.sigmoid()).sigmoid())(BIG)
    assert torch.equal(got, BIG * gate.sigmoid())


def test_gradients_pass_the_sigmoid_by() -> None:
    h = torch.full((3, 4), 100.0, requires_grad=True)
    logits(lambda h: h.sigmoid().view(4, 3).t())(h).sum().backward()
    assert torch.equal(h.grad, torch.ones(3, 4))  # through the saturated sigmoid they would be zero
    assert not logits(lambda h: h.sigmoid().detach())(h).requires_grad


@pytest.mark.parametrize(
    "net",
    [
        lambda h: h.sigmoid().clamp(1e-5, 1 - 1e-5),
        lambda h: h.sigmoid().clamp_(1e-5, 1 - 1e-5),
        lambda h: h.sigmoid().view(6, 4).mul_(0.9).view(2, 3, 4),
        lambda h: 0.5 * (h.tanh() + 1),
        lambda h: h.sigmoid() + 1e-6,
        lambda h: torch.cat([h.sigmoid(), h]),
        lambda h: h,
    ],
)
def test_what_is_no_sigmoid_is_refused(net: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must return the output of a sigmoid.*clamping, scaling"):
        logits(net)(BIG)


def test_a_net_of_several_outputs_is_named() -> None:
    with pytest.raises(ValueError, match="must return a tensor of probabilities, got tuple"):
        logits(lambda h: (h.sigmoid(), h))(BIG)
    with pytest.raises(ValueError, match="must return a tensor of probabilities, got Bernoulli"):
        logits(lambda h: Bernoulli(logits=h))(BIG)
    assert torch.equal(logits(lambda h: Bernoulli(probs=h.sigmoid()).mean)(BIG), BIG)


def test_folded_nets_see_one_batch_and_keep_their_outputs_apart() -> None:
    z, label = torch.randn(5, 3, 2), torch.randn(3, 4)
    seen = []

    def net(z: Tensor, label: Tensor) -> list[Tensor]:
        seen.append((z.shape, label.shape))
        return [z.sum(1), label * 2]

    first, second = folded(net)(z, label)
    assert seen == [((15, 2), (15, 4))]
    assert torch.equal(first, z.sum(2))
    assert torch.equal(second, (label * 2).expand(5, 3, 4))
    pair = folded(lambda hs, x: hs[0].sum(1) + hs[1].sum(1) + x)((z, z[..., :1]), torch.arange(3.0))
    torch.testing.assert_close(pair, z.sum(2) + z[..., 0] + torch.arange(3.0))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: folded(lambda z: Normal(z, 1.0))(torch.zeros(2, 3, 4)), TypeError, "must return tensors, got Normal"),
        (lambda: folded(lambda z: z.sum(0))(torch.zeros(2, 3, 4)), ValueError, r"6 inputs, got shape \(4,\)"),
        (lambda: folded(lambda z: z)(torch.zeros(4)), ValueError, r"must have shape \(K, N, ...\).* got \(4,\)"),
        (
            lambda: folded(lambda z: z)((torch.zeros(2, 3, 1), torch.zeros(3, 2, 1))),
            ValueError,
            "samples and datapoints",
        ),
        (lambda: folded(lambda z, y: z)(torch.zeros(2, 3, 4), torch.zeros(2)), ValueError, r"\(3, ...\).*got \(2,\)"),
        (lambda: folded(lambda z, y: z)(torch.zeros(2, 3, 4), "one"), ValueError, "got str"),
        (lambda: Chain(Normal(torch.zeros(3, 2), 1.0), 5), TypeError, "conditionals must be callable.* got int"),
        (lambda: Chain(Gamma(torch.ones(3, 2), 1.0)), TypeError, "first must be a diagonal normal .* got Gamma"),
        (
            lambda: Chain(Normal(torch.zeros(3, 2), 1.0), lambda z: Gamma(z.exp(), 1.0)),
            TypeError,
            "a conditional must be a diagonal normal .* got Gamma",
        ),
    ],
)
def test_wrong_use_is_named(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


def test_a_chain_has_the_density_of_its_layers_and_gradients() -> None:
    mean = torch.randn(4, 3, requires_grad=True)
    q2 = lambda z1: Independent(Normal(z1[..., :2].tanh(), 0.3), 1)  # noqa: E731
    q3 = lambda z1, z2: DiagonalGaussian(z1 * z2.sum(-1, keepdim=True), torch.zeros(3))  # noqa: E731
    chain = Chain(Normal(mean, 0.5), q2, q3)
    assert chain.noise_size == 3 + 2 + 3
    (z1, z2, z3), log_q = chain.rsample_and_log_prob((6,))
    assert (z1.shape, z2.shape, z3.shape) == ((6, 4, 3), (6, 4, 2), (6, 4, 3))
    want = Normal(mean, 0.5).log_prob(z1).sum(-1) + q2(z1).log_prob(z2) + q3(z1, z2).log_prob(z3)
    torch.testing.assert_close(log_q, want, rtol=1e-5, atol=1e-5)
    z3.sum().backward()
    assert mean.grad.abs().min() > 0


X = torch.zeros(3, 2)


def standard(z: Tensor) -> Tensor:
    return Independent(Normal(torch.zeros_like(z), 1.0), 1).log_prob(z)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (
            {"proposal": lambda x: (x, x)},
            TypeError,
            r"got tuple of Tensor, Tensor; an encoder that returns \(mean, log",
        ),
        ({"condition": [0, 1, 2]}, TypeError, "condition must be a tensor, got list"),
        ({"condition": torch.zeros(2)}, ValueError, r"condition must have shape \(3, ...\).*got \(2,\)"),
        (
            {"condition": torch.zeros(3, device="meta")},
            ValueError,
            "condition must be on the device of x, cpu, got meta",
        ),
        (
            {"model": SimpleNamespace(), "proposal": None, "log_joint": None, "condition": torch.zeros(3)},
            TypeError,
            "condition goes with proposal=.*not with a model",
        ),
        (
            {"proposal": lambda x: SimpleNamespace(rsample_and_log_prob=lambda s: ((x, x), x.sum(1)))},
            ValueError,
            r"leading shape \(1, 2\) .* got \(1, 2\) and \(1, 2\) and \(1,\)",
        ),
    ],
)
def test_log_likelihood_names_what_does_not_fit(options: dict, error: type[Exception], says: str) -> None:
    arguments = {"proposal": lambda x: Normal(x, 1.0), "log_joint": lambda x, z: standard(z), "num_samples": 5}
    with pytest.raises(error, match=says):
        fastvae.log_likelihood(X, **(arguments | options))


def test_conditions_go_with_their_datapoints() -> None:
    x, labels = torch.arange(40.0)[:, None], torch.arange(40)

    def proposal(x: Tensor, y: Tensor) -> Normal:
        assert torch.equal(x[:, 0], y.float())
        return Normal(x, 1.0)

    def log_joint(x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        assert torch.equal(x[:, 0], y.float())
        return standard(z - y[:, None])

    for max_bytes in (1, 500, 2**20):
        result = fastvae.log_likelihood(
            x, proposal=proposal, log_joint=log_joint, condition=labels, num_samples=20, max_bytes=max_bytes
        )
        torch.testing.assert_close(result.log_prob, torch.zeros(40, dtype=torch.float64), rtol=0, atol=1e-4)
