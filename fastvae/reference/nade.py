"""The definition of NADE: a loop over the dimensions that keeps one running pre-activation."""

import torch
from torch import Tensor

__all__ = ["nade_logits", "nade_sample"]


def nade_logits(x: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor) -> Tensor:
    """(B, D) binary data -> (B, D) logits of every value given the ones before it.

    ``weight`` and ``output_weight`` (D, H) have a row for every dimension, ``hidden_bias`` (H,), ``output_bias`` (D,).
    """
    running = hidden_bias.expand(x.shape[0], -1)
    logits = []
    for i in range(x.shape[1]):
        logits.append(output_bias[i] + running.sigmoid() @ output_weight[i])
        running = running + x[:, i, None] * weight[i]
    return torch.stack(logits, 1)


def nade_sample(
    uniform: Tensor, weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor
) -> Tensor:
    """(B, D) uniform numbers -> (B, D) values, one where a number is below the probability of a one."""
    running = hidden_bias.expand(uniform.shape[0], -1)
    values = []
    for i in range(uniform.shape[1]):
        logit = output_bias[i] + running.sigmoid() @ output_weight[i]
        values.append((uniform[:, i] < logit.sigmoid()).to(uniform.dtype))
        running = running + values[-1][:, None] * weight[i]
    return torch.stack(values, 1)
