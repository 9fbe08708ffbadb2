"""Bad input to the last layers with a likelihood: an error that names the argument, at once."""

from collections.abc import Callable

import pytest
import torch

from fastvae.distributions import ConvBernoulli, LinearBernoulli, LinearGaussian

EVENT = (1, 2, 3)
HEAD, H, X = LinearBernoulli(4, EVENT), torch.zeros(5, 4), torch.zeros(5, *EVENT)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LinearBernoulli(4, 64), TypeError, r"event_shape must be three positive integers \(C, H, W\), got 64"),
        (lambda: LinearBernoulli(4, (1, 8.0, 8)), TypeError, r"event_shape must be .*, got \(1, 8.0, 8\)"),
        (lambda: LinearGaussian(4, EVENT, scale=None), TypeError, "scale must be 'shared', 'pixel' or .*, got None"),
        (lambda: LinearGaussian(4, EVENT, scale=torch.inf), ValueError, "scale must be positive and finite, got inf"),
        (lambda: HEAD([1.0]), TypeError, "h must be a tensor, got list"),
        (lambda: HEAD(H.double()), TypeError, "h must have the dtype of the layer, torch.float32, got torch.float64"),
        (lambda: HEAD(H[:, :3]), ValueError, r"h must have shape \(..., 4\), got \(5, 3\)"),
        (lambda: HEAD(H.to("meta")), ValueError, "h must be on the device of the layer, cpu, got meta"),
        (lambda: HEAD(H).log_prob([1.0]), TypeError, "x must be a tensor, got list"),
        (lambda: HEAD(H).log_prob(X.to("meta")), ValueError, "x must be on the device of the layer, cpu, got meta"),
        (lambda: ConvBernoulli(4, 1)([1.0]), TypeError, "h must be a tensor, got list"),
        (lambda: ConvBernoulli(4, 1)(torch.zeros(4, 2, 2).double()), TypeError, "h must have the dtype of the layer"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
