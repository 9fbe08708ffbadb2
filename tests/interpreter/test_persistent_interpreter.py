"""The persistent sampling kernels, interpreted on the CPU, draw the images of the naive sampler with the same noise."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from fastvae_kernels import persistent_launch as launch
from fastvae_kernels.persistent_config import Config
from torch import Tensor, nn
from triton.runtime import interpreter

import fastvae
from fastvae import compile_sampler
from fastvae.distributions import CategoricalLikelihood
from fastvae.models import PixelCNN
from fastvae.nn import CausalStack, MaskedConv2d
from fastvae.sampling import CertificateError, Sampler
from fastvae.sampling.gated_stack import GatedNet, Schedule
from fastvae.sampling.plain_stack import PlainNet


@pytest.fixture(autouse=True, scope="module")
def _fresh_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns: a cell read too early shows
    options = interpreter.interpreter_builder.options
    # these kernels count a lot, and the interpreter's check of every sum would take most of the time
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    yield
    interpreter.interpreter_builder.options = options
    torch.use_deterministic_algorithms(before)


def randomized(model: nn.Module, shape: tuple[int, ...], *condition: Tensor) -> nn.Module:
    """Random weights, and biases: zeros would hide mistakes at the border. Parameters of mean 0 and deviation 1.5."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / fan_in**0.5)
        *_, last = (module for module in model.modules() if isinstance(module, nn.Conv2d))
        images = torch.rand(50, *shape, generator=generator).round()
        params = model(images, *(each[:1].expand(50, *each.shape[1:]) for each in condition))
        gain = 1.5 / params.std()
        last.bias.sub_(params.mean((0, 2, 3))).mul_(gain)
        last.weight.mul_(gain)
    return model


def sequential(first: int, later: int, layers: int, activation: type[nn.Module], dilation: int = 1) -> nn.Sequential:
    """No residual connections, no layers in between."""
    modules: list[nn.Module] = [MaskedConv2d(1, 6, first, mask="A")]
    for _ in range(layers):
        modules += [activation(), MaskedConv2d(6, 6, later, dilation=dilation, mask="B")]
    return nn.Sequential(*modules, activation(), nn.Conv2d(6, 1, 1))


