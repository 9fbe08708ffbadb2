"""Run a plan as one launch of a persistent kernel, where a kernel computes the net."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from .draw import Bernoulli, Categorical, Draw, Gaussian
from .gated_stack import GatedNet, match_gated
from .patterns import MismatchError
from .plain_stack import PlainNet, match_plain
from .plan import Plan
from .request import Request

__all__ = ["Net", "Persistent", "match", "why_not_drawn"]

Net = PlainNet | GatedNet
_MOST_PARAMS = 256  # parameters of a pixel, channels and parameters up to a power of two


def match(plan: Plan) -> Net:
    """The form of a net that a kernel computes.

    Raises:
        MismatchError: with the reason, if there is none.
    """
    if plan.name == "levels" or len(plan.groups) > 1:
        raise MismatchError("the kernels walk over whole pixels in raster order")
    reasons: list[str] = []
    for matcher in (match_plain, match_gated):
        try:
            net = matcher(plan)
        except MismatchError as error:
            reasons.append(f"it {error}")
            continue
        _check_size(net)
        return net
    raise MismatchError("; ".join(reasons))


def why_not_drawn(draw: Draw) -> str | None:
    """Why the kernels cannot draw from this likelihood."""
    if type(draw) not in (Bernoulli, Categorical, Gaussian):
        return f"the kernels draw from Bernoulli, categorical and Gaussian likelihoods, not from {draw.name!r}"
    return None


class Persistent:
    """A plan for one batch size, drawn by one launch.

    Args:
        net: what :func:`match` found.
        batch: images drawn at once.
        draw: the likelihood.
        values: of all nodes that constants and weights need.
    """

    def __init__(self, net: Net, batch: int, draw: Draw, values: dict[fx.Node, Tensor]) -> None:
        self.net, self.batch, self.draw = net, batch, draw
        self.refresh(values)

    def refresh(self, values: dict[fx.Node, Tensor]) -> None:
        """Take the present weights and condition."""
        with torch.no_grad():
            self._packed = self.net.pack(values, self.batch, self.draw)

    def sample(self, request: Request, on_rows: Callable[[int, Tensor], None] | None = None) -> None:
        """Draw all images of a request that observes nothing, at temperature 1."""
        from fastvae_kernels import persistent_launch as kernels

        if request.address is None:
            noise = kernels.Noise(given=request.uniform.to(torch.float32).contiguous())
        else:
            noise = kernels.Noise(*request.address)
        run = kernels.sample_plain if isinstance(self.net, PlainNet) else kernels.sample_gated
        self._images, self._log_prob = run(self._packed, geometry(self.net), self.batch, noise)

    def images(self) -> Tensor:
        """The values drawn, (B, C, H, W)."""
        return self._images

    def log_prob(self) -> Tensor:
        """Nats of each image under the conditionals it was drawn from, (B,)."""
        return self._log_prob.float()


def geometry(net: Net) -> Any:
    """The schedule as the kernels take it."""
    from fastvae_kernels.persistent_launch import Geometry

    return Geometry(net.plan.pixels.features[0], net.plan.height, net.plan.width, net.skew)


def _check_size(net: Net) -> None:
    from fastvae_kernels.persistent_config import why_not
    from fastvae_kernels.persistent_launch import num_slots

    reason = why_not(net.kernel, net.plan.pixels.dtype, net.channels, num_slots(geometry(net)))
    if reason is not None:
        raise MismatchError(reason)
    outputs = max(16, 1 << (net.last.width - 1).bit_length())
    if outputs > _MOST_PARAMS:
        raise MismatchError(f"the kernels hold up to {_MOST_PARAMS} parameters of a pixel, the net gives {outputs}")
