"""What the masked convolutions demand of their arguments."""

from typing import get_args

import torch
from torch import Tensor

from fastvae.reference.masked_conv2d import NamedMask

from ._dispatch import autocast_dtype

__all__ = ["check_arguments", "check_channels", "check_flag", "check_mask", "check_tensor"]


_SERVED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_channels(name: str, value: int, *, least: int = 1) -> None:
    """``value`` must be an integer of at least ``least``, 0 or 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        expected = "a positive integer" if least else "0 or a positive integer"
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_flag(name: str, value: bool) -> None:
    """``value`` must be True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_tensor(name: str, tensor: Tensor, x: Tensor) -> None:
    """``tensor`` must be a floating point tensor on the device of ``x`` and, without autocast, of its dtype."""
    is_tensor = isinstance(tensor, Tensor)
    is_like_x = is_tensor and tensor.dtype == x.dtype and tensor.device == x.device
    if is_like_x and tensor.dtype in _SERVED and tensor.layout == torch.strided:
        return  # nearly always: calls can be as short as these checks
    if not is_tensor:
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}; convert it, for example {name}.float()")
    if tensor.dtype.itemsize < 2:
        raise TypeError(f"{name} must have at least 16 bits, got {tensor.dtype}; convert it, for example {name}.half()")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got layout {tensor.layout}; convert it, for example {name}.to_dense()")
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")
    if tensor.dtype != x.dtype and autocast_dtype(x) is None:
        raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}; convert one of them")


def check_arguments(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> None:
    """What every convolution here needs."""
    check_tensor("x", x, x)
    check_tensor("weight", weight, x)
    if bias is not None:
        check_tensor("bias", bias, x)
    if x.ndim not in (3, 4):
        raise ValueError(f"x must be (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}")
    if weight.ndim != 4:
        raise ValueError(f"weight must be (C_out, C_in, kH, kW), got shape {tuple(weight.shape)}")
    if 0 in x.shape[-3:] or 0 in weight.shape:
        raise ValueError(f"only the batch may be empty, got x {tuple(x.shape)} and weight {tuple(weight.shape)}")
    for size in weight.shape[2:]:
        if size % 2 == 0:
            raise ValueError(f"weight must have an odd kernel size, got {size}: an even one has no centre tap")
    if x.shape[-3] != weight.shape[1]:
        raise ValueError(f"x must have the {weight.shape[1]} channels of weight, got shape {tuple(x.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if not isinstance(dilation, int) or isinstance(dilation, bool) or dilation < 1:
        raise ValueError(f"dilation must be a positive integer, got {dilation!r}")


def check_mask(mask: NamedMask | Tensor, weight: Tensor, num_colours: int) -> None:
    """A mask has a name or is a boolean tensor that broadcasts to the weight; colours need masks A or B."""
    if isinstance(mask, Tensor):
        _check_given_mask(mask, weight)
    elif not isinstance(mask, str) or mask not in get_args(NamedMask):
        raise ValueError(
            f'mask must be "A" (without the centre), "B" (with it), "vertical", "vertical-strict" or a boolean tensor, '
            f"got {mask!r}"
        )
    if not isinstance(num_colours, int) or isinstance(num_colours, bool) or num_colours < 1:
        raise ValueError(f"num_colours must be a positive integer, got {num_colours!r}")
    if num_colours > 1 and (isinstance(mask, Tensor) or mask not in ("A", "B")):
        raise ValueError(f"num_colours={num_colours} needs mask A or B, the only ones that treat the centre apart")
    if num_colours > min(weight.shape[0], weight.shape[1]):
        raise ValueError(
            f"num_colours must be at most the number of channels, in and out, "
            f"got {num_colours} for weight {tuple(weight.shape)}"
        )


def _check_given_mask(mask: Tensor, weight: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"a given mask must be boolean, got {mask.dtype}; pass mask != 0")
    if mask.device != weight.device:
        raise ValueError(f"mask must be on the device of weight, {weight.device}, got {mask.device}")
    expected = tuple(weight.shape)
    fits = mask.ndim <= 4 and all(m in (1, w) for m, w in zip(mask.shape[::-1], expected[::-1], strict=False))
    if not fits:
        raise ValueError(f"mask must broadcast to the weight, {expected}, got shape {tuple(mask.shape)}")
