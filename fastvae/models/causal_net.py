"""What the autoregressive models of images share: parameters of every value given the earlier ones and a condition."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastvae.distributions import Autoregressive, Likelihood, as_likelihood

from .parts import check_event_shape, check_images, check_positive

__all__ = ["CausalNet"]


class CausalNet(nn.Module):
    """Base of the autoregressive models: shapes, condition, log-probability, config.

    Subclasses end in ``self.last``, a layer with the family's number of maps, and define ``forward(x, condition)``.
    """

    last: nn.Conv2d

    def __init__(
        self,
        event_shape: Sequence[int],
        likelihood: Likelihood | str | dict[str, Any],
        channels: int,
        num_blocks: int,
        first_kernel_size: int,
        kernel_size: int,
        condition_channels: int,
    ) -> None:
        super().__init__()
        self.event_shape = check_event_shape(event_shape)
        check_positive(channels=channels, num_blocks=num_blocks)
        for name, size in (("first_kernel_size", first_kernel_size), ("kernel_size", kernel_size)):
            check_positive(**{name: size})
            if size % 2 == 0:
                raise ValueError(f"{name} must be odd, got {size}: an even kernel has no centre")
        if condition_channels < 0:
            raise ValueError(f"condition_channels must not be negative, got {condition_channels}")
        self.family = as_likelihood(likelihood)
        self.options: dict[str, Any] = {
            "channels": channels,
            "num_blocks": num_blocks,
            "first_kernel_size": first_kernel_size,
            "kernel_size": kernel_size,
            "condition_channels": condition_channels,
        }
        maps = (condition_channels, *self.event_shape[1:])
        self.condition_shape = maps if condition_channels else None  # of one image, for the sampler

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p(x | condition) in nats, exact: ``x`` (N, C, H, W) -> (N,)."""
        x, condition = self._check(x, condition)
        return Autoregressive(self, self.family, condition, self.event_shape).log_prob(x)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {"event_shape": list(self.event_shape), "likelihood": self.family.config(), **self.options}

    def _check(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = check_images(x, self.event_shape, self.last.weight)
        size = self.options["condition_channels"]
        if (condition is None) != (size == 0):
            got = "none" if condition is None else f"one of shape {tuple(condition.shape)}"
            raise ValueError(
                f"this net takes {f'a condition with {size} channels' if size else 'no condition'}, got {got}"
            )
        if condition is None:
            return x, None
        if condition.ndim == 2:
            condition = condition[:, :, None, None]
        maps = ((1, 1), self.event_shape[1:])
        if condition.ndim != 4 or condition.shape[:2] != (x.shape[0], size) or tuple(condition.shape[2:]) not in maps:
            expected = f"({x.shape[0]}, {size}), ({x.shape[0]}, {size}, 1, 1) or ({x.shape[0]}, {size}, *{maps[1]})"
            raise ValueError(f"condition must have shape {expected}, got {tuple(condition.shape)}")
        return x, condition
