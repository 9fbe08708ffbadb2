"""Every autoregressive model: a distribution over images, whose pixels see exactly the past that is declared."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastvae
from fastvae import models, ops
from fastvae.models import NADE, GatedPixelCNN, OrderedPixelCNN, PixelCNN, PixelVAE
from fastvae.ops.tap_bits import neighbours

SIZE = (5, 6)
STACK: dict[str, Any] = {"channels": 12, "num_blocks": 2, "first_kernel_size": 3}
SNAKE = ops.generation_order("s_curve", SIZE, flip_rows=True).tolist()
MODELS: dict[str, Callable[..., Any]] = {
    "pixelcnn": lambda shape, family="bernoulli": PixelCNN(shape, family, **STACK),
    "gated": lambda shape, family="bernoulli": GatedPixelCNN(shape, family, **STACK),
    "ordered": lambda shape, family="bernoulli": OrderedPixelCNN(shape, family, **STACK, order="hilbert"),
    "ensemble": lambda shape, family="bernoulli": OrderedPixelCNN(
        shape, family, **STACK, order="s_curve", num_orders=3
    ),
    "nade": lambda shape: NADE(shape, hidden_features=6, order="random"),
    "nade ensemble": lambda shape: NADE(shape, hidden_features=6, num_orders=8),
}


def randomised(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.double()


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_of_all_images_sum_to_one(name: str) -> None:
    shapes: list[tuple[int, int, int]] = [(1, 3, 4), (2, 2, 3)]
    for shape in shapes:
        model = randomised(MODELS[name](shape))
        bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)), dtype=torch.float64)
        total = model.log_prob(bits.view(-1, *shape)).exp().sum()
        torch.testing.assert_close(total.item(), 1.0, rtol=1e-10, atol=0)
    if "nade" not in name:
        for family in ("categorical", "logistic_mixture"):
            model = randomised(MODELS[name]((1, 2, 2), {"name": family, "num_levels": 4}))
            levels = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.float64)
            total = model.log_prob(levels.view(-1, 1, 2, 2)).exp().sum()
            torch.testing.assert_close(total.item(), 1.0, rtol=1e-10, atol=0)


def support(net: Callable[[Tensor], Tensor], size: tuple[int, int], channels: int = 1) -> Tensor:
    """(HW, HW): whether the parameters of each pixel move with each pixel, at one of several images."""
    found: Any = False
    for _ in range(3):
        x = torch.rand(1, channels, *size, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda v: net(v).sum(1), x)[0, :, :, 0]  # (H, W, C, H, W)
        found = found | (jacobian != 0).any(2).view(size[0] * size[1], -1)
    return found


def taps(kernel_size: int, order: Tensor, mask: str) -> Tensor:
    """(HW, HW): what one masked layer shows each pixel, by the definition."""
    height, width = SIZE
    rank = torch.empty(height * width)
    rank[order[:, 0] * width + order[:, 1]] = torch.arange(height * width).float()
    near = torch.zeros(height * width, height * width + 1, dtype=torch.bool)
    near.scatter_(1, neighbours(height, width, kernel_size, 1), True)
    seen = near[:, :-1] & (rank[None] < rank[:, None])
    return seen | torch.eye(height * width, dtype=torch.bool) if mask == "B" else seen


def reached(order: Tensor) -> Tensor:
    """What a first layer and two later ones show each pixel together."""
    first, later = (taps(STACK["first_kernel_size"], order, "A"), taps(3, order, "B"))
    return (later.float() @ later.float() @ first.float()) > 0


@pytest.mark.parametrize("order", ["raster", "s_curve", "hilbert", SNAKE])
def test_an_ordered_pixelcnn_sees_exactly_what_its_masks_reach(order: Any) -> None:
    model = OrderedPixelCNN((1, *SIZE), **STACK, order=order).double()
    assert torch.equal(support(model, SIZE), reached(model.orders[0]))


def test_the_members_of_an_ensemble_each_see_their_own_past() -> None:
    model = OrderedPixelCNN((2, *SIZE), **STACK, order="s_curve", num_orders=8).double()
    for index in (3, 6):
        assert torch.equal(support(lambda x, i=index: model(x, i), SIZE, 2), reached(model.orders[index]))


def test_a_plain_pixelcnn_sees_exactly_what_its_masks_reach_and_a_gated_one_all_in_reach() -> None:
    raster = ops.generation_order("raster", SIZE)
    plain, gated = (support(kind((1, *SIZE), **STACK).double(), SIZE) for kind in (PixelCNN, GatedPixelCNN))
    assert torch.equal(plain, reached(raster))
    row, column = raster.T
    earlier = torch.arange(30)[None] < torch.arange(30)[:, None]
    near = ((column[None] - column[:, None]).abs() <= 3) & (row[:, None] - row[None] <= 4)
    assert torch.equal(gated, earlier & near)
    assert (gated & ~plain).any(), "the blind spot of the plain one"
    wide = GatedPixelCNN((1, *SIZE), channels=8, num_blocks=3, first_kernel_size=7).double()
    assert torch.equal(support(wide, SIZE), earlier), "all of the past where it is within reach"


def test_a_gated_pixelvae_sees_all_of_z_everywhere_and_nothing_of_the_future() -> None:
    model = PixelVAE((1, *SIZE), latent_size=3, hidden_sizes=(8,), **STACK, gated=True).double()
    z = torch.randn(1, 3, dtype=torch.float64)
    x = torch.rand(1, 1, *SIZE, dtype=torch.float64)
    by_z = torch.autograd.functional.jacobian(lambda v: model(x, v), z)[0, 0, :, :, 0]
    assert (by_z != 0).all(), "pixel (0, 0) included"
    seen = support(lambda v: model(v, z), SIZE)
    assert not seen.triu().any()
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    x = (torch.rand(2, 1, *SIZE) < 0.5).double()
    each = torch.stack([model.likelihood(z[k, n]).log_prob(x[n]) for k in range(5) for n in range(2)]).view(5, 2)
    torch.testing.assert_close(model.likelihood(z).log_prob(x), each)
    drawn = fastvae.compile_sampler(model.float())(4, seed=1, condition=torch.randn(4, 3), verify=True)
    assert drawn.certificate.ok


@pytest.mark.parametrize("gated", [False, True])
def test_the_decoder_of_a_pixelvae_sees_all_of_the_past_that_its_pixelcnn_does(gated: bool) -> None:
    model = PixelVAE((1, *SIZE), latent_size=3, hidden_sizes=(8,), **STACK, gated=gated).double()
    alone = (GatedPixelCNN if gated else PixelCNN)((1, *SIZE), **STACK).double()
    z = torch.randn(1, 3, dtype=torch.float64)
    assert torch.equal(support(lambda v: model(v, z), SIZE), support(alone, SIZE))


@pytest.mark.parametrize("order", ["raster", "hilbert", "random"])
def test_nade_sees_all_of_the_past_and_nothing_else(order: str) -> None:
    model = randomised(NADE((2, 3, 4), hidden_features=5, order=order))
    x = torch.rand(24, dtype=torch.float64)
    dimensions = model.dimensions[0]
    jacobian = torch.autograd.functional.jacobian(lambda v: model.net(v, dimensions), x)
    assert torch.equal(jacobian[dimensions][:, dimensions] != 0, torch.ones(24, 24).tril(-1) != 0)
    # the channels of a pixel follow each other
    assert (dimensions.view(12, 2)[:, 1] - dimensions.view(12, 2)[:, 0] == 12).all()
    assert torch.equal(dimensions.view(12, 2)[:, 0], model.orders[0] @ torch.tensor([4, 1]))


@pytest.mark.parametrize("name", ["ensemble", "nade ensemble"])
def test_an_ensemble_averages_joint_probabilities_and_trains_on_one_order(name: str) -> None:
    model = randomised(MODELS[name]((1, 3, 4)))
    x = (torch.rand(6, 1, 3, 4) < 0.5).double()
    each = torch.stack([model.log_prob_in_order(x, index) for index in range(model.num_orders)])
    torch.testing.assert_close(model.log_prob(x), each.logsumexp(0) - math.log(len(each)))
    assert len({round(value, 6) for value in each[:, 0].tolist()}) == model.num_orders, "the orders differ"
    model.train()
    found = torch.stack([model.bound(x) for _ in range(40)])
    assert all(any(torch.allclose(one, other) for other in each) for one in found)
    torch.testing.assert_close(model.eval().bound(x), model.log_prob(x))


@pytest.mark.parametrize("name", ["ordered", "ensemble", "nade", "nade ensemble"])
def test_draws_are_of_the_distribution(name: str) -> None:
    model = randomised(MODELS[name]((1, 1, 3))).float()
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).view(-1, 1, 1, 3)
    want = model.log_prob(images).exp()
    drawn = model.sample(4000, seed=3)
    assert torch.equal(drawn, model.sample(4000, seed=3))
    shares = (drawn[:, None] == images[None]).flatten(2).all(-1).float().mean(0)
    assert ((shares - want).abs() < 4.5 * (want * (1 - want) / 4000).sqrt() + 1e-9).all()


@pytest.mark.parametrize("family", ["bernoulli", {"name": "categorical", "num_levels": 4}])
def test_draws_in_one_scan_are_those_of_a_pass_for_every_pixel(family: Any) -> None:
    model = randomised(OrderedPixelCNN((2, *SIZE), family, **STACK, order="s_curve", num_orders=3))
    found = model.sample_in_order(4, 1, seed=7)
    x = torch.zeros(4, 2, *SIZE).double()
    torch.manual_seed(7)
    for row, column in model.orders[1].tolist():
        here = model(x, 1)[:, :, row : row + 1, column : column + 1].detach()
        x[:, :, row : row + 1, column : column + 1] = model.family(here).sample()
    assert torch.equal(found, x)
    assert found.unique().numel() == model.family.num_levels


@pytest.mark.parametrize("name", MODELS)
def test_models_are_rebuilt_from_their_config(name: str) -> None:
    import json

    model = MODELS[name]((1, 3, 4))
    again = getattr(models, type(model).__name__)(**json.loads(json.dumps(model.config())))
    again.load_state_dict(model.state_dict())
    x = (torch.rand(2, 1, 3, 4) < 0.5).float()
    torch.testing.assert_close(again.log_prob(x), model.log_prob(x))
    custom = OrderedPixelCNN((1, *SIZE), **STACK, order=[SNAKE])
    assert torch.equal(OrderedPixelCNN(**json.loads(json.dumps(custom.config()))).orders, custom.orders)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: NADE((1, 3, 3), "gaussian"), "likelihood must be bernoulli for NADE.* got gaussian"),
        (lambda: NADE((1, 3, 3), order="spiral"), "order must be one of .* got 'spiral'"),
        (lambda: NADE((1, 3, 3), num_orders=9), "num_orders must be at most 8 for 'raster', got 9"),
        (lambda: NADE((1, 3, 3), order=[[[0, 0]]]), r"order must be \(9, 2\)"),
        (lambda: NADE((1, *SIZE), order=[SNAKE], num_orders=2), "num_orders must be 1 or the number of orders, 1"),
        (lambda: NADE((1, 3, 3)).log_prob(torch.full((1, 1, 3, 3), 0.5)), "x must be 0 or 1 for a bernoulli"),
        (lambda: GatedPixelCNN((1, 3, 3), kernel_size=2), "^kernel_size must be odd, got 2"),
        (lambda: OrderedPixelCNN((1, 3, 3), first_kernel_size=9), "kernel_size must be odd and at most 7, got 9"),
    ],
)
def test_bad_arguments_say_what_is_wrong(build: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()
