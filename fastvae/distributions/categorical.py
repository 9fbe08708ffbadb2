"""Categorical likelihood of images with integer levels."""

from typing import Any

import torch
from torch import Tensor

from fastvae import ops

from .likelihood import ImageDistribution, Likelihood, check_finite, check_levels, is_checked

__all__ = ["Categorical", "CategoricalLikelihood"]


class Categorical(ImageDistribution):
    """Independent integer values in 0..L-1 given their logits.

    Args:
        logits: (..., C, L, H, W), unnormalised log-probabilities of the levels.

    Example:
        >>> Categorical(torch.zeros(1, 1, 4, 2, 2)).log_prob(torch.full((1, 1, 2, 2), 3)).exp() * 4**4
        tensor([1.])
    """

    def __init__(self, logits: Tensor) -> None:
        if logits.ndim < 4:
            raise ValueError(f"logits must have shape (..., C, L, H, W), got {tuple(logits.shape)}")
        super().__init__(logits.shape[:-3] + logits.shape[-2:])
        self.logits = logits

    @property
    def num_levels(self) -> int:
        return self.logits.shape[-3]

    @property
    def mean(self) -> Tensor:
        levels = torch.arange(self.num_levels, dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits.softmax(-3) * levels[:, None, None]).sum(-3)

    def log_prob(self, x: Tensor) -> Tensor:
        """``x`` (..., C, H, W) with integer values in 0..L-1, any dtype -> (...) nats."""
        self._check_shape(x)
        if not is_checked():
            check_levels(CategoricalLikelihood.name, x, self.num_levels)
        return self._log_prob(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        return ops.categorical_log_prob(x, self.logits)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Levels, as floating point: what the networks take."""
        check_finite("logits", self.logits)
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            probs = self.logits.softmax(-3).movedim(-3, -1)  # (..., C, H, W, L)
            flat = probs.expand(*shape, self.num_levels).reshape(-1, self.num_levels)
            return torch.multinomial(flat, 1).reshape(shape).to(self.logits.dtype)


class CategoricalLikelihood(Likelihood):
    """Images with ``num_levels`` grey levels (256 for 8 bits): one logit per level and value."""

    name = "categorical"

    def __init__(self, num_levels: int = 256) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {num_levels}")
        self.num_levels: int = num_levels
        self.num_params = num_levels

    def forward(self, params: Tensor) -> Categorical:
        return Categorical(self.split(params))

    def check(self, x: Tensor) -> None:
        check_levels(self.name, x, self.num_levels)

    def marginal_params(self, x: Tensor) -> Tensor:
        counts = torch.stack([(x == level).sum(0) for level in range(self.num_levels)], dim=1)  # (C, L, H, W)
        frequencies = (counts + 1.0 / self.num_levels) / (x.shape[0] + 1.0)
        return frequencies.log().flatten(0, 1)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "num_levels": self.num_levels}

    def extra_repr(self) -> str:
        return f"num_levels={self.num_levels}"
