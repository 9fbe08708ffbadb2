"""Linear layers of float32 on the CPU through oneDNN, with the activation applied while results are in registers."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FEWEST_ROWS", "has_fused_linear", "linear"]

FEWEST_ROWS = 32  # below, reordering the weights for oneDNN costs more than it saves


def has_fused_linear() -> bool:
    """Whether oneDNN's linear operator is there and the faster one.

    PyTorch's BLAS on x86 is MKL, which leaves AVX-512 unused on processors of other makers; oneDNN uses it. The
    operator is internal to torch: without it, or without AVX-512, torch's own path is what there is.
    """
    return (
        torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """``activation(x @ weight.T + bias)``, ``x`` (..., I), ``weight`` (O, I): "none", "tanh", "relu" or "sigmoid"."""
    if torch.compiler.is_compiling():  # inductor would pack the weights again, and fails
        out = F.linear(x, weight, bias)
        return out if activation == "none" else getattr(torch, activation)(out)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
