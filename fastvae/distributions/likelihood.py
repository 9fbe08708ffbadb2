"""What every likelihood of images shares: the distribution over an image and the family that builds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = [
    "ImageDistribution",
    "Likelihood",
    "check_finite",
    "check_levels",
    "check_tensor",
    "checked_data",
    "support_error",
]

_data_is_checked: ContextVar[bool] = ContextVar("fastvae_data_is_checked", default=False)


@contextmanager
def checked_data() -> Iterator[None]:
    """Inside this context ``log_prob`` takes the values of x as checked: on CUDA every check waits for the device."""
    token = _data_is_checked.set(True)
    try:
        yield
    finally:
        _data_is_checked.reset(token)


class ImageDistribution(Distribution):
    """A distribution over images: batch (...), event (C, H, W); ``log_prob`` in nats per image.

    Args:
        shape: of the parameters, (..., C, H, W).
        event_dims: how many last dimensions are the event, where it is another than that of images.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, shape: torch.Size, event_dims: int = 3) -> None:
        if len(shape) < event_dims:
            want = "(..., C, H, W)" if event_dims == 3 else f"with at least event_dims={event_dims} dimensions"
            raise ValueError(f"parameters must have shape {want}, got {tuple(shape)}")
        super().__init__(shape[:-event_dims], shape[-event_dims:], validate_args=False)

    def _log_prob(self, x: Tensor) -> Tensor:
        """Nats of data that :meth:`log_prob` has checked."""
        raise NotImplementedError(f"{type(self).__name__} does not define its density")

    def _check_shape(self, x: Tensor) -> None:
        check_tensor("x", x)
        split = max(x.ndim - len(self.event_shape), 0)
        lead = x.shape[:split]
        fits = x.shape[split:] == self.event_shape
        # the usual case is told apart at once: torch.broadcast_shapes costs as much as a small layer
        if fits and lead != self.batch_shape[len(self.batch_shape) - len(lead) :]:
            try:
                torch.broadcast_shapes(lead, self.batch_shape)
            except RuntimeError:
                fits = False
        if not fits:
            raise ValueError(
                f"x must have shape (..., {', '.join(map(str, self.event_shape))}) whose leading part broadcasts with "
                f"{tuple(self.batch_shape)}, got {tuple(x.shape)}"
            )


class Likelihood(nn.Module):
    """A family p(x | parameters) of images: how many parameters a value takes, and the distribution they give.

    A network ends in ``num_maps`` channels; calling the family on them gives the distribution.
    """

    name: str
    num_params: int  # per value of the image
    num_levels: int | None  # None: continuous data

    def forward(self, params: Tensor) -> ImageDistribution:
        """``params`` (..., num_maps(C), H, W) -> distribution with batch (...) and event (C, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} does not define the distribution of its parameters")

    def num_maps(self, channels: int) -> int:
        """How many channels of parameters images with ``channels`` channels take: ``num_params`` for each."""
        return channels * self.num_params

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` if ``x`` holds values outside the support."""

    def scale(self, x: Tensor) -> Tensor:
        """Data as network input: floating point, the support mapped to [-1, 1]."""
        top = 1.0 if self.num_levels is None else self.num_levels - 1.0
        return x.to(torch.get_default_dtype() if not x.is_floating_point() else x.dtype) * (2.0 / top) - 1.0

    def marginal_params(self, x: Tensor) -> Tensor:
        """Parameters (num_maps(C), H, W) of the pixel-wise marginals of ``x`` (N, C, H, W), slightly smoothed."""
        raise NotImplementedError(f"{type(self).__name__} does not define its marginals")

    def config(self) -> dict[str, Any]:
        """What :func:`fastvae.distributions.likelihood` needs to build this family again."""
        return {"name": self.name}

    def split(self, params: Tensor) -> Tensor:
        """(..., C * num_params, H, W) -> (..., C, num_params, H, W)."""
        channels = params.shape[-3]
        if channels % self.num_params:
            raise ValueError(
                f"params must have a multiple of {self.num_params} channels for {self.name}, got {channels}"
            )
        return params.unflatten(-3, (channels // self.num_params, self.num_params))


def check_tensor(name: str, values: Any) -> None:
    """Raise ``TypeError`` for what is no tensor."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")


def support_error(name: str, x: Tensor, valid: Tensor, expected: str, fix: str) -> None:
    """Raise ``ValueError`` with an example of what is outside the support; one read of the device."""
    if not bool(valid.all()):
        example = x[~valid].flatten()[0].item()
        raise ValueError(f"x must be {expected} for a {name} likelihood, got values such as {example:g}; {fix}")


def check_levels(name: str, x: Tensor, num_levels: int) -> None:
    """Raise ``ValueError`` if ``x`` holds other values than the integers 0..L-1."""
    values = x if x.is_floating_point() else x.long()  # 256 is 0 to a comparison of bytes
    valid = (values >= 0) & (values < num_levels)
    if x.is_floating_point():
        valid &= x == x.floor()
    fix = "pass integer levels and set num_levels to their number; do not divide by 255"
    support_error(name, x, valid, f"an integer in 0..{num_levels - 1}", fix)


def check_finite(name: str, params: Tensor) -> None:
    """Raise ``ValueError`` if parameters to sample from are not numbers."""
    if not bool(torch.isfinite(params).all()):
        raise ValueError(f"{name} must be finite, got nan or infinity: check the model's weights and its input")


def is_checked() -> bool:
    """Whether :func:`checked_data` is in force."""
    return _data_is_checked.get()
