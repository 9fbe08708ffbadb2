"""A whole image in one launch: a program owns some images and walks the wavefront of a plain masked stack."""

import triton
import triton.language as tl

from .sampling_draw import draw_pixels, store_log_prob
from .sampling_tile import (
    activate,
    add_taps,
    diagonal,
    image_taps,
    parameters,
    ring_cells,
)

__all__ = ["plain_kernel"]


@triton.jit(do_not_specialize=["seed", "first_id"])
def plain_kernel(
    # pointers
    image_ptr,  # (B, V, H, W): written
    log_prob_ptr,  # (B,) float64: written
    noise_ptr,  # (B, V, H, W) uniform numbers, or None: those of the seed
    ring_ptr,  # (programs, layers, length, SLOTS, IMAGES, CHANNELS): scratch
    first_ptr,  # (REDUCED, CHANNELS)
    image_tap_ptr,  # (REDUCED, 3): rows, columns and channel of what the first layer reads; channel -1: nothing
    tap_ptr,  # (num_taps + 3, 2): rows and columns of what the later layers read of earlier steps; then anything
    weight_ptr,  # (layers, num_taps + 1, CHANNELS in, CHANNELS out), the pixel itself last
    before_ptr,  # (layers, CHANNELS, CHANNELS) or None
    after_ptr,  # (layers, CHANNELS, CHANNELS) or None
    head_ptr,  # (heads, CHANNELS, CHANNELS)
    last_ptr,  # (CHANNELS, VALUES * PARAMS)
    bias_ptr,  # (1 + 3 layers + heads, pixels or 1, B or 1, CHANNELS) float32: first, (before, masked, after), heads
    last_bias_ptr,  # (VALUES * PARAMS,) float32
    # sizes
    num_images,
    height,
    width,
    num_layers,
    num_heads,
    num_taps,
    skew,
    num_steps,
    length,
    first_id,
    seed,
    scale,
    shift,
    # strides
    bias_layer,
    bias_pixel,
    bias_image,
    # meta
    KIND: tl.constexpr,  # of the draw: "bernoulli", "categorical" or "gaussian"
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    VARIES: tl.constexpr,  # whether biases differ between pixels or images
    NUM_VALUES: tl.constexpr,  # V
    NUM_PARAMS: tl.constexpr,
    VALUES: tl.constexpr,  # V and NUM_PARAMS, up to a power of two
    PARAMS: tl.constexpr,
    REDUCED: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLOTS: tl.constexpr,
    IMAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    ROWS: tl.constexpr = SLOTS * IMAGES
    SQUARE: tl.constexpr = CHANNELS * CHANNELS
    row = tl.arange(0, ROWS)
    slot = row // IMAGES
    own = row % IMAGES
    image = tl.program_id(0).to(tl.int64) * IMAGES + own
    ring_ptr += tl.program_id(0).to(tl.int64) * num_layers * length * (ROWS * CHANNELS)
    channel = tl.arange(0, CHANNELS)
    square = channel[:, None] * CHANNELS + channel[None, :]
    element = tl.arange(0, VALUES * PARAMS)
    k = tl.arange(0, REDUCED)
    dtype = ring_ptr.dtype.element_ty
    nats = tl.zeros([ROWS], tl.float64)
    for step in range(0, num_steps):
        y, x, is_live = diagonal(step, skew, height, width, slot, SLOTS)
        is_live = is_live & (image < num_images)
        pixel = y * width + x
        pixels = image_taps(
            image_ptr, image_tap_ptr, y, x, is_live, image, height, width, scale, shift, NUM_VALUES, REDUCED
        )
        h = parameters(bias_ptr, 0, pixel, image, is_live, channel, bias_layer, bias_pixel, bias_image, VARIES, ROWS)
        first = tl.load(first_ptr + k[:, None] * CHANNELS + channel[None, :])
        h = tl.dot(pixels.to(dtype), first, h, input_precision=PRECISION)
        cells = ring_cells(step, y, 0, own, length, SLOTS, IMAGES, CHANNELS)
        for layer in range(0, num_layers):
            bias = 1 + 3 * layer
            a = activate(h, ACTIVATION).to(dtype)
            if before_ptr is not None:
                u = parameters(
                    bias_ptr, bias, pixel, image, is_live, channel, bias_layer, bias_pixel, bias_image, VARIES, ROWS
                )
                w = tl.load(before_ptr + layer * SQUARE + square)
                a = activate(tl.dot(a, w, u, input_precision=PRECISION), ACTIVATION).to(dtype)
            cache = ring_ptr + layer * length * (ROWS * CHANNELS)
            # read by later steps only: the pixel itself is taken from registers
            tl.store(cache + cells[:, None] + channel[None, :], a, mask=is_live[:, None])
            u = parameters(
                bias_ptr, bias + 1, pixel, image, is_live, channel, bias_layer, bias_pixel, bias_image, VARIES, ROWS
            )
            weights = weight_ptr + layer * (num_taps + 1) * SQUARE
            u = add_taps(
                u, cache, weights, tap_ptr, 0, num_taps, a, a, a, step, y, x, is_live, 0, own,
                height, width, skew, length, 1, SLOTS, IMAGES, CHANNELS, CHANNELS, PRECISION,
            )  # fmt: skip
            if after_ptr is not None:
                a = activate(u, ACTIVATION).to(dtype)
                u = parameters(
                    bias_ptr, bias + 2, pixel, image, is_live, channel, bias_layer, bias_pixel, bias_image, VARIES, ROWS
                )
                w = tl.load(after_ptr + layer * SQUARE + square)
                u = tl.dot(a, w, u, input_precision=PRECISION)
            h = h + u if HAS_RESIDUAL else u
        for head in range(0, num_heads):
            a = activate(h, ACTIVATION).to(dtype)
            bias = 1 + 3 * num_layers + head
            h = parameters(
                bias_ptr, bias, pixel, image, is_live, channel, bias_layer, bias_pixel, bias_image, VARIES, ROWS
            )
            w = tl.load(head_ptr + head * SQUARE + square)
            h = tl.dot(a, w, h, input_precision=PRECISION)
        a = activate(h, ACTIVATION).to(dtype)
        w = tl.load(last_ptr + channel[:, None] * (VALUES * PARAMS) + element[None, :])
        params = tl.dot(a, w, input_precision=PRECISION) + tl.load(last_bias_ptr + element)[None, :]
        nats += draw_pixels(
            params, image_ptr, noise_ptr, seed, first_id, image, pixel, is_live, height * width,
            KIND, NUM_VALUES, NUM_PARAMS, VALUES, PARAMS, ROWS,
        )  # fmt: skip
        tl.debug_barrier()  # what this step stored, the next ones load, perhaps by other threads
    store_log_prob(log_prob_ptr, nats, num_images, SLOTS, IMAGES)
