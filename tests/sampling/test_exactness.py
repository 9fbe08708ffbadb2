"""Planned samples are the samples: equal to naive sampling, certified, and the same in any batch."""

import pytest
import torch
from networks_in_the_wild import STYLES, Balanced, MaskedWeight, plain, randomized
from torch import nn

from fastvae import compile_sampler
from fastvae.ops import uniform

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

SHAPES = [(5, 7), (6, 6), (1, 6), (6, 1), (2, 3), (7, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("style", STYLES)
def test_same_noise_gives_the_images_of_naive_sampling(style: str, shape: tuple[int, int]) -> None:
    model = Balanced(randomized(STYLES[style](*shape)), *shape)
    sampler = compile_sampler(model, (1, *shape), "bernoulli")
    noise = torch.rand(5, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = sampler(5, noise=noise, verify=True)
    naive = sampler.naive(5, noise=noise)
    assert torch.equal(ours.samples, naive.samples)
    torch.testing.assert_close(ours.log_prob, naive.log_prob, rtol=1e-10, atol=1e-10)
    assert ours.certificate.mismatches == 0
    assert 0 < ours.samples.mean() < 1  # not a constant that anything would reproduce


@pytest.mark.parametrize("style", STYLES)
def test_forced_decoding_equals_the_parallel_pass(style: str) -> None:
    model = randomized(STYLES[style](9, 8))
    images = torch.rand(4, 1, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).round()
    sampler = compile_sampler(model, (1, 9, 8), "bernoulli")
    with torch.no_grad():
        torch.testing.assert_close(sampler.decode(images), model(images), rtol=1e-12, atol=1e-12)
    single = model.float()
    sampler = compile_sampler(single, (1, 9, 8), "bernoulli")
    with torch.no_grad():
        torch.testing.assert_close(sampler.decode(images.float()), single(images.float()), rtol=1e-5, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch() -> None:
    sampler = compile_sampler(randomized(plain(), gain=2.0), (1, 8, 8), "bernoulli")
    whole = sampler(64, seed=3)
    for size in (1, 3, 17):
        for start in (0, 20, 41):
            part = sampler(size, seed=3, first_id=start)
            torch.testing.assert_close(part.samples, whole.samples[start : start + size], rtol=0, atol=0)
            torch.testing.assert_close(part.log_prob, whole.log_prob[start : start + size])


def test_images_in_another_order_are_the_same_images() -> None:
    sampler = compile_sampler(randomized(plain(), gain=2.0), (1, 6, 6), "bernoulli")
    noise = torch.rand(9, 1, 6, 6, dtype=torch.float64)
    order = torch.randperm(9)
    torch.testing.assert_close(sampler(9, noise=noise[order]).samples, sampler(9, noise=noise).samples[order])


def test_a_large_batch_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = compile_sampler(randomized(plain(), gain=2.0), (1, 6, 6), "bernoulli")
    whole = sampler(10, seed=5)
    monkeypatch.setattr("fastvae.sampling.engine._MOST_CACHE_BYTES", 4 * sampler.plan.cache_bytes)
    small = compile_sampler(sampler.model, (1, 6, 6), "bernoulli")
    parts = small(10, seed=5, verify=True)
    assert torch.equal(parts.samples, whole.samples)
    assert sorted(small._engine.programs) == [2, 4]
    assert parts.certificate.values == 360


def test_noise_is_addressed_by_seed_image_pixel_and_channel() -> None:
    model = randomized(plain(channels=2), gain=2.0)
    sampler = compile_sampler(model, (2, 3, 5), "bernoulli")
    ids, pixels = torch.tensor([7, 8, 9]), torch.arange(15)
    noise = uniform(12, ids, pixels, 2, dtype=torch.float64).view(3, 3, 5, 2).permute(0, 3, 1, 2)
    assert torch.equal(sampler(3, seed=12, first_id=7).samples, sampler(3, noise=noise).samples)


def test_naive_sampling_can_stop_after_some_pixels() -> None:
    sampler = compile_sampler(randomized(plain(), gain=2.0), (1, 4, 5), "bernoulli")
    whole, part = sampler.naive(20).samples, sampler.naive(20, num_pixels=7).samples
    assert torch.equal(part.flatten(1)[:, :7], whole.flatten(1)[:, :7])
    assert not part.flatten(1)[:, 7:].any()


def test_other_seeds_give_other_images_and_calls_leave_nothing_behind() -> None:
    sampler = compile_sampler(randomized(plain(), gain=2.0), (1, 6, 6), "bernoulli")
    first, other, again = sampler(4, seed=0), sampler(4, seed=1), sampler(4, seed=0)
    assert not torch.equal(first.samples, other.samples)
    assert torch.equal(first.samples, again.samples)
    assert torch.equal(first.log_prob, again.log_prob)


def test_results_stay_when_the_sampler_runs_again_and_take_part_in_autograd() -> None:
    model = randomized(plain(), gain=2.0)
    sampler = compile_sampler(model, (1, 6, 6), "bernoulli")
    first = sampler(4, seed=0)
    kept = first.samples.clone()
    sampler(4, seed=1)
    assert torch.equal(first.samples, kept)
    model(first.samples).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("first", [3, 5, 7])
@pytest.mark.parametrize("later", [1, 3])
def test_colour_channels_are_drawn_together(first: int, later: int) -> None:
    model = randomized(plain(channels=3, first=first, later=later, params=4), gain=2.0)
    sampler = compile_sampler(model, (3, 5, 6), "categorical")
    ours, naive = sampler(4, seed=1, verify=True), sampler.naive(4, seed=1)
    assert torch.equal(ours.samples, naive.samples)
    assert ours.samples.unique().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(ours.log_prob, naive.log_prob)


def test_gaussian_values_equal_naive_sampling_up_to_rounding() -> None:
    model = randomized(plain(channels=2, params=2), gain=0.5)  # a scale that grows with the values would explode
    sampler = compile_sampler(model, (2, 5, 5), "gaussian")
    ours, naive = sampler(6, seed=1, verify=True), sampler.naive(6, seed=1)
    torch.testing.assert_close(ours.samples, naive.samples, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.log_prob, naive.log_prob, rtol=1e-10, atol=1e-10)
    assert ours.samples.unique().numel() == ours.samples.numel()


def test_a_callable_draws_values() -> None:
    def logistic(u: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        return params[..., 0] + params[..., 1].exp() * torch.logit(u)

    sampler = compile_sampler(randomized(plain(params=2), gain=0.5), (1, 5, 5), logistic)
    ours, naive = sampler(3, verify=True), sampler.naive(3)
    torch.testing.assert_close(ours.samples, naive.samples, rtol=1e-10, atol=1e-10)
    assert ours.log_prob is None
    assert ours.certificate.ok


def test_single_precision_is_certified_and_images_agree() -> None:
    model = randomized(plain(width=32, layers=6), gain=1.5).float()
    sampler = compile_sampler(model, (1, 12, 12), "bernoulli")
    out = sampler(32, verify=True)
    assert out.certificate.ok
    assert out.samples.dtype == torch.float32
    assert (out.samples == sampler.naive(32).samples).flatten(1).all(1).float().mean() > 0.9  # rounding may flip one


def test_a_model_in_training_mode_without_random_layers_works_and_stays_so() -> None:
    model = randomized(plain(), gain=2.0).train()
    out = compile_sampler(model, (1, 5, 5), "bernoulli")(3, verify=True)
    assert out.certificate.mismatches == 0
    assert model.training


def test_the_model_is_left_as_it_was() -> None:
    model = randomized(STYLES["masked in place"](5, 5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compile_sampler(model, (1, 5, 5), "bernoulli")(2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_shared_modules_and_tied_weights_stay_shared() -> None:
    block = MaskedWeight("B", 4, 4, 3, padding=1)
    tied = MaskedWeight("B", 4, 4, 3, padding=1)
    tied.weight = block.weight
    model = randomized(
        nn.Sequential(
            MaskedWeight("A", 1, 4, 3, padding=1),
            nn.Tanh(),
            block,
            nn.Tanh(),
            block,
            nn.Tanh(),
            tied,
            nn.Conv2d(4, 1, 1),
        ),
        gain=2.0,
    )
    names = {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)}
    sampler = compile_sampler(model, (1, 6, 6), "bernoulli")
    assert sampler(8, verify=True).certificate.mismatches == 0
    assert {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)} == names
    with torch.no_grad():
        block.weight.mul_(-1.0)  # moves all three uses
    assert sampler(8, verify=True).certificate.mismatches == 0


def test_weights_changed_in_place_are_used() -> None:
    model = randomized(plain(), gain=2.0)
    sampler = compile_sampler(model, (1, 6, 6), "bernoulli")
    before = sampler(8, seed=0)
    plan = sampler.plan
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.3)
    after = sampler(8, seed=0, verify=True)
    assert after.certificate.mismatches == 0
    assert not torch.equal(before.samples, after.samples)
    assert sampler.plan is plan  # only numbers changed


def test_loaded_and_replaced_parameters_are_used() -> None:
    model, other = randomized(plain(), gain=2.0), randomized(plain(), gain=2.0, seed=1)
    sampler = compile_sampler(model, (1, 6, 6), "bernoulli")
    model.load_state_dict(other.state_dict(), assign=True)
    want = compile_sampler(other, (1, 6, 6), "bernoulli")(8, verify=True)
    assert torch.equal(sampler(8, verify=True).samples, want.samples)


def test_a_changed_zero_pattern_is_planned_again() -> None:
    model = nn.Sequential(MaskedWeight("A", 1, 4, 7, padding=3), nn.ReLU(), nn.Conv2d(4, 1, 1)).double()
    with torch.no_grad():
        model[0].mask[..., :2, :] = 0  # only the row above and the left
        model[0].mask[..., 2, 4:] = 0
    sampler = compile_sampler(model, (1, 8, 8), "bernoulli")
    assert sampler.plan.skew == 1
    with torch.no_grad():
        model[0].mask[..., :3, :] = 1
    out = sampler(8, verify=True)
    assert sampler.plan.skew == 4
    assert out.certificate.mismatches == 0


def test_weights_that_start_at_zero_are_planned_again_when_they_move() -> None:
    model = randomized(plain(first=3))
    with torch.no_grad():
        model[-1].weight.zero_()
    sampler = compile_sampler(model, (1, 6, 6), "bernoulli")
    assert sampler(4, verify=True).certificate.mismatches == 0
    with torch.no_grad():
        model[-1].weight.add_(1.0)
    assert sampler(4, verify=True).certificate.mismatches == 0
    assert sampler.plan.skew == 2


def test_another_precision_is_planned_again() -> None:
    model = randomized(plain(), gain=2.0)
    sampler = compile_sampler(model, (1, 6, 6), "bernoulli")
    assert sampler(4).samples.dtype == torch.float64
    model.float()
    out = sampler(4, verify=True)
    assert out.samples.dtype == out.log_prob.dtype == torch.float32
