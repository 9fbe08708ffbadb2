"""Online update of the importance-weight state from a chunk of log-weights: one read of the chunk."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["Config", "config", "update_log_weights"]


@dataclass(frozen=True)
class Config:
    """Launch configuration: a program keeps the state of ``block_points`` and walks over all samples."""

    block_samples: int
    block_points: int
    num_warps: int


def config(num_points: int) -> Config:
    """The configuration for ``num_points`` datapoints; no timing at run time."""
    points = min(32, triton.next_power_of_2(max(num_points, 1)))
    return Config(block_samples=512 // points, block_points=points, num_warps=8)  # 4 warps would need 230 registers


@triton.jit
def _update_kernel(
    # pointers
    state_ptr,
    log_w_ptr,
    out_ptr,
    # sizes
    num_samples,
    num_points,
    # strides
    stride_log_w_sample,
    stride_log_w_point,
    # meta
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
):
    points = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    live = points < num_points
    n = tl.load(state_ptr + 0 * num_points + points, mask=live, other=0.0)
    m = tl.load(state_ptr + 1 * num_points + points, mask=live, other=float("-inf"))
    s1 = tl.load(state_ptr + 2 * num_points + points, mask=live, other=0.0)
    s2 = tl.load(state_ptr + 3 * num_points + points, mask=live, other=0.0)
    mean = tl.load(state_ptr + 4 * num_points + points, mask=live, other=0.0)
    m2 = tl.load(state_ptr + 5 * num_points + points, mask=live, other=0.0)
    num_zero = tl.load(state_ptr + 6 * num_points + points, mask=live, other=0.0)
    num_bad = tl.load(state_ptr + 7 * num_points + points, mask=live, other=0.0)
    num_finite = n - num_zero - num_bad
    for start in range(0, num_samples, BLOCK_SAMPLES):
        samples = start + tl.arange(0, BLOCK_SAMPLES).to(tl.int64)
        inside = (samples < num_samples)[:, None] & live[None, :]
        offsets = samples[:, None] * stride_log_w_sample + points[None, :] * stride_log_w_point
        l = tl.load(log_w_ptr + offsets, mask=inside, other=float("-inf")).to(tl.float32)
        bad = (l != l) | (l == float("inf"))
        finite = inside & (l != float("-inf")) & (bad == 0)
        l = tl.where(finite, l, float("-inf"))
        # the tile in float32, relative to its own maximum
        tile_m = tl.max(l, axis=0)
        origin = tl.where(tile_m == float("-inf"), 0.0, tile_m)
        shifted = tl.where(finite, l - origin[None, :], 0.0)
        w = tl.where(finite, tl.exp(shifted), 0.0)
        tile_finite = tl.sum(finite.to(tl.float32), axis=0)
        safe_finite = tl.maximum(tile_finite, 1.0)
        tile_mean = tl.sum(shifted, axis=0) / safe_finite
        centred = tl.where(finite, shifted - tile_mean[None, :], 0.0)
        tile_m2 = tl.sum(centred * centred, axis=0).to(tl.float64)
        # the running state in float64
        new_m = tl.maximum(m, tile_m.to(tl.float64))
        new_origin = tl.where(new_m == float("-inf"), 0.0, new_m)
        # float32 is enough for these exp: one of the two is exactly 1, and a gap d weighs its rounding with exp(-d)
        old_scale = tl.exp((m - new_origin).to(tl.float32)).to(tl.float64)
        tile_scale = tl.exp((tile_m.to(tl.float64) - new_origin).to(tl.float32)).to(tl.float64)
        s1 = s1 * old_scale + tl.sum(w, axis=0).to(tl.float64) * tile_scale
        s2 = s2 * old_scale * old_scale + tl.sum(w * w, axis=0).to(tl.float64) * tile_scale * tile_scale
        m = new_m
        total = tl.maximum(num_finite + tile_finite, 1.0)
        delta = origin.to(tl.float64) + tile_mean - mean
        share = tl.where(tile_finite > 0, tile_finite / total, 0.0)
        mean += delta * share
        m2 += tile_m2 + delta * delta * num_finite * share
        num_finite += tile_finite
        tile_bad = tl.sum((bad & inside).to(tl.float32), axis=0)
        tile_all = tl.sum(inside.to(tl.float32), axis=0)
        n += tile_all
        num_bad += tile_bad
        num_zero += tile_all - tile_bad - tile_finite
    tl.store(out_ptr + 0 * num_points + points, n, mask=live)
    tl.store(out_ptr + 1 * num_points + points, m, mask=live)
    tl.store(out_ptr + 2 * num_points + points, s1, mask=live)
    tl.store(out_ptr + 3 * num_points + points, s2, mask=live)
    tl.store(out_ptr + 4 * num_points + points, mean, mask=live)
    tl.store(out_ptr + 5 * num_points + points, m2, mask=live)
    tl.store(out_ptr + 6 * num_points + points, num_zero, mask=live)
    tl.store(out_ptr + 7 * num_points + points, num_bad, mask=live)


def update_log_weights(state: torch.Tensor, log_w: torch.Tensor) -> torch.Tensor:
    """``state`` (8, N) float64, contiguous, and ``log_w`` (K, N), any strides -> the new state (8, N) float64."""
    num_samples, num_points = log_w.shape
    out = torch.empty_like(state)
    if num_points == 0:
        return out
    c = config(num_points)
    _update_kernel[(triton.cdiv(num_points, c.block_points),)](
        state_ptr=state,
        log_w_ptr=log_w,
        out_ptr=out,
        num_samples=num_samples,
        num_points=num_points,
        stride_log_w_sample=log_w.stride(0),
        stride_log_w_point=log_w.stride(1),
        BLOCK_SAMPLES=c.block_samples,
        BLOCK_POINTS=c.block_points,
        num_warps=c.num_warps,
        enable_fp_fusion=True,
    )
    return out
