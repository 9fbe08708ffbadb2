"""Models of strangers, in the two lines that the documentation gives, against a loop of plain float64 formulas."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import fastvae
from fastvae.distributions import Bernoulli, DiagonalGaussian
from fastvae.evaluation.adapters import Chain, folded, logits
from fastvae.models import LatentVariableModel

F64 = torch.float64
SAMPLES = 600
Build = Callable[..., Any]
Case = tuple[list[Any], Tensor, dict[str, Any], Callable[[int, Tensor], Tensor], int]


def gaussian(mean: Tensor, log_variance: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(mean, 0.5 * log_variance)


def standard(size: int) -> DiagonalGaussian:
    return DiagonalGaussian(torch.zeros(size, dtype=F64), torch.zeros(size, dtype=F64))


def log_normal(z: Tensor, mean: Tensor | float = 0.0, log_variance: Tensor | float = 0.0) -> Tensor:
    log_variance = torch.as_tensor(log_variance, dtype=F64)
    return (-0.5 * ((z - mean) ** 2 / log_variance.exp() + log_variance + math.log(2 * math.pi))).sum(-1)


def log_bernoulli(x: Tensor, p: Tensor) -> Tensor:
    return (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)


# Each style: the modules, x, what a user writes, and the log-weights of datapoint i from noise (K, size) by the book.


def sigmoid_example(build: Build) -> Case:
    vae, x = build("sigmoid_example")
    decode, prior = logits(vae.decode), standard(5)
    use = {
        "proposal": lambda x: gaussian(*vae.encode(x)),
        "log_joint": lambda x, z: Bernoulli(decode(z), event_dims=1).log_prob(x) + prior.log_prob(z),
    }

    def log_w(i: int, eps: Tensor) -> Tensor:
        mu, logvar = vae.encode(x[i : i + 1])
        z = mu + eps * torch.exp(0.5 * logvar)
        return log_bernoulli(x[i], vae.decode(z)) + log_normal(z) - log_normal(z, mu, logvar)

    return [vae], x, use, log_w, 5


def convolutional(build: Build) -> Case:
    vae, x = build("convolutional")
    decode, prior = folded(vae.decode), standard(4)
    use = {
        "proposal": lambda x: gaussian(*vae.encode(x)),
        "log_joint": lambda x, z: Bernoulli(decode(z)).log_prob(x) + prior.log_prob(z),
    }

    def log_w(i: int, eps: Tensor) -> Tensor:
        mu, logvar = vae.encode(x[i : i + 1])
        z = mu + eps * torch.exp(0.5 * logvar)
        p = vae.decode(z).sigmoid().flatten(1)
        return log_bernoulli(x[i].flatten(), p) + log_normal(z) - log_normal(z, mu, logvar)

    return [vae], x, use, log_w, 4


def two_layers(build: Build) -> Case:
    vae, x = build("two_layers")
    use = {"proposal": lambda x: Chain(vae.q_h1(x), vae.q_h2), "log_joint": vae.log_joint}

    def log_w(i: int, eps: Tensor) -> Tensor:
        q1 = vae.q_h1(x[i : i + 1])
        h1 = q1.loc + q1.scale * eps[:, :6]
        q2 = vae.q_h2(h1)
        h2 = q2.loc + q2.scale * eps[:, 6:]
        p1 = vae.p_h1(h2)
        log_p = log_normal(h2) + log_normal(h1, p1.loc, 2 * p1.scale.log())
        log_q = log_normal(h1, q1.loc, 2 * q1.scale.log()) + log_normal(h2, q2.loc, 2 * q2.scale.log())
        return log_bernoulli(x[i], vae.p_x(h1).sigmoid()) + log_p - log_q

    return [vae], x, use, log_w, 9


def flow_of_noise(build: Build) -> Case:
    vae, x = build("planar_flow")
    push, prior = folded(vae.push), standard(4)

    def proposal(x: Tensor) -> SimpleNamespace:
        stats = vae.encoder(x)
        return SimpleNamespace(noise_size=4, from_noise=lambda noise: push(noise, stats))

    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        return Bernoulli(vae.decoder(z), event_dims=1).log_prob(x) + prior.log_prob(z)

    def log_w(i: int, eps: Tensor) -> Tensor:
        z, log_q = vae.push(eps, vae.encoder(x[i : i + 1]).expand(len(eps), -1))
        return log_bernoulli(x[i], vae.decoder(z).sigmoid()) + log_normal(z) - log_q

    return [vae], x, {"proposal": proposal, "log_joint": log_joint}, log_w, 4


def flow_with_its_own_noise(build: Build) -> Case:
    modules, x, use, log_w, size = flow_of_noise(build)
    (vae,) = modules

    def proposal(x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(rsample_and_log_prob=lambda shape: vae.posterior(x, shape[0]))

    return modules, x, use | {"proposal": proposal}, log_w, size


def label_conditioned(build: Build) -> Case:
    cvae, x, y = build("label_conditioned")
    decode = folded(cvae.decode)

    def log_joint(x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        prior = DiagonalGaussian(cvae.prior(y), torch.zeros(3))
        return Bernoulli(decode(z, y), event_dims=1).log_prob(x) + prior.log_prob(z)

    use = {"proposal": lambda x, y: gaussian(*cvae.encode(x, y)), "log_joint": log_joint, "condition": y}

    def log_w(i: int, eps: Tensor) -> Tensor:
        mu, logvar = cvae.encode(x[i : i + 1], y[i : i + 1])
        z = mu + eps * torch.exp(0.5 * logvar)
        p = cvae.decode(z, y[i].repeat(len(z))).sigmoid()
        return log_bernoulli(x[i], p) + log_normal(z, cvae.prior(y[i])) - log_normal(z, mu, logvar)

    return [cvae], x, use, log_w, 3


def distributions_out(build: Build) -> Case:
    vae, x = build("distributions_out")
    use = {"proposal": vae.q_z, "log_joint": lambda x, z: vae.p_x(z).log_prob(x) + vae.p_z.log_prob(z)}

    def log_w(i: int, eps: Tensor) -> Tensor:
        q = vae.q_z(x[i : i + 1])
        z = q.loc + q.scale * eps
        loc, log_scale = vae.generative(z).view(len(z), 2, -1).unbind(1)
        log_p_z = log_normal(z[:, None], vae.mixture).logsumexp(1) - math.log(4)
        return log_normal(x[i].flatten(), loc, 2 * log_scale) + log_p_z - log_normal(z, q.loc, 2 * q.scale.log())

    return [vae], x, use, log_w, 3


def gaussian_out(build: Build) -> Case:
    vae, x = build("gaussian_out")
    prior = standard(3)
    use = {
        "proposal": lambda x: gaussian(*vae.encode(x).values()),
        "log_joint": lambda x, z: gaussian(*vae.decode(z)).log_prob(x) + prior.log_prob(z),
    }

    def log_w(i: int, eps: Tensor) -> Tensor:
        mu, logvar = vae.encode(x[i : i + 1]).values()
        z = mu + eps * torch.exp(0.5 * logvar)
        return log_normal(x[i], *vae.decode(z)) + log_normal(z) - log_normal(z, mu, logvar)

    return [vae], x, use, log_w, 3


def sigmoid_sequential(build: Build) -> Case:
    encoder, decoder, x = build("sigmoid_sequential")
    decode, prior = logits(decoder), standard(3)
    use = {
        "proposal": lambda x: gaussian(*encoder(x).chunk(2, -1)),
        "log_joint": lambda x, z: Bernoulli(decode(z)).log_prob(x) + prior.log_prob(z),
    }

    def log_w(i: int, eps: Tensor) -> Tensor:
        mu, logvar = encoder(x[i : i + 1]).chunk(2, -1)
        z = mu + eps * torch.exp(0.5 * logvar)
        p = decoder(z).flatten(1)
        return log_bernoulli(x[i].flatten(), p) + log_normal(z) - log_normal(z, mu, logvar)

    return [encoder, decoder], x, use, log_w, 3


STYLES = {
    style.__name__: style
    for style in (
        sigmoid_example,
        convolutional,
        two_layers,
        flow_of_noise,
        label_conditioned,
        distributions_out,
        gaussian_out,
        sigmoid_sequential,
    )
}


def case(style: Callable[[Build], Case], build: Build) -> Case:
    """The model in double precision and in eval mode, for the formula."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        modules, x, *rest = style(build)
    finally:
        torch.set_default_dtype(default)
    for module in modules:
        module.eval()
    return modules, x, *rest


