"""The plan: skews are those of the dependencies, no schedule is shorter, and what is not causal is named."""

import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import STYLES, Gated, MaskedWeight, plain, randomized
from torch import Tensor, nn

from fastvae import compile_sampler
from fastvae.sampling import Plan, UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def dependencies(model: nn.Module, rows: int, columns: int) -> Tensor:
    """(pixels, pixels) bool: parameter of a pixel depends on the value of a pixel, by gradients in float64."""
    x = torch.rand(1, 1, rows, columns, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(1), x)
    return jacobian.reshape(rows * columns, rows * columns) != 0


def longest_chain(depends: Tensor) -> int:
    """The number of pixels on the longest chain of dependencies: the fewest serial steps of any schedule."""
    length = torch.zeros(depends.shape[0], dtype=torch.long)
    for pixel in range(depends.shape[0]):  # raster order is topological
        length[pixel] = 1 + (length[depends[pixel]].max() if depends[pixel].any() else 0)
    return int(length.max())


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize(("first", "later", "skew"), [(3, 3, 2), (5, 3, 3), (7, 3, 4), (3, 5, 2), (3, 7, 3), (5, 5, 3)])
def test_skew_of_plain_stacks_does_not_depend_on_their_depth(first: int, later: int, skew: int, layers: int) -> None:
    plan = compile_sampler(plain(first=first, later=later, layers=layers), (1, 28, 28), "bernoulli").plan
    assert plan.skew == (skew if layers > 1 else first // 2 + 1)
    assert plan.num_steps == 28 + plan.skew * 27


@pytest.mark.parametrize(
    ("first", "size", "steps", "most"),
    [(3, 28, 82, 14), (5, 28, 109, 10), (7, 28, 136, 7), (3, 32, 94, 16), (5, 32, 125, 11), (7, 32, 156, 8)],
)
def test_steps_and_pixels_per_step_of_common_nets(first: int, size: int, steps: int, most: int) -> None:
    plan = compile_sampler(plain(first=first), (1, size, size), "bernoulli").plan
    assert (plan.num_steps, plan.most_pixels) == (steps, most)


@pytest.mark.parametrize("shape", [(6, 7), (4, 9), (8, 3)], ids=str)
@pytest.mark.parametrize("first", [3, 5, 7])
def test_no_schedule_of_a_plain_stack_is_shorter(first: int, shape: tuple[int, int]) -> None:
    # every activation is smooth: a dead ReLU would hide a dependency
    model = nn.Sequential(
        MaskedWeight("A", 1, 6, first, padding=first // 2), nn.Tanh(), MaskedWeight("B", 6, 6, 3, padding=1), nn.Tanh(),
        MaskedWeight("B", 6, 1, 3, padding=1),
    )  # fmt: skip
    plan = compile_sampler(randomized(model), (1, *shape), "bernoulli", schedule="wavefront").plan
    chain = longest_chain(dependencies(model, *shape))
    if shape[1] >= plan.skew:  # else some diagonals of the skewed image are empty
        assert plan.num_steps == chain
    assert int((plan.bounds[plan.pixels] > torch.tensor([0, *plan.bounds[plan.pixels][:-1]]).numpy()).sum()) == chain


@pytest.mark.parametrize("style", STYLES)
def test_the_draw_of_a_pixel_comes_after_all_it_depends_on(style: str) -> None:
    model = randomized(STYLES[style](6, 7))
    plan = compile_sampler(model, (1, 6, 7), "bernoulli", schedule="wavefront").plan
    pixel = torch.arange(42)
    step = pixel % 7 + plan.skew * (pixel // 7)
    depends = dependencies(model, 6, 7)
    assert depends.any()
    assert (step[:, None] > step[None, :])[depends].all()


def test_skews_of_gated_layouts() -> None:
    rows_above = compile_sampler(Gated(layers=4), (1, 16, 16), "bernoulli").plan
    assert rows_above.skew == 2  # kernels of two rows above and one column to each side, whatever the depth
    for layers in (2, 4):
        plan = compile_sampler(CurrentRow(layers), (1, 24, 24), "bernoulli", schedule="wavefront").plan
        assert plan.skew == 3 + (layers - 1) * 1 + 1  # 7x7 first: the reach of the vertical stack grows with depth


class CurrentRow(nn.Module):
    """The vertical stack includes the current row and is shifted down at the link."""

    def __init__(self, layers: int, width: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, (4, 7), padding=(3, 3))
        self.later = nn.ModuleList(nn.Conv2d(width, width, (2, 3), padding=(1, 1)) for _ in range(layers - 1))
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)[:, :, : x.shape[2]]
        for conv in self.later:
            h = conv(F.relu(h))[:, :, : x.shape[2]]
        return self.last(F.pad(h, (0, 0, 1, 0))[:, :, :-1])


def test_a_reach_wider_than_the_image_is_planned() -> None:
    sampler = compile_sampler(randomized(CurrentRow(4), gain=2.0), (1, 4, 3), "bernoulli", schedule="wavefront")
    assert sampler.plan.skew == 6  # five columns to the right in the row above, of which at most two exist
    out = sampler(20, verify=True)
    assert out.certificate.mismatches == 0
    assert torch.equal(out.samples, sampler.naive(20).samples)


def calls_of_convolutions(plan: Plan, kernel: tuple[int, int]) -> set[int]:
    return {plan.calls[op] for op in plan.linear if tuple(op.node.args[1].meta["val"].shape[2:]) == kernel}


def test_what_reads_finished_rows_is_computed_a_row_at_once() -> None:
    for model in (CurrentRow(5), Gated(layers=4)):
        plan = compile_sampler(randomized(model), (1, 8, 9), "bernoulli", schedule="row").plan
        assert (plan.name, plan.num_steps, plan.most_pixels) == ("row", 72, 1)
        assert max(calls_of_convolutions(plan, (2, 3))) <= 2 * 8  # of the vertical stack: most once for each row
        if isinstance(model, Gated):
            assert min(calls_of_convolutions(plan, (1, 2))) >= 64  # pixel by pixel


def test_the_cheaper_schedule_is_chosen() -> None:
    deep = compile_sampler(CurrentRow(12), (1, 16, 16), "bernoulli")
    assert deep.plan.name == "row"  # the wavefront takes most of the steps, and all of the vertical stack in each
    assert deep.plan.cost(1) < compile_sampler(deep.model, (1, 16, 16), "bernoulli", schedule="wavefront").plan.cost(1)
    assert compile_sampler(plain(), (1, 16, 16), "bernoulli").plan.name == "wavefront"
    assert "row by row" in str(deep.plan)
    assert "for 1 image" in deep.plan.reason


def test_a_plan_prints_what_it_does() -> None:
    plan = compile_sampler(plain(), (1, 28, 28), "bernoulli").plan
    for part in ("28 x 28", "136 instead of 784", "7 in one step", "MFLOP per image", "KiB per image"):
        assert part in str(plan)


def test_work_is_that_of_the_live_taps_once_per_pixel() -> None:
    plan = compile_sampler(plain(width=8, first=7, later=3), (1, 10, 10), "bernoulli").plan
    assert plan.macs <= 100 * (24 * 8 + 5 * 8 * 8 + 8)
    assert plan.naive_macs == 100 * 100 * (49 * 8 + 9 * 8 * 8 + 8)
    assert plan.macs > 0.9 * 100 * (24 * 8 + 5 * 8 * 8 + 8)  # taps that no pixel can use are dropped


def test_taps_outside_a_narrow_image_are_dropped() -> None:
    plan = compile_sampler(plain(first=7), (1, 1, 9), "bernoulli").plan
    assert plan.num_steps == 9
    assert plan.macs == 9 * (3 * 8 + 2 * 8 * 8 + 8)


@pytest.mark.parametrize(
    ("model", "pixel", "module"),
    [
        (nn.Sequential(MaskedWeight("B", 1, 4, 3, padding=1), nn.Conv2d(4, 1, 1)), r"\(i\+0, j\+0\)", "'0'"),
        (nn.Sequential(MaskedWeight("A", 1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)), r"\(i\+1, j", "'1'"),
        (nn.Conv2d(1, 1, (1, 3), padding=(0, 1)), r"\(i\+0, j\+1\)", "convolution"),
    ],
)
def test_a_leak_is_named(model: nn.Module, pixel: str, module: str) -> None:
    with pytest.raises(UnsupportedModelError, match=pixel) as error:
        compile_sampler(model, (1, 6, 6), "bernoulli")
    assert module in str(error.value)
    assert "not causal" in str(error.value)


def test_a_result_with_rows_and_columns_exchanged_is_refused() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = MaskedWeight("A", 1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).transpose(2, 3)

    with pytest.raises(UnsupportedModelError, match="something else than"):
        compile_sampler(Transposed(), (1, 6, 6), "bernoulli")


def test_an_unmasked_first_layer_is_causal_where_its_future_taps_are_zero() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    with torch.no_grad():
        conv.weight[0, 0, 1, 1:] = 0
        conv.weight[0, 0, 2] = 0
    assert compile_sampler(conv, (1, 6, 6), "bernoulli").plan.skew == 2
