"""A whole image in one launch: a program owns some images and walks the wavefront of a gated net with two stacks."""

import triton
import triton.language as tl

from .sampling_draw import draw_pixels, store_log_prob
from .sampling_tile import activate, add_taps, diagonal, image_taps, parameters, ring_cells

__all__ = ["gated_kernel"]

# At step t the horizontal stack computes the pixels of time t, all layers; layer l of the vertical stack those of time
# t + lead - l * lead_step, so that what it reads on the right of its own row was just computed by the layer before.


@triton.jit
def gated_kernel(
    # pointers
    image_ptr,  # (B, V, H, W): written
    log_prob_ptr,  # (B,) float64: written
    noise_ptr,  # (B, V, H, W) uniform numbers, or None: those of the seed
    ring_ptr,  # (programs, layers, length + row_length, SLOTS, IMAGES, CHANNELS): scratch
    first_ptr,  # (REDUCED, 2 CHANNELS): the two of a gate side by side, here and below
    first_row_ptr,  # (REDUCED_ROW, 2 CHANNELS)
    image_tap_ptr,  # (REDUCED, 3): rows, columns and channel that the first vertical layer reads; channel -1: none
    image_row_tap_ptr,  # (REDUCED_ROW, 3): the same of the first horizontal layer
    tap_ptr,  # (num_taps + 3, 2): rows and columns of what later vertical layers read of earlier steps; then anything
    row_tap_ptr,  # (num_row_taps + 3, 2): the same of later horizontal layers
    weight_ptr,  # (layers, num_taps + NUM_NEWEST, CHANNELS, 2 CHANNELS), the newest last; zero for the first layer
    row_weight_ptr,  # (layers, num_row_taps + 2 or 3, CHANNELS, 2 CHANNELS): taps, the pixel itself, the link
    mix_ptr,  # (layers, CHANNELS, CHANNELS)
    head_ptr,  # (heads, CHANNELS, CHANNELS)
    last_ptr,  # (CHANNELS, VALUES * PARAMS)
    gate_bias_ptr,  # (2 layers, pixels or 1, B or 1, 2 CHANNELS) float32: vertical, horizontal with link, of each layer
    bias_ptr,  # (layers + heads, 1, 1, CHANNELS) float32: mix, heads
    last_bias_ptr,  # (VALUES * PARAMS,) float32
    # sizes
    num_images,
    height,
    width,
    num_layers,
    num_heads,
    num_taps,
    num_row_taps,
    skew,
    num_steps,
    length,
    row_length,
    lead,
    lead_step,
    newest,  # columns from a pixel to what the vertical layer before has just computed
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
    ACTIVATION: tl.constexpr,  # of the heads
    HAS_RESIDUAL: tl.constexpr,
    NUM_NEWEST: tl.constexpr,  # 1: the newest thing that a vertical layer reads is of the same step; 0: there is none
    LINK_ROWS: tl.constexpr,  # 1: a pixel is linked to the vertical stack of the row above; 0: of its own row
    LINK_GATED: tl.constexpr,  # whether the link starts after the vertical gate, else before it
    VARIES: tl.constexpr,  # whether the biases of gates differ between pixels or images
    NUM_VALUES: tl.constexpr,  # V
    NUM_PARAMS: tl.constexpr,
    VALUES: tl.constexpr,  # V and NUM_PARAMS, up to a power of two
    PARAMS: tl.constexpr,
    REDUCED: tl.constexpr,
    REDUCED_ROW: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLOTS: tl.constexpr,
    IMAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    ROWS: tl.constexpr = SLOTS * IMAGES
    BOTH: tl.constexpr = 2 * CHANNELS
    NUM_OWN: tl.constexpr = 2 if LINK_GATED else 3
    row = tl.arange(0, ROWS)
    slot = row // IMAGES
    own = row % IMAGES
    image = tl.program_id(0).to(tl.int64) * IMAGES + own
    is_image = image < num_images
    ring_ptr += tl.program_id(0).to(tl.int64) * num_layers * (length + row_length) * (ROWS * CHANNELS)
    row_ring_ptr = ring_ptr + num_layers * length * (ROWS * CHANNELS)
    channel = tl.arange(0, CHANNELS)
    both = tl.arange(0, BOTH)
    square = channel[:, None] * CHANNELS + channel[None, :]
    element = tl.arange(0, VALUES * PARAMS)
    dtype = ring_ptr.dtype.element_ty
    nats = tl.zeros([ROWS], tl.float64)
    for step in range(0, num_steps):
        y, x, is_live = diagonal(step, skew, height, width, slot, SLOTS)
        is_live = is_live & is_image
        pixel = y * width + x
        h = tl.zeros([ROWS, CHANNELS], tl.float32)
        v = tl.zeros([ROWS, CHANNELS], dtype)
        for layer in range(0, num_layers):
            # the vertical row at a slot is the one that the horizontal row there is linked to
            own_lead = lead - layer * lead_step
            time = step + own_lead
            up, across, is_up = diagonal(time, skew, height, width, slot - LINK_ROWS, SLOTS)
            is_up = is_up & is_image
            first = tl.where(layer == 0, num_taps + NUM_NEWEST, 0)  # the first layer reads the image instead
            fg = _biases(
                gate_bias_ptr, 2 * layer, up * width + across, image, is_up, both,
                bias_layer, bias_pixel, bias_image, VARIES, ROWS, BOTH,
            )  # fmt: skip
            if layer == 0:
                fg = _add_image(
                    fg, first_ptr, image_ptr, image_tap_ptr, up, across, is_up, image, height, width, scale, shift,
                    NUM_VALUES, REDUCED, BOTH, PRECISION,
                )  # fmt: skip
            right = tl.where((is_up & (across + newest < width))[:, None], v, 0.0).to(dtype)
            before = ring_ptr + (layer - 1) * length * (ROWS * CHANNELS)
            weights = weight_ptr + layer * (num_taps + NUM_NEWEST) * (CHANNELS * BOTH)
            fg = add_taps(
                fg, before, weights, tap_ptr, first, num_taps, right, right, right, time, up, across, is_up, LINK_ROWS,
                own, height, width, skew, length, NUM_NEWEST, SLOTS, IMAGES, CHANNELS, BOTH, PRECISION,
            )  # fmt: skip
            f, g = tl.split(tl.reshape(fg, [ROWS, CHANNELS, 2]))
            v = (_tanh(f) * tl.sigmoid(g)).to(dtype)
            cache = before + length * (ROWS * CHANNELS)
            cells = ring_cells(time, up, LINK_ROWS, own, length, SLOTS, IMAGES, CHANNELS)
            tl.store(cache + cells[:, None] + channel[None, :], v, mask=is_up[:, None])
            # what the horizontal layer takes from the vertical one
            if LINK_GATED:
                f, g = v, v
                if LINK_ROWS == 1:
                    # the last layers have just computed it; the others were ahead, and it is in the ring
                    inside = is_live & (y >= 1)
                    ahead = y * 0 + (own_lead + skew)  # a block, as masks are
                    cells = ring_cells(step - skew, y - 1, 1, own, length, SLOTS, IMAGES, CHANNELS)
                    is_old = (inside & (ahead > 0))[:, None]
                    old = tl.load(cache + cells[:, None] + channel[None, :], mask=is_old, other=0.0)
                    f = tl.where((inside & (ahead == 0))[:, None], v, old)
            fg = _biases(
                gate_bias_ptr, 2 * layer + 1, pixel, image, is_live, both,
                bias_layer, bias_pixel, bias_image, VARIES, ROWS, BOTH,
            )  # fmt: skip
            if layer == 0:
                fg = _add_image(
                    fg, first_row_ptr, image_ptr, image_row_tap_ptr, y, x, is_live, image, height, width, scale, shift,
                    NUM_VALUES, REDUCED_ROW, BOTH, PRECISION,
                )  # fmt: skip
            before = row_ring_ptr + (layer - 1) * row_length * (ROWS * CHANNELS)
            weights = row_weight_ptr + layer * (num_row_taps + NUM_OWN) * (CHANNELS * BOTH)
            fg = add_taps(
                fg, before, weights, row_tap_ptr, tl.where(layer == 0, num_row_taps, 0), num_row_taps,
                h.to(dtype), f.to(dtype), g.to(dtype), step, y, x, is_live, 0,
                own, height, width, skew, row_length, NUM_OWN, SLOTS, IMAGES, CHANNELS, BOTH, PRECISION,
            )  # fmt: skip
            f, g = tl.split(tl.reshape(fg, [ROWS, CHANNELS, 2]))
            w = tl.load(mix_ptr + layer * (CHANNELS * CHANNELS) + square)
            mixed = tl.dot((_tanh(f) * tl.sigmoid(g)).to(dtype), w, input_precision=PRECISION)
            mixed += tl.load(bias_ptr + layer * CHANNELS + channel)[None, :]
            h = h + mixed if HAS_RESIDUAL else mixed
            cells = ring_cells(step, y, 0, own, row_length, SLOTS, IMAGES, CHANNELS)
            row_cache = before + row_length * (ROWS * CHANNELS)
            tl.store(row_cache + cells[:, None] + channel[None, :], h.to(dtype), mask=is_live[:, None])
        for head in range(0, num_heads):
            w = tl.load(head_ptr + head * (CHANNELS * CHANNELS) + square)
            h = tl.dot(activate(h, ACTIVATION).to(dtype), w, input_precision=PRECISION)
            h += tl.load(bias_ptr + (num_layers + head) * CHANNELS + channel)[None, :]
        last = tl.load(last_ptr + channel[:, None] * (VALUES * PARAMS) + element[None, :])
        params = tl.dot(activate(h, ACTIVATION).to(dtype), last, input_precision=PRECISION)
        params += tl.load(last_bias_ptr + element)[None, :]
        nats += draw_pixels(
            params, image_ptr, noise_ptr, seed, first_id, image, pixel, is_live, height * width,
            KIND, NUM_VALUES, NUM_PARAMS, VALUES, PARAMS, ROWS,
        )  # fmt: skip
        tl.debug_barrier()  # what this step stored, the next ones load, perhaps by other threads
    store_log_prob(log_prob_ptr, nats, num_images, SLOTS, IMAGES)


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _biases(
    bias_ptr, layer, pixel, image, is_live, channel, layer_step, pixel_step, image_step,
    VARIES: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """:func:`parameters`, (ROWS, OUT)."""
    found = parameters(
        bias_ptr, layer, pixel, image, is_live, channel, layer_step, pixel_step, image_step, VARIES, ROWS
    )
    return tl.zeros([ROWS, OUT], tl.float32) + found


@triton.jit
def _add_image(
    acc, weight_ptr, image_ptr, image_tap_ptr, y, x, is_live, image, height, width, scale, shift,
    NUM_VALUES: tl.constexpr, REDUCED: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what a first layer computes from earlier pixels."""
    pixels = image_taps(
        image_ptr, image_tap_ptr, y, x, is_live, image, height, width, scale, shift, NUM_VALUES, REDUCED
    )
    w = tl.load(weight_ptr + tl.arange(0, REDUCED)[:, None] * OUT + tl.arange(0, OUT)[None, :])
    return tl.dot(pixels.to(w.dtype), w, acc, input_precision=PRECISION)