class Bottleneck(nn.Module):
    """1x1, masked, 1x1 around a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width // 2, 1), nn.ReLU(), MaskedConv2d(width // 2, width // 2, 3, mask="B"),
            nn.ReLU(), nn.Conv2d(width // 2, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Stacks(nn.Module):
    """The gated layers of the library, whose link takes the row above, and a head."""

    def __init__(self, num_layers: int, first: int, condition_channels: int = 0) -> None:
        super().__init__()
        self.stack = CausalStack(1, 6, num_layers, 3, first, condition_channels)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.last(self.stack(x, condition))


class UpperRows(nn.Module):
    """Gated stacks whose vertical layers read only rows above, linked before the vertical gate."""

    def __init__(self, num_layers: int, channels: int = 1, params: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for index in range(num_layers):
            source = channels if index == 0 else 5
            self.layers.append(nn.ModuleDict({
                "vertical": MaskedConv2d(source, 10, 3, mask="vertical-strict"),
                "horizontal": MaskedConv2d(source, 10, (1, 3), mask="B" if index else "A"),
                "link": nn.Conv2d(10, 10, 1),
                "mix": nn.Conv2d(5, 5, 1),
            }))  # fmt: skip
        self.last = nn.Conv2d(5, channels * params, 1)

    def forward(self, x: Tensor) -> Tensor:
        vertical = horizontal = x
        for index, layer in enumerate(self.layers):
            above = layer["vertical"](vertical)
            f, g = (layer["horizontal"](horizontal) + layer["link"](above)).chunk(2, 1)
            mixed = layer["mix"](f.tanh() * g.sigmoid())
            horizontal = horizontal + mixed if index else mixed
            f, g = above.chunk(2, 1)
            vertical = f.tanh() * g.sigmoid()
        return self.last(horizontal.relu())


def check(sampler: Sampler, batch: int, **options: object) -> None:
    out = sampler(batch, seed=2**63 + 5, first_id=7, verify=True, **options)
    want = sampler.naive(batch, seed=2**63 + 5, first_id=7, **options)
    assert out.certificate.mismatches == 0
    torch.testing.assert_close(out.samples, want.samples, rtol=1e-5, atol=1e-5)  # equal but for Gaussian values
    torch.testing.assert_close(out.log_prob, want.log_prob, rtol=1e-5, atol=1e-5)
    assert want.samples.std() > 0.1


# name -> network, image, likelihood
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], object]] = {
    "residual, heads": (lambda: PixelCNN((1, 4, 5), "bernoulli", 8, 2, 3), (1, 4, 5), None),
    "first kernel of 7": (lambda: PixelCNN((1, 3, 7), "bernoulli", 20, 1, 7), (1, 3, 7), None),
    "levels": (lambda: PixelCNN((2, 3, 3), CategoricalLikelihood(3), 8, 1, 3), (2, 3, 3), None),
    "one log-scale for all": (lambda: PixelCNN((3, 3, 3), "gaussian", 8, 1, 3), (3, 3, 3), None),
    "later kernels larger": (lambda: sequential(3, 5, 2, nn.ELU), (1, 4, 4), "bernoulli"),
    "dilated": (lambda: sequential(3, 3, 1, nn.Tanh, dilation=2), (1, 4, 5), "bernoulli"),
    "bottlenecks": (
        lambda: nn.Sequential(MaskedConv2d(1, 8, 3, mask="A"), Bottleneck(8), nn.ReLU(), nn.Conv2d(8, 1, 1)),
        (1, 4, 4),
        "bernoulli",
    ),
    "one row": (lambda: PixelCNN((1, 1, 6), "bernoulli", 8, 1, 3), (1, 1, 6), None),
    "one column": (lambda: PixelCNN((1, 6, 1), "bernoulli", 8, 1, 3), (1, 6, 1), None),
    "gated, row above": (lambda: Stacks(3, 3), (1, 3, 3), "bernoulli"),
    "gated, row above, one layer": (lambda: Stacks(1, 3), (1, 3, 3), "bernoulli"),
    "gated, upper rows": (lambda: UpperRows(2), (1, 3, 5), "bernoulli"),
    "gated, two parameters": (lambda: UpperRows(2, 2, 2), (2, 3, 3), "gaussian"),
}


@pytest.mark.parametrize("name", NETS)
def test_images_are_those_of_the_naive_sampler(name: str) -> None:
    make, shape, likelihood = NETS[name]
    check(compile_sampler(randomized(make(), shape), shape, likelihood, backend="triton"), batch=2)


@pytest.mark.parametrize("name", ["residual, heads", "gated, row above"])
def test_images_that_do_not_fill_a_tile_and_given_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "choose_config", lambda *arguments: Config(2 * arguments[3]))  # two images a program
    make, shape, likelihood = NETS[name]
    sampler = compile_sampler(randomized(make(), shape), shape, likelihood)
    noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    with fastvae.backend("triton"):
        ours = sampler(3, noise=noise)
    with fastvae.backend("torch"):
        assert torch.equal(ours.samples, sampler.naive(3, noise=noise).samples)


@pytest.mark.parametrize("maps", [False, True])
def test_conditions_and_weights_that_move(maps: bool) -> None:
    shape = (3, 4, 4) if maps else (3,)
    condition = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    model = randomized(PixelCNN((1, 4, 4), "bernoulli", 8, 1, 3, condition_channels=3), (1, 4, 4), condition)
    sampler = compile_sampler(model, condition_shape=shape, backend="triton")
    check(sampler, 2, condition=condition)
    with torch.no_grad():
        model.first.bias.add_(1.0)
    check(sampler, 2, condition=condition)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 4)])
def test_conditions_of_gated_stacks(shape: tuple[int, ...]) -> None:
    condition = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    model = randomized(Stacks(2, 3, 4), (1, 3, 4), condition)
    check(
        compile_sampler(model, (1, 3, 4), "bernoulli", condition_shape=shape, backend="triton"), 2, condition=condition
    )


def test_half_precision_is_certified() -> None:
    model = randomized(PixelCNN((1, 4, 4), "bernoulli", 8, 1, 3), (1, 4, 4)).half()
    out = compile_sampler(model, backend="triton")(2, verify=True)
    assert out.samples.dtype == torch.float16
    assert out.certificate.ok


def test_a_smaller_skew_or_ring_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomized(PixelCNN((1, 4, 5), "bernoulli", 8, 1, 3), (1, 4, 5))

    def wrong() -> int:
        try:
            return compile_sampler(model, backend="triton")(4, verify=True).certificate.unexplained
        except CertificateError as error:
            return error.certificate.unexplained
        except ValueError:  # not finite: a cell that was never written
            return 1

    assert wrong() == 0
    right = PlainNet.skew
    with monkeypatch.context() as patch:
        patch.setattr(PlainNet, "skew", property(lambda net: right.fget(net) - 1))
        assert wrong() > 0
    pack = PlainNet.pack
    with monkeypatch.context() as patch:

        def short(net: PlainNet, *args: object) -> launch.PlainStack:
            packed = pack(net, *args)
            return type(packed)(**{**vars(packed), "ring_length": packed.ring_length - 1})

        patch.setattr(PlainNet, "pack", short)
        assert wrong() > 0


def test_a_smaller_lead_of_the_vertical_stack_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomized(Stacks(2, 3), (1, 4, 3))
    right = GatedNet.schedule.func
    late = property(lambda net: Schedule(right(net).skew - 1, right(net).lead + 1, right(net).lead_step))
    monkeypatch.setattr(GatedNet, "schedule", late)
    with pytest.raises((CertificateError, ValueError)):
        compile_sampler(model, (1, 4, 3), "bernoulli", backend="triton")(4, verify=True)
