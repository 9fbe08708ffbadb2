"""What may follow a masked convolution in the same pass: a gate, or an activation and a residual; its derivative."""

import torch
import triton
import triton.language as tl

from .masked_conv2d import convolve
from .masked_conv2d_launch import nhwc

__all__ = [
    "BLOCK",
    "activation_backward",
    "epilogue_backward_kernel",
    "gate_backward",
    "gated_forward",
    "residual_forward",
]

BLOCK = 1024  # values per program of the pointwise kernel


def gated_forward(
    x: torch.Tensor,
    window: torch.Tensor,
    bias: torch.Tensor | None,
    condition: torch.Tensor | None,
    live: int,
    dilation: int,
    centre: tuple[int, int],
    *,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``x`` (N, C_in, H, W), ``window`` (2C, C_in, rows, columns), ``condition`` (N, 2C) or (N, 2C, H, W).

    Returns (N, C, H, W), and if they are to be saved tanh and sigmoid, (N, 2C, H, W), all in NHWC.
    """
    half = window.shape[0] // 2
    taps = window.flatten(2)[..., :live].permute(2, 0, 1)  # (T, 2C, C_in)
    packed = torch.stack((taps[:, :half], taps[:, half:]), 2).flatten(1, 2)  # the two of a gate side by side
    paired = None if bias is None else torch.stack((bias[:half], bias[half:]), 1).flatten()
    saved = _like(x, 2 * half) if save else None
    y = convolve(x, packed, paired, window.shape[-1], dilation, centre, is_gated=True, condition=condition, saved=saved)
    return y, saved


def residual_forward(
    x: torch.Tensor,
    window: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    activation: str,
    live: int,
    dilation: int,
    centre: tuple[int, int],
    *,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``x`` (N, C_in, H, W), ``window`` (C_out, C_in, rows, columns), ``residual`` (N, C_out, H, W).

    Returns (N, C_out, H, W), and if it is to be saved the activation before the residual was added.
    """
    packed = window.flatten(2)[..., :live].permute(2, 0, 1)  # (T, C_out, C_in)
    saved = _like(x, window.shape[0]) if save else None
    y = convolve(
        x,
        packed,
        bias,
        window.shape[-1],
        dilation,
        centre,
        activation=activation,
        residual=residual,
        saved=saved,
    )
    return y, saved


@triton.jit
def epilogue_backward_kernel(
    # pointers
    saved_ptr,  # gate: (P, 2C) tanh and sigmoid; else (P, C) the activation
    grad_y_ptr,  # (P, C)
    grad_h_ptr,  # as saved_ptr
    # sizes
    num_values,  # P * C
    # meta
    CHANNELS: tl.constexpr,  # C
    ACTIVATION: tl.constexpr,  # "gate", "relu" or "elu"
    BLOCK: tl.constexpr,
):
    value = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = value < num_values
    grad_y = tl.load(grad_y_ptr + value, mask=live, other=0.0).to(tl.float32)
    if ACTIVATION == "gate":
        first = (value // CHANNELS) * (2 * CHANNELS) + value % CHANNELS
        t = tl.load(saved_ptr + first, mask=live, other=0.0).to(tl.float32)
        s = tl.load(saved_ptr + first + CHANNELS, mask=live, other=0.0).to(tl.float32)
        grad_f = grad_y * s * (1.0 - t * t)
        grad_g = grad_y * t * s * (1.0 - s)
        tl.store(grad_h_ptr + first, grad_f.to(grad_h_ptr.dtype.element_ty), mask=live)
        tl.store(grad_h_ptr + first + CHANNELS, grad_g.to(grad_h_ptr.dtype.element_ty), mask=live)
    else:
        a = tl.load(saved_ptr + value, mask=live, other=0.0).to(tl.float32)
        grad_h = tl.where(a > 0.0, grad_y, 0.0 if ACTIVATION == "relu" else grad_y * (a + 1.0))
        tl.store(grad_h_ptr + value, grad_h.to(grad_h_ptr.dtype.element_ty), mask=live)


def gate_backward(saved: torch.Tensor, grad_y: torch.Tensor) -> torch.Tensor:
    """``saved`` (N, 2C, H, W) tanh and sigmoid, ``grad_y`` (N, C, H, W) -> (N, 2C, H, W) in NHWC."""
    return _backward(saved, grad_y, "gate")


def activation_backward(saved: torch.Tensor, grad_y: torch.Tensor, activation: str) -> torch.Tensor:
    """``saved`` (N, C, H, W) the activation, ``grad_y`` (N, C, H, W) -> (N, C, H, W) in NHWC."""
    return _backward(saved, grad_y, activation)


def _backward(saved: torch.Tensor, grad_y: torch.Tensor, activation: str) -> torch.Tensor:
    grad_h = _like(saved, saved.shape[1])
    num_values = grad_y.numel()
    if num_values == 0:
        return grad_h
    epilogue_backward_kernel[(triton.cdiv(num_values, BLOCK),)](
        saved_ptr=nhwc(saved),
        grad_y_ptr=nhwc(grad_y),
        grad_h_ptr=grad_h,
        num_values=num_values,
        CHANNELS=grad_y.shape[1],
        ACTIVATION=activation,
        BLOCK=BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return grad_h


def _like(x: torch.Tensor, channels: int) -> torch.Tensor:
    shape = (x.shape[0], channels, x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
