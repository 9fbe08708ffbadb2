"""The definitions of a last linear layer with its likelihood: the layer, then the likelihood of what it gives."""

import torch.nn.functional as F
from torch import Tensor

from .bernoulli_log_prob import bernoulli_log_prob

__all__ = ["linear_bernoulli_log_prob"]


def linear_bernoulli_log_prob(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, event_dims: int) -> Tensor:
    """``bernoulli_log_prob`` of the logits ``h @ weight.T + bias``: ``h`` (..., H) -> (...)."""
    logits = F.linear(h, weight, bias).unflatten(-1, x.shape[x.ndim - event_dims :])
    return bernoulli_log_prob(x, logits, event_dims)
