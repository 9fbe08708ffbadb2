"""The definition that every implementation of ``categorical_log_prob`` is checked against."""

import torch
from torch import Tensor

__all__ = ["categorical_log_prob"]


def categorical_log_prob(x: Tensor, logits: Tensor, event_dims: int, levels_dim: int) -> Tensor:
    """Sum over the last ``event_dims`` dimensions of the log-probability of level ``x``, in the dtype of ``logits``.

    ``logits`` have one dimension more than ``x``, the levels, at ``levels_dim`` (negative). Values that are no level
    have probability zero.
    """
    num_levels = logits.shape[levels_dim]
    log_probs = logits.log_softmax(levels_dim).movedim(levels_dim, -1)
    shape = torch.broadcast_shapes(x.shape, log_probs.shape[:-1])
    x = x if x.is_floating_point() else x.long()  # 256 is 0 to a comparison of bytes
    is_level = (x >= 0) & (x < num_levels) & (x == x.long())
    level = torch.where(is_level, x, 0).long().expand(shape)
    chosen = log_probs.expand(*shape, num_levels).gather(-1, level[..., None])[..., 0]
    terms = chosen.masked_fill(~is_level, -torch.inf)
    return terms.flatten(terms.ndim - event_dims).sum(-1)
