"""What the persistent sampling kernels share: where a tile of the wavefront is, and what it reads."""

import triton
import triton.language as tl

__all__ = ["activate", "add_taps", "diagonal", "image_taps", "parameters", "ring_cells"]

# A tile has SLOTS x IMAGES rows; row = slot * IMAGES + image. Pixel (y, x) has time x + skew * y, and a diagonal is all
# pixels of one time; pixel row y sits at slot y % SLOTS, so that equal pixel rows share a slot on every diagonal.


@triton.jit
def diagonal(time, skew, height, width, slot, SLOTS: tl.constexpr):
    """Pixel rows and columns at ``time``, one for each slot, and which of them are in the image."""
    first = tl.maximum(time - width + skew, 0) // skew  # the first row whose column is left of the border
    y = first + ((slot - first) & (SLOTS - 1))
    x = time - skew * y
    return y, x, (y < height) & (x >= 0) & (x < width)


@triton.jit
def ring_cells(time, y, slot_shift, image, length, SLOTS: tl.constexpr, IMAGES: tl.constexpr, CHANNELS: tl.constexpr):
    """Where the channels of pixels begin in the ring of the last ``length`` diagonals, (length, SLOTS, IMAGES, C)."""
    return (((time % length) * SLOTS + ((y + slot_shift) & (SLOTS - 1))) * IMAGES + image) * CHANNELS


@triton.jit
def add_taps(
    acc,  # (M, OUT) float32
    ring_ptr,
    weight_ptr,  # (num_taps + NUM_OWN, CHANNELS, OUT)
    tap_ptr,  # (num_taps + NUM_OWN, 2): rows and columns from the reader to what it reads
    start,  # the first tap to add
    num_taps,
    own,  # (M, CHANNELS) each: what was computed in this step, the factors of the last NUM_OWN weights
    other,
    third,
    time,  # of the reader
    y,
    x,
    is_live,
    slot_shift,
    image,
    height,
    width,
    skew,
    length,
    NUM_OWN: tl.constexpr,
    SLOTS: tl.constexpr,
    IMAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the products of the taps that earlier steps have left in the ring, then those of this step.

    All in one loop, so that the weights of the next tap are on their way during a product.
    """
    channel = tl.arange(0, CHANNELS)
    matrix = channel[:, None] * OUT + tl.arange(0, OUT)[None, :]
    for tap in range(start, num_taps + NUM_OWN):
        down = tl.load(tap_ptr + 2 * tap)
        right = tl.load(tap_ptr + 2 * tap + 1)
        inside = is_live & (x * 0 + tap < num_taps) & (y + down >= 0) & (y + down < height)
        inside = inside & (x + right >= 0) & (x + right < width)
        then = time + right + skew * down
        cells = ring_cells(then, y + down, slot_shift, image, length, SLOTS, IMAGES, CHANNELS)
        a = tl.load(ring_ptr + cells[:, None] + channel[None, :], mask=inside[:, None], other=0.0)
        a = tl.where(tap == num_taps, own, a)
        if NUM_OWN > 1:
            a = tl.where(tap == num_taps + 1, other, a)
        if NUM_OWN > 2:
            a = tl.where(tap == num_taps + 2, third, a)
        w = tl.load(weight_ptr + tap * (CHANNELS * OUT) + matrix)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def image_taps(
    image_ptr,
    image_tap_ptr,  # (REDUCED, 3): rows, columns, channel; channel -1 where there is none
    y,
    x,
    is_live,
    image,  # of the batch, 64 bits
    height,
    width,
    scale,
    shift,
    NUM_VALUES: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """What a first layer reads, (M, REDUCED) float32: earlier pixels times ``scale`` plus ``shift``, 0 outside."""
    k = tl.arange(0, REDUCED)
    down = tl.load(image_tap_ptr + 3 * k)
    right = tl.load(image_tap_ptr + 3 * k + 1)
    value = tl.load(image_tap_ptr + 3 * k + 2)
    row = y[:, None] + down[None, :]
    column = x[:, None] + right[None, :]
    inside = is_live[:, None] & (value >= 0)[None, :]
    inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    places = (image[:, None] * NUM_VALUES + value[None, :]) * (height * width) + row * width + column
    pixels = tl.load(image_ptr + places, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, pixels * scale + shift, 0.0)


@triton.jit
def parameters(
    bias_ptr,  # (layers, pixels or 1, images or 1, channels)
    layer,
    pixel,
    image,
    is_live,
    channel,  # (N,)
    layer_step,
    pixel_step,
    image_step,
    VARIES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A bias, and a condition where it varies over pixels or images, (M, N) float32."""
    start = bias_ptr + layer * layer_step.to(tl.int64)
    if VARIES:
        place = pixel[:, None].to(tl.int64) * pixel_step + image[:, None] * image_step
        return tl.load(start + place + channel[None, :], mask=is_live[:, None], other=0.0)
    return tl.zeros([ROWS, 1], tl.float32) + tl.load(start + channel)[None, :]


@triton.jit
def activate(a, KIND: tl.constexpr):
    if KIND == "relu":
        a = tl.where(a < 0.0, 0.0, a)  # keeps nan
    if KIND == "elu":
        a = tl.where(a < 0.0, tl.exp(tl.minimum(a, 0.0)) - 1.0, a)
    if KIND == "tanh":
        a = 2.0 * tl.sigmoid(2.0 * a) - 1.0
    return a