def test_every_model_file_is_tried() -> None:
    names = {path.stem for path in (Path(__file__).parent / "models").glob("*.py")}
    assert names == (STYLES.keys() - {"flow_of_noise"}) | {"planar_flow"}


@pytest.mark.parametrize("name", STYLES)
@torch.no_grad()
def test_two_lines_give_the_textbook_estimate_from_the_same_noise(name: str, build: Build) -> None:
    modules, x, use, log_w, size = case(STYLES[name], build)
    options = {"num_samples": SAMPLES, "seed": 3, "max_bytes": 20_000, "modules": modules}
    for module in modules:
        module.train()
    result = fastvae.log_likelihood(x, **use, **options)
    assert all(module.training for module in modules)
    noise = fastvae.ops.normal(3, torch.arange(len(x)), torch.arange(SAMPLES), size, dtype=F64)
    for module in modules:
        module.eval()
    for i in range(len(x)):
        weights = log_w(i, noise[i])
        torch.testing.assert_close(result.log_prob[i], weights.logsumexp(0) - math.log(SAMPLES), rtol=1e-10, atol=0)
        torch.testing.assert_close(result.elbo[i], weights.mean(), rtol=1e-10, atol=0)
    assert not torch.allclose(result.log_prob, result.log_prob.mean())


