"""Bijections of vectors, noise to data, each way with its log-determinant."""

from typing import Any

from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform
from torch.distributions.utils import _sum_rightmost

__all__ = ["VectorTransform", "bounded", "check_transform", "to_data", "to_noise"]

_LARGEST_LOG_SCALE = 5.0  # of one step of a flow


class VectorTransform(Transform):
    """A bijection of (..., d), one of ``torch.distributions.transforms``: calling it goes from noise to data.

    Subclasses give both ways together with their log-determinants, which mostly come from the same work; values and
    determinants alone follow, so ``TransformedDistribution`` and ``ComposeTransform`` of torch take it too.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def to_data(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``noise`` (..., d) -> data (..., d) and log |det d data / d noise| (...)."""
        raise NotImplementedError(f"{type(self).__name__} does not define to_data")

    def to_noise(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """``data`` (..., d) -> noise (..., d) and log |det d noise / d data| (...)."""
        raise NotImplementedError(f"{type(self).__name__} does not define to_noise")

    def _call(self, x: Tensor) -> Tensor:
        return self.to_data(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.to_noise(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.to_data(x)[1]


def to_data(transform: Transform, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Any transform of torch, zuko or ours: the value, and the log-determinant of vectors (...)."""
    if isinstance(transform, VectorTransform):
        return transform.to_data(noise)
    if hasattr(transform, "call_and_ladj"):  # zuko's way to get both at once
        data, log_det = transform.call_and_ladj(noise)
    else:
        data = transform(noise)
        log_det = transform.log_abs_det_jacobian(noise, data)
    return data, _sum_rightmost(log_det, 1 - transform.domain.event_dim)


def to_noise(transform: Transform, data: Tensor) -> tuple[Tensor, Tensor]:
    """The other way of :func:`to_data`, with its own log-determinant."""
    if isinstance(transform, VectorTransform):
        return transform.to_noise(data)
    noise = transform.inv(data)
    log_det = transform.log_abs_det_jacobian(noise, data)
    return noise, -_sum_rightmost(log_det, 1 - transform.domain.event_dim)


def bounded(log_scale: Tensor) -> Tensor:
    """Softly within (-5, 5): an outlier, or one bad step of an optimiser, must not end in infinity."""
    return log_scale / (1.0 + log_scale.abs() / _LARGEST_LOG_SCALE)


def check_transform(transform: Any) -> None:
    """Raise unless it is a bijection of vectors or of their values."""
    if not isinstance(transform, Transform):
        raise TypeError(
            f"transforms must be torch.distributions transforms, got {type(transform).__name__}; a layer with weights "
            "gives one when it is called: layer(context)"
        )
    if max(transform.domain.event_dim, transform.codomain.event_dim) > 1:
        raise ValueError(f"transforms must act on vectors (..., d) or on single values, got {transform}")
