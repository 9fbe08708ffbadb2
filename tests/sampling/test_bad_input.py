"""Bad input: a clear error that names the argument or the line of the model."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks_in_the_wild import BatchNormed, MaskedWeight, plain
from torch import Tensor, nn

from fastvae import compile_sampler
from fastvae.sampling import UnsupportedModelError


def sampler_of(model: nn.Module | None = None, **options: Any):
    return compile_sampler(model or plain(first=3), (1, 5, 5), "bernoulli", **options)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"model": lambda x: x}, TypeError, "model must be a torch.nn.Module, got function"),
        ({"event_shape": None}, ValueError, "event_shape is missing"),
        ({"event_shape": (5, 5)}, ValueError, r"event_shape must be \(C, H, W\)"),
        ({"event_shape": (1, 0, 5)}, ValueError, "positive"),
        ({"event_shape": 28}, TypeError, "event_shape must be a sequence of integers, got 28"),
        ({"event_shape": (1, 5.5, 5)}, TypeError, r"event_shape must be a sequence of integers, got \(1, 5.5, 5\)"),
        ({"condition_shape": 3}, TypeError, "condition_shape must be a sequence of integers, got 3"),
        ({"example_condition": [1.0]}, TypeError, "example_condition must be a torch.Tensor, got list"),
        ({"likelihood": None}, ValueError, "likelihood is missing"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be 'bernoulli'"),
        ({"likelihood": "gaussian"}, ValueError, r"takes 2 parameter\(s\) per value, but the model gives 1"),
        ({"likelihood": "categorical"}, ValueError, "at least two logits"),
        ({"fallback": "slow"}, ValueError, "fallback must be None or 'naive', got 'slow'"),
        ({"schedule": "column"}, ValueError, "schedule must be 'auto', 'wavefront', 'row' or 'levels', got 'column'"),
        ({"condition_shape": (2,), "example_condition": torch.zeros(3, 2)}, ValueError, "not both"),
    ],
)
def test_compile_sampler_names_the_argument(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    given = {"model": plain(first=3), "event_shape": (1, 5, 5), "likelihood": "bernoulli", **arguments}
    with pytest.raises(error, match=says):
        compile_sampler(**given)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ({"num_samples": 2.5}, TypeError, "num_samples must be an integer, got 2.5"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"first_id": -1}, ValueError, "first_id must be in"),
        ({"first_id": 2**32 - 2}, ValueError, "first_id must be in"),
        ({"first_id": "0"}, TypeError, "first_id must be an integer, got '0'"),
        ({"noise": np.full((3, 1, 5, 5), 0.5)}, TypeError, "noise must be a torch.Tensor, got ndarray"),
        ({"noise": torch.rand(2, 1, 5, 5)}, ValueError, r"noise must have shape \(3, 1, 5, 5\), got \(2, 1, 5, 5\)"),
        ({"noise": torch.zeros(3, 1, 5, 5)}, ValueError, "open interval"),
    ],
)
def test_a_call_names_the_argument(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        sampler_of()(**{"num_samples": 3, **arguments})


def test_images_to_decode_need_the_right_shape() -> None:
    with pytest.raises(ValueError, match="images must have shape"):
        sampler_of().decode(torch.zeros(2, 1, 4, 5))
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor, got list"):
        sampler_of().decode([[0.0]])


def test_the_number_of_pixels_to_draw_is_checked() -> None:
    for wrong in (0, 26):
        with pytest.raises(ValueError, match=rf"num_pixels must be in \[1, 26\), got {wrong}"):
            sampler_of().naive(2, num_pixels=wrong)


def test_the_last_ids_can_be_drawn() -> None:
    assert sampler_of()(2, first_id=2**32 - 2, seed=2**64 - 1).samples.shape == (2, 1, 5, 5)


def test_a_latent_variable_model_is_told_where_its_samples_come_from() -> None:
    model = nn.Module()  # like fastvae's VAE: parts, but no forward
    with pytest.raises(TypeError, match=r"Module has no forward; .*model.likelihood\(model.prior\(\)"):
        compile_sampler(model, (1, 5, 5), "bernoulli")


def test_a_missing_condition_shape_is_named() -> None:
    with pytest.raises(TypeError, match=r"model\(x\) failed.*needs condition_shape"):
        sampler_of(nn.Bilinear(5, 5, 5))
    with pytest.raises(TypeError, match=r"model\(x, condition\) failed"):
        sampler_of(condition_shape=(2,))


def test_a_result_that_is_not_one_tensor_is_an_error() -> None:
    with pytest.raises(UnsupportedModelError, match=r"must return one tensor of parameters.*got tuple"):
        sampler_of(Custom(lambda h: h, lambda h: (h, h)))


def test_a_result_of_the_wrong_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="the model must give"):
        sampler_of(nn.Conv2d(1, 1, 2))


def test_not_a_number_is_an_error_and_not_an_image() -> None:
    model = plain(first=3)
    sampler = sampler_of(model)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not all finite"):
        sampler(2)


def test_batch_statistics_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'net.1' \(BatchNorm2d\) normalises by the statistics"):
        sampler_of(BatchNormed().train())


def test_dropout_in_training_mode_is_named() -> None:
    model = nn.Sequential(MaskedWeight("A", 1, 1, 3, padding=1), nn.Dropout(0.5)).train()
    with pytest.raises(UnsupportedModelError, match=r"module '1'.*call model.eval\(\)"):
        sampler_of(model)
    assert sampler_of(model.eval())(2, verify=True).certificate.ok


class Custom(nn.Module):
    """A causal layer, then one line that is to be refused."""

    def __init__(self, body: Any, end: Any = lambda h: h) -> None:
        super().__init__()
        self.end = end
        self.body, self.first = body, MaskedWeight("A", 1, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(self.body(self.first(x))))


REFUSED = {
    "mean over pixels": (lambda h: h - h.mean((2, 3), keepdim=True), "every pixel would depend on all pixels"),
    "mean over images": (lambda h: h - h.mean(0, keepdim=True), "every pixel would depend on all pixels"),
    "group norm": (lambda h: F.group_norm(h, 2), "outside the vocabulary"),
    "uneven strides": (lambda h: F.interpolate(h[:, :, ::2, ::2], (5, 5)), "by a whole number"),
    "pooling": (lambda h: F.max_pool2d(h, 3, 1, 1), "outside the vocabulary"),
    "transposition": (lambda h: h + h.transpose(2, 3), "mixes pixels"),
    "one row for all": (lambda h: h + h[:, :, :1], "mixes pixels"),
    "sorting": (lambda h: h.sort(1).values, "outside the vocabulary"),
    "a row as a layer": (lambda h: F.linear(h, torch.eye(5)), "multiplies a matrix"),
    "a view across pixels": (lambda h: h.reshape(-1, 4, 25).flip(2).reshape(h.shape), "outside the vocabulary"),
    "an if on values": (lambda h: h if h.sum() > 0 else -h, "looks at values of a tensor in Python"),
    "noise": (lambda h: h + torch.randn_like(h), "draws random numbers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_planned_is_named_with_its_line(what: str) -> None:
    body, says = REFUSED[what]
    with pytest.raises(UnsupportedModelError, match=says) as error:
        sampler_of(Custom(body))
    assert "test_bad_input.py" in str(error.value)
    assert "self.end(self.last(self.body(self.first(x))))" in str(error.value) or "an if on values" in str(error.value)
