"""A swapped layer is still the layer it was: copied, saved, moved, hooked, reparametrised, compiled, differentiated."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastvae
from fastvae.acceleration.layer import Accelerated


class OutOfPlace(nn.Conv2d):
    def __init__(self, channels: int = 4, kernel_size: int = 3) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2)
        mask = torch.ones(kernel_size, kernel_size)
        mask[kernel_size // 2, kernel_size // 2 + 1 :] = 0
        mask[kernel_size // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return scale * F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class InPlace(OutOfPlace):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        self.weight.data *= self.mask
        return nn.Conv2d.forward(self, x)


STYLES = pytest.mark.parametrize("style", [OutOfPlace, InPlace])
X = torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pair(style: type[OutOfPlace], **options: Any) -> tuple[Any, Any]:
    """A layer and its accelerated twin, in float64."""
    theirs = style(**options).double()
    ours = copy.deepcopy(theirs)
    assert len(fastvae.accelerate(ours).swapped) == 1
    return theirs, ours


@STYLES
def test_is_the_same_object_of_its_own_class(style: type[OutOfPlace]) -> None:
    layer = style()
    kept = (layer.weight, layer.bias, layer.mask)
    model = nn.Sequential(layer)
    fastvae.accelerate(model)
    assert model[0] is layer
    assert isinstance(layer, style)
    assert all(a is b for a, b in zip(kept, (layer.weight, layer.bias, layer.mask), strict=True))
    fastvae.restore(model)
    assert type(layer) is style


@STYLES
def test_looking_touches_neither_tensors_nor_random_numbers(style: type[OutOfPlace]) -> None:
    layer = style()
    before = [(t, t.detach().clone(), t._version) for t in (*layer.parameters(), *layer.buffers())]
    state = torch.get_rng_state()
    report = fastvae.accelerate(layer, torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert report.swapped
    assert torch.equal(torch.get_rng_state(), state)
    for tensor, value, version in before:
        assert torch.equal(tensor, value)
        assert tensor._version == version
        assert tensor.grad is None
    assert (layer.weight[..., 2, 2] != 0).all()


@STYLES
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_and_files_are_accelerated_and_independent(style: type[OutOfPlace], how: str, fast_calls: list) -> None:
    _, ours = pair(style)
    want = ours(X)
    if how == "deepcopy":
        twin = copy.deepcopy(ours)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(ours))
    else:
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    fast_calls.clear()
    assert torch.equal(twin(X), want)
    assert fast_calls
    assert type(twin) is type(ours)
    with torch.no_grad():
        twin.weight.zero_()
        twin.mask.zero_()
    assert torch.equal(ours(X), want)
    fastvae.restore(twin)
    assert type(twin) is style


@STYLES
def test_follows_a_mask_that_is_loaded_or_edited(style: type[OutOfPlace]) -> None:
    theirs, ours = pair(style)
    ours(X)
    other = theirs.state_dict() | {"mask": theirs.mask.rot90(2)}
    theirs.load_state_dict(other)
    ours.load_state_dict(other)
    torch.testing.assert_close(ours(X), theirs(X))
    for layer in (theirs, ours):
        layer.mask[:, 0] = 0.5  # no mask of zeros and ones any more
    torch.testing.assert_close(ours(X), theirs(X))
    for layer in (theirs, ours):
        layer.mask = torch.zeros_like(layer.mask)
    torch.testing.assert_close(ours(X), theirs(X))
    ours.mask = None
    with pytest.raises(TypeError):
        ours(X)  # as the original does


@STYLES
def test_moves_and_modes_are_the_modules_own(style: type[OutOfPlace], fast_calls: list[str]) -> None:
    theirs, ours = pair(style)
    for change in (lambda m: m.float().eval(), lambda m: m.to(torch.bfloat16).train(), lambda m: m.double()):
        a, b = change(theirs), change(ours)
        x = X.to(a.weight.dtype)
        torch.testing.assert_close(b(x), a(x))
        assert b.training == a.training
    assert len(fast_calls) == 3
    ours.to("meta")
    assert ours(X.to("meta")).shape == X.shape


@STYLES
def test_hooks_keep_running_in_order(style: type[OutOfPlace]) -> None:
    layer, seen = style().double(), []
    layer.register_forward_pre_hook(lambda module, args: seen.append("pre") or (2 * args[0],))
    layer.register_forward_hook(lambda module, args, output: seen.append("post") or output + 1)
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("backward"))
    layer.weight.register_hook(lambda grad: seen.append("weight"))
    x = X.clone().requires_grad_()
    want = layer(x)
    want.sum().backward()
    kept = seen.copy()
    seen.clear()
    assert fastvae.accelerate(layer).swapped
    assert not seen
    got = layer(x)
    got.sum().backward()
    torch.testing.assert_close(got, want)
    assert seen == kept


def test_calls_with_further_arguments_take_the_original_forward(fast_calls: list[str]) -> None:
    theirs, ours = pair(OutOfPlace)
    torch.testing.assert_close(ours(X, 3.0), theirs(X, 3.0))
    torch.testing.assert_close(ours(x=X), theirs(X))
    torch.testing.assert_close(ours(X[0]), theirs(X[0]))
    assert not fast_calls
    torch.testing.assert_close(ours(X), theirs(X))
    assert fast_calls


@pytest.mark.usefixtures("usual_thresholds")
@pytest.mark.parametrize(
    ("style", "channels", "kernel_size", "is_fast"),
    [
        (OutOfPlace, 4, 3, {"training": False, "evaluation": False}),  # small: nothing to gain
        (OutOfPlace, 64, 3, {"training": True, "evaluation": True}),
        (InPlace, 4, 3, {"training": False, "evaluation": False}),
        (InPlace, 64, 3, {"training": False, "evaluation": True}),  # its whole gradient costs what is gained
        (InPlace, 64, 5, {"training": True, "evaluation": True}),
    ],
)
def test_only_what_gains_takes_the_fast_way_on_the_cpu(
    style: type[OutOfPlace], channels: int, kernel_size: int, is_fast: dict[str, bool], fast_calls: list[str]
) -> None:
    _, ours = pair(style, channels=channels, kernel_size=kernel_size)
    x = torch.randn(2, channels, 28, 28, dtype=torch.float64)
    ours(x)
    taken = {"training": bool(fast_calls)}
    fast_calls.clear()
    with torch.no_grad():
        ours(x)
    assert taken | {"evaluation": bool(fast_calls)} == is_fast


def test_a_changed_attribute_brings_the_original_forward_back(fast_calls: list[str]) -> None:
    class Switched(OutOfPlace):
        def __init__(self) -> None:
            super().__init__()
            self.masked = True

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) if self.masked else nn.Conv2d.forward(self, x)

    theirs = Switched().double()
    ours = copy.deepcopy(theirs)
    assert fastvae.accelerate(ours).swapped
    for name, value in (("masked", False), ("masked", True), ("padding", (0, 0))):
        setattr(theirs, name, value)
        setattr(ours, name, value)
        torch.testing.assert_close(ours(X), theirs(X))
    assert len(fast_calls) == 1


@STYLES
def test_all_derivatives_are_the_originals(style: type[OutOfPlace]) -> None:
    theirs, ours = pair(style, channels=2)
    x = X[:, :2].detach().requires_grad_()

    def second(layer: Any) -> list[Tensor]:
        inputs = [x, layer.weight, layer.bias]
        first = torch.autograd.grad(layer(x).pow(3).sum(), inputs, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return [*first, *torch.autograd.grad(penalty, inputs)]

    torch.testing.assert_close(second(ours), second(theirs))
    assert ours.weight.grad is None
    # only what is asked for, also where the weight is frozen
    for layer in (theirs, ours):
        layer.weight.requires_grad_(False)
    (want,), (got,) = (torch.autograd.grad(layer(x).square().sum(), x) for layer in (theirs, ours))
    torch.testing.assert_close(got, want)


def test_gradients_agree_with_finite_differences() -> None:
    _, ours = pair(InPlace, channels=2)
    live = ours.mask.clone()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # where the weight is overwritten a difference at masked taps cannot show: they are held at zero
        return torch.func.functional_call(ours, {"weight": weight * live, "bias": bias, "mask": live}, (x,))

    inputs = [X[:1, :2, :4, :4].clone(), ours.weight.detach().clone(), ours.bias.detach().clone()]
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_transforms_of_torch_func_are_right() -> None:
    theirs, ours = pair(OutOfPlace)
    tangent = torch.randn_like(X)
    for layer in (theirs, ours):
        layer.requires_grad_(False)
    _, want = torch.func.jvp(theirs, (X,), (tangent,))
    _, got = torch.func.jvp(ours, (X,), (tangent,))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.func.vmap(ours)(X[:, None]), theirs(X)[:, None])


@STYLES
def test_autocast_gives_what_the_original_gives(style: type[OutOfPlace]) -> None:
    theirs, ours = pair(style)
    theirs, ours = theirs.float(), ours.float()
    results = []
    for layer in (theirs, ours):
        x = X.float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        results.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, layer.weight, layer.bias])])
    for got, want in zip(results[1], results[0], strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got.float(), want.float(), rtol=3e-2, atol=3e-2 * float(want.float().abs().max()))


@STYLES
def test_an_activation_in_place_may_follow(style: type[OutOfPlace]) -> None:
    theirs, ours = pair(style)
    results = []
    for layer in (theirs, ours):
        y = nn.Sequential(layer, nn.ReLU(inplace=True))(X)
        results.append([y, *torch.autograd.grad(y.square().sum(), [layer.weight, layer.bias])])
    torch.testing.assert_close(results[1], results[0])


@STYLES
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_compiles_without_graph_breaks(style: type[OutOfPlace], backend: str) -> None:
    theirs, ours = pair(style)
    compiled = torch.compile(nn.Sequential(ours, nn.ReLU(inplace=True)), fullgraph=True, backend=backend)
    x = X.clone().requires_grad_()
    got, want = compiled(x), theirs(x).relu()
    torch.testing.assert_close(got, want)
    wanted = torch.autograd.grad(want.square().sum(), [x, theirs.weight, theirs.bias])
    found = torch.autograd.grad(got.square().sum(), [x, ours.weight, ours.bias])
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ours.weight, theirs.weight)  # overwritten or not


@STYLES
def test_compiled_code_follows_a_loaded_mask(style: type[OutOfPlace]) -> None:
    theirs, ours = pair(style)
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), theirs(X))
    for mask in (theirs.mask.rot90(2), torch.full_like(theirs.mask, 0.5)):
        other = theirs.state_dict() | {"mask": mask}
        theirs.load_state_dict(other)
        ours.load_state_dict(other)
        torch.testing.assert_close(compiled(X), theirs(X))


WEIGHT_NORMS = {"old": torch.nn.utils.weight_norm, "new": parametrizations.weight_norm}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", WEIGHT_NORMS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_weight_norm_comes_and_goes_freely(norm: str, when: str, fast_calls: list[str]) -> None:
    torch.manual_seed(0)
    theirs = OutOfPlace().double()
    torch.manual_seed(0)
    ours: Any = OutOfPlace().double()
    remove: dict[str, Callable[[Any], Any]] = {
        "old": torch.nn.utils.remove_weight_norm,
        "new": lambda m: parametrize.remove_parametrizations(m, "weight"),
    }
    WEIGHT_NORMS[norm](theirs)
    if when == "before":
        WEIGHT_NORMS[norm](ours)
    assert fastvae.accelerate(ours).swapped
    if when == "after":
        WEIGHT_NORMS[norm](ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(ours(X), theirs(X))
    fastvae.restore(ours)
    assert not isinstance(ours, Accelerated)
    fast_calls.clear()
    torch.testing.assert_close(ours(X), theirs(X))
    assert not fast_calls
    assert fastvae.accelerate(ours).swapped
    remove[norm](ours)
    torch.testing.assert_close(ours(X), theirs(X))
    assert fast_calls
    fastvae.restore(ours)
    assert type(ours) is OutOfPlace


def test_layers_that_share_a_weight_and_overwrite_it_keep_doing_so() -> None:
    """The second layer sees what the first has overwritten."""
    results = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        first, second = InPlace().double(), InPlace().double()
        second.mask[1, 1] = 0
        second.weight = first.weight
        model = nn.Sequential(first, second)
        if accelerated:
            assert len(fastvae.accelerate(model, X).swapped) == 2
        results.append([model(X), model(X), first.weight.detach().clone()])
    torch.testing.assert_close(results[1], results[0])


def test_one_layer_at_two_paths_is_swapped_once() -> None:
    layer = OutOfPlace()
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    report = fastvae.accelerate(model)
    assert [(entry.path, entry.also_at) for entry in report.swapped] == [("a", ("b.0",))]
    assert model["a"] is model["b"][0]
    assert fastvae.restore(model) == ["a"]


def test_accelerating_twice_changes_nothing() -> None:
    model = nn.Sequential(InPlace())
    first, second = fastvae.accelerate(model), fastvae.accelerate(model)
    assert (len(first.swapped), len(second.swapped)) == (1, 0)
    assert second.skipped[0].reason == "accelerated already"
    second.restore()  # restores what it swapped: nothing
    assert isinstance(model[0], Accelerated)
    first.restore()
    assert type(model[0]) is InPlace
    first.restore()


def test_a_class_put_on_top_by_other_code_has_to_go_first() -> None:
    layer = OutOfPlace()
    fastvae.accelerate(layer)
    layer.__class__ = type("Wrapped", (type(layer),), {})
    with pytest.raises(RuntimeError, match="Wrapped was made from the accelerated AcceleratedOutOfPlace by other code"):
        fastvae.restore(layer)


def test_samplers_are_compiled_from_accelerated_networks() -> None:
    model = nn.Sequential(OutOfPlace(1), nn.ReLU(), OutOfPlace(1)).eval()
    model[0].mask[1, 1] = 0
    want = fastvae.compile_sampler(model, event_shape=(1, 5, 5), likelihood="bernoulli")(4, seed=0).samples
    assert len(fastvae.accelerate(model).swapped) == 2
    got = fastvae.compile_sampler(model, event_shape=(1, 5, 5), likelihood="bernoulli")(4, seed=0, verify=True)
    assert torch.equal(got.samples, want)
