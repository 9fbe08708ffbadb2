"""Linear layers through oneDNN where it is the faster library: float32 on CPUs with AVX-512."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["FastLinear"]

_FEWEST_ROWS = 32  # below, reordering the weights for oneDNN costs more than it saves


class FastLinear(TorchFunctionMode):
    """Inside this context ``F.linear`` without gradients runs through oneDNN instead of the BLAS torch is linked to.

    PyTorch's BLAS on x86 is MKL, which leaves AVX-512 unused on processors of other makers; oneDNN uses it (twice the
    speed there). Results differ by rounding only. Whatever does not qualify runs as it always does.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _qualifies(*args):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _qualifies(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.ndim >= 2
        and weight.ndim == 2
        and x.numel() >= _FEWEST_ROWS * weight.shape[1] > 0
        and type(x) is Tensor  # subclasses bring their own linear
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _available()
    )


def _available() -> bool:
    # the operator is internal to torch: without it, or without AVX-512, F.linear is what there is
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
