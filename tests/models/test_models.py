"""The models: causality and coverage of the PixelCNN, the unmasked path of z, shapes, configs, errors."""

import itertools

import pytest
import torch
from torch import Tensor

from fastvae.models import VAE, PixelCNN, PixelVAE

SMALL = {"latent_size": 3, "hidden_sizes": (8,)}


def jacobian_support(net: PixelCNN, condition: Tensor | None = None) -> Tensor:
    """(HW out, HW in): whether an output pixel depends on an input pixel."""
    channels, height, width = net.event_shape
    x = torch.rand(1, channels, height, width, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v, condition), x)[0, :, :, :, 0]
    pixels = height * width
    return (jacobian.abs().sum((0, 3)) > 0).view(pixels, pixels)


@pytest.mark.parametrize("event_shape", [(1, 5, 6), (2, 4, 4), (1, 1, 7), (1, 6, 1)])
def test_no_pixel_sees_itself_or_the_future(event_shape: tuple[int, int, int]) -> None:
    net = PixelCNN(event_shape, "bernoulli", channels=8, num_blocks=2, first_kernel_size=3).double()
    support = jacobian_support(net)
    assert not support.triu().any()


def test_the_past_within_reach_is_seen() -> None:
    net = PixelCNN((1, 6, 6), "bernoulli", channels=16, num_blocks=3, first_kernel_size=5).double()
    support = jacobian_support(net)
    centre = 3 * 6 + 3
    seen = support[centre].view(6, 6)
    assert seen[3, :3].all(), "the whole left of the row is within reach"
    assert seen[:3, :4].all(), "above and above left are within reach"
    # the plain stack has the known blind spot on the right: what it does see there lies within the cone
    assert seen[2, 4], "one up, one right is in the first kernel"


def test_a_pixelcnn_is_normalised_over_all_images() -> None:
    net = PixelCNN((1, 2, 3), "bernoulli", channels=8, num_blocks=2, first_kernel_size=3).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64).view(-1, 1, 2, 3)
    torch.testing.assert_close(net.log_prob(images).exp().sum().item(), 1.0, rtol=1e-12, atol=0)
    four = PixelCNN((1, 2, 2), {"name": "categorical", "num_levels": 4}, channels=8, num_blocks=1).double()
    images = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.float64).view(-1, 1, 2, 2)
    torch.testing.assert_close(four.log_prob(images).exp().sum().item(), 1.0, rtol=1e-12, atol=0)


def test_activations_do_not_explode_with_depth() -> None:
    torch.manual_seed(0)
    spread = []
    for num_blocks in (1, 15):
        net = PixelCNN((1, 8, 8), channels=32, num_blocks=num_blocks)
        spread.append(net(torch.randint(0, 2, (4, 1, 8, 8)).float()).abs().max().item())
    assert spread[1] < 10 * max(spread[0], 0.1)


def test_every_pixel_sees_all_of_z_and_z_leaks_no_future() -> None:
    model = PixelVAE((1, 4, 4), latent_size=3, channels=8, num_blocks=2, hidden_sizes=(8,)).double()
    x = torch.randint(0, 2, (1, 1, 4, 4)).double()
    z = torch.randn(1, 3, dtype=torch.float64)
    by_z = torch.autograd.functional.jacobian(lambda v: model(x, v), z)[0, 0, :, :, 0]
    assert (by_z.abs() > 0).all(), "pixel (0, 0) included"
    support = jacobian_support(model.decoder.pixelcnn, model.decoder.maps(z).detach())
    assert not support.triu().any()


def test_pixelvae_likelihood_broadcasts_like_a_loop() -> None:
    model = PixelVAE((1, 4, 4), latent_size=3, channels=8, num_blocks=1, hidden_sizes=(8,)).double()
    x = torch.randint(0, 2, (2, 1, 4, 4)).double()
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    together = model.likelihood(z).log_prob(x)
    loop = torch.stack([model.likelihood(z[k, n]).log_prob(x[n]) for k in range(5) for n in range(2)]).view(5, 2)
    torch.testing.assert_close(together, loop)


@pytest.mark.parametrize("likelihood", ["bernoulli", {"name": "categorical", "num_levels": 5}, "gaussian"])
@pytest.mark.parametrize("build", [VAE, PixelVAE])
def test_models_are_rebuilt_from_their_config_with_the_same_state_dict(build, likelihood) -> None:
    model = build((2, 4, 4), likelihood, **SMALL)
    again = build(**model.config())
    again.load_state_dict(model.state_dict())
    assert again.config() == model.config()
    x = torch.zeros(2, 2, 4, 4)
    z = torch.randn(3, 2, 3)
    torch.testing.assert_close(again.likelihood(z).log_prob(x), model.likelihood(z).log_prob(x))
    torch.testing.assert_close(again.proposal(x).mean, model.proposal(x).mean)


