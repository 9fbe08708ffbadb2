"""The definition that every implementation of ``bernoulli_log_prob`` is checked against."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["bernoulli_log_prob"]


def bernoulli_log_prob(x: Tensor, logits: Tensor, event_dims: int) -> Tensor:
    """Sum over the last ``event_dims`` dimensions of ``x * logits - softplus(logits)``, in the dtype of ``logits``.

    Written with the sign of the data, ``logsigmoid((2 x - 1) logits)``: for x in {0, 1} it is the same number, and
    nothing cancels or overflows when the logits are large.
    """
    terms = F.logsigmoid((2 * x.to(logits.dtype) - 1) * logits)
    return terms.flatten(terms.ndim - event_dims).sum(-1)