@torch.no_grad()
def test_a_flow_that_draws_for_itself_agrees_with_other_noise(build: Build) -> None:
    modules, x, use, log_w, size = case(flow_with_its_own_noise, build)
    result = fastvae.log_likelihood(x, **use, num_samples=5000, modules=modules)
    weights = torch.stack([log_w(i, torch.randn(20_000, size, dtype=F64)) for i in range(len(x))], 1)
    want = fastvae.evaluation.LogWeights(len(x))
    want.update(weights)
    error = (result.std_error.square() + want.std_error.square()).sqrt()
    assert ((result.log_prob - want.log_prob).abs() < 4 * error).all()
    assert error.max() < 0.1


@torch.no_grad()
def test_saturated_probabilities_cost_nothing(build: Build) -> None:
    encoder, decoder, x = build("sigmoid_sequential")
    decoder[2].weight.mul_(3000.0)  # logits of some hundred: probabilities of exactly 0 and 1 in float32
    prior = DiagonalGaussian(torch.zeros(3), torch.zeros(3))

    def estimate(likelihood: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return fastvae.log_likelihood(
            x,
            proposal=lambda x: gaussian(*encoder(x).chunk(2, -1)),
            log_joint=lambda x, z: likelihood(x, z) + prior.log_prob(z),
            num_samples=50,
            modules=[encoder, decoder],
        ).log_prob

    want = estimate(lambda x, z: Bernoulli(decoder[:3](z), event_dims=1).log_prob(x.flatten(1)))
    assert (want < -200).any()
    decode = logits(decoder)
    torch.testing.assert_close(estimate(lambda x, z: Bernoulli(decode(z)).log_prob(x)), want, rtol=1e-6, atol=0)
    bce = torch.nn.functional.binary_cross_entropy
    with pytest.warns(
        UserWarning, match=r"binary_cross_entropy of probabilities clamps .*fastvae.evaluation.adapters.logits"
    ):
        clamped = estimate(
            lambda x, z: -bce(decoder(z), x.expand(*z.shape[:2], 1, 4, 4), reduction="none").sum((2, 3, 4))
        )
    assert (clamped - want).abs().max() > 10
    with pytest.warns(UserWarning, match=r"torch.distributions clamps probs= .*fastvae.evaluation.adapters.logits"):
        estimate(lambda x, z: Independent(torch.distributions.Bernoulli(probs=decoder(z)), 3).log_prob(x))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    with pytest.warns(UserWarning, match=r"with_logits is given probabilities where it expects logits"):
        estimate(lambda x, z: -bce(decoder(z), x.expand(*z.shape[:2], 1, 4, 4), reduction="none").sum((2, 3, 4)))


def test_the_importance_weighted_bound_trains_models_of_other_styles(build: Build) -> None:
    vae, x = build("sigmoid_example")
    decode = logits(vae.decode)
    model = LatentVariableModel(
        encoder=lambda x: gaussian(*vae.encode(x)),
        decoder=lambda z: Independent(torch.distributions.Bernoulli(logits=decode(z)), 1),
        prior=5,
    )
    torch.manual_seed(0)
    bound = fastvae.objectives.iwae(model, x, num_samples=7)
    bound.sum().backward()
    ours = [parameter.grad.clone() for parameter in vae.parameters()]
    vae.zero_grad()
    torch.manual_seed(0)
    mu, logvar = vae.encode(x)
    z = mu + torch.randn(7, *mu.shape) * torch.exp(0.5 * logvar)
    log_p = torch.distributions.Bernoulli(vae.decode(z)).log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1)
    want = (log_p - Normal(mu, torch.exp(0.5 * logvar)).log_prob(z).sum(-1)).logsumexp(0) - math.log(7)
    want.sum().backward()
    torch.testing.assert_close(bound, want)
    for got, parameter in zip(ours, vae.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-5)