def test_starting_at_the_marginals_gives_the_marginal_likelihood() -> None:
    x = (torch.rand(200, 1, 3, 3) < 0.2).float()
    model = VAE((1, 3, 3), **SMALL)
    model.start_at_marginals(x)
    mean = model.likelihood(torch.zeros(3)).mean
    with torch.no_grad():
        for parameter in model.decoder.net[:-1].parameters():
            parameter.zero_()
    torch.testing.assert_close(model.likelihood(torch.zeros(3)).mean, x.mean(0), rtol=0, atol=5e-3)
    assert mean.shape == (1, 3, 3)


def test_models_follow_dtype_and_deepcopy() -> None:
    import copy

    model = copy.deepcopy(VAE((1, 4, 4), "gaussian", **SMALL)).double()
    assert model.prior().loc.dtype == torch.float64
    assert (
        model.likelihood(model.prior().rsample((2,))).log_prob(torch.zeros(2, 1, 4, 4).double()).dtype == torch.float64
    )


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: VAE((28, 28)), r"event_shape must be three positive integers \(C, H, W\), got \(28, 28\)"),
        (lambda: VAE((1, 4, 4), latent_size=0), "latent_size must be at least 1, got 0"),
        (lambda: VAE((1, 4, 4), activation="gelu"), "activation must be one of .* got 'gelu'"),
        (lambda: VAE((1, 4, 4), "poisson"), "likelihood must be one of .* got 'poisson'"),
        (lambda: PixelCNN((1, 4, 4), first_kernel_size=4), "first_kernel_size must be odd, got 4"),
        (lambda: PixelCNN((1, 4, 4), kernel_size=2), "^kernel_size must be odd, got 2"),
        (lambda: VAE((1, 4, 4), hidden_sizes=(8, 0)), "hidden_sizes must be at least 1, got 0"),
        (lambda: VAE(8), "event_shape must be three positive integers .* got 8"),
        (lambda: VAE((1, 4, 4), **SMALL).likelihood(torch.zeros(3, 7)), r"z must have shape \(..., 3\), got \(3, 7\)"),
        (lambda: PixelVAE((1, 4, 4), **SMALL).likelihood(torch.zeros(7)), r"z must have shape \(..., 3\), got \(7,\)"),
        (
            lambda: VAE((1, 4, 4), **SMALL).proposal(torch.zeros(2, 1, 4, 4, device="meta")),
            "x must be on the model's device, cpu, got meta",
        ),
        (lambda: PixelCNN((1, 4, 4), channels=0), "channels must be at least 1, got 0"),
        (lambda: PixelCNN((1, 4, 4), channels=4)(torch.zeros(2, 1, 4, 5)), r"x must have shape \(N, 1, 4, 4\), got"),
        (
            lambda: PixelCNN((1, 4, 4), channels=4)(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3)),
            r"takes no condition, got one of shape \(2, 3\)",
        ),
        (
            lambda: PixelCNN((1, 4, 4), channels=4, condition_channels=3)(torch.zeros(2, 1, 4, 4)),
            "takes a condition with 3 channels, got none",
        ),
        (
            lambda: PixelCNN((1, 4, 4), channels=4, condition_channels=3)(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4)),
            r"condition must have shape \(2, 3\).*got \(2, 4, 1, 1\)",
        ),
        (
            lambda: PixelVAE((1, 4, 4), **SMALL)(torch.zeros(2, 1, 4, 4), torch.zeros(3, 3)),
            r"z must have shape \(2, 3\)",
        ),
        (
            lambda: VAE((1, 4, 4), **SMALL).proposal(torch.zeros(2, 16)),
            r"x must have shape \(N, 1, 4, 4\), got \(2, 16\)",
        ),
    ],
)
def test_bad_arguments_say_what_is_wrong(build, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: VAE((1, 4, 4), latent_size=1.5), "latent_size must be an integer, got 1.5"),
        (lambda: VAE((1, 4, 4), hidden_sizes=20), "hidden_sizes must be a sequence of integers, got 20"),
        (
            lambda: VAE((1, 4, 4), **SMALL).proposal(torch.zeros(2, 1, 4, 4).double()),
            r"x must have the model's dtype, torch.float32, got torch.float64",
        ),
        (
            lambda: PixelCNN((1, 4, 4), channels=4)(torch.zeros(2, 1, 4, 4).half()),
            r"x must have the model's dtype, torch.float32, got torch.float16",
        ),
        (lambda: VAE((1, 4, 4), **SMALL).proposal([[0.0]]), "x must be a tensor, got list"),
    ],
)
def test_bad_types_say_what_is_wrong(build, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        build()


def test_integer_images_serve_models_of_any_dtype() -> None:
    x = torch.randint(0, 2, (3, 1, 4, 4), dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        net = PixelCNN((1, 4, 4), channels=4, num_blocks=1).to(dtype)
        torch.testing.assert_close(net.log_prob(x), net.log_prob(x.to(dtype)))
        vae = VAE((1, 4, 4), **SMALL).to(dtype)
        torch.testing.assert_close(vae.proposal(x).mean, vae.proposal(x.to(dtype)).mean)