def test_two_layers_train_with_the_plain_estimator(build: Build) -> None:
    (vae,), x, use, log_w, _ = case(two_layers, build)
    torch.manual_seed(0)
    bound = fastvae.objectives.iwae(None, x, 7, **use)
    bound.sum().backward()
    ours = [parameter.grad.clone() for parameter in vae.parameters()]
    vae.zero_grad()
    torch.manual_seed(0)
    eps = torch.randn(7, len(x), 9, dtype=F64)
    want = torch.stack([log_w(i, eps[:, i]).logsumexp(0) - math.log(7) for i in range(len(x))])
    want.sum().backward()
    torch.testing.assert_close(bound, want, rtol=1e-10, atol=0)
    for got, parameter in zip(ours, vae.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-8, atol=1e-10)


def test_chunks_and_batches_leave_tuples_alone(build: Build) -> None:
    modules, x, use, _, _ = case(two_layers, build)
    whole = fastvae.log_likelihood(x, **use, num_samples=300, modules=modules)
    small = fastvae.log_likelihood(x, **use, num_samples=300, max_bytes=1, modules=modules)
    torch.testing.assert_close(small.log_prob, whole.log_prob, rtol=1e-10, atol=0)
    part = fastvae.log_likelihood(x[3:], **use, num_samples=300, ids=torch.arange(3, 5), modules=modules)
    torch.testing.assert_close(part.log_prob, whole.log_prob[3:], rtol=1e-10, atol=0)


def test_tuples_that_are_drawn_together_need_no_chain(build: Build) -> None:
    modules, x, use, *_ = case(two_layers, build)
    (vae,) = modules

    def drawn(x: Tensor) -> SimpleNamespace:
        def rsample_and_log_prob(shape: torch.Size) -> tuple[tuple[Tensor, ...], Tensor]:
            (h1, h2), log_q = vae.infer(x.expand(*shape, *x.shape))
            return (h1, h2), log_q

        return SimpleNamespace(rsample_and_log_prob=rsample_and_log_prob)

    ours = fastvae.log_likelihood(x, proposal=drawn, log_joint=use["log_joint"], num_samples=4000, modules=modules)
    want = fastvae.log_likelihood(x, **use, num_samples=4000, seed=1, modules=modules)
    error = (ours.std_error.square() + want.std_error.square()).sqrt()
    assert ((ours.log_prob - want.log_prob).abs() < 4 * error).all()
    assert error.max() < 0.2
    again = fastvae.log_likelihood(
        x, proposal=drawn, log_joint=use["log_joint"], num_samples=4000, max_bytes=1000, modules=modules
    )
    torch.testing.assert_close(again.log_prob, ours.log_prob, rtol=1e-10, atol=0)
