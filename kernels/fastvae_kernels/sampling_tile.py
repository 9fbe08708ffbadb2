"""What the persistent sampling kernels share: where a tile of the wavefront is, its taps, and its draws."""

import triton
import triton.language as tl

from .likelihood_terms import softplus

__all__ = ["activate", "add_taps", "diagonal", "draw", "gate", "image_taps", "parameters", "ring_cells", "uniform"]

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
    acc,  # (M, CHANNELS) float32
    ring_ptr,
    weight_ptr,  # (taps, CHANNELS in, CHANNELS out); the distance between taps is weight_step
    weight_step,
    tap_ptr,  # (taps, 2): rows and columns from the reader to what it reads
    num_taps,
    time,  # of the reader, less than that of what it reads by no more than the ring holds
    y,
    x,
    is_live,
    slot_shift,
    image,
    height,
    width,
    skew,
    length,
    SLOTS: tl.constexpr,
    IMAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the products of the taps that earlier steps have left in the ring."""
    channel = tl.arange(0, CHANNELS)
    square = channel[:, None] * CHANNELS + channel[None, :]
    for tap in range(0, num_taps):
        down = tl.load(tap_ptr + 2 * tap)
        right = tl.load(tap_ptr + 2 * tap + 1)
        inside = is_live & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        then = time + right + skew * down
        cells = ring_cells(then, y + down, slot_shift, image, length, SLOTS, IMAGES, CHANNELS)
        a = tl.load(ring_ptr + cells[:, None] + channel[None, :], mask=inside[:, None], other=0.0)
        w = tl.load(weight_ptr + tap * weight_step + square)
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


@triton.jit
def gate(f, g):
    return (2.0 * tl.sigmoid(2.0 * f) - 1.0) * tl.sigmoid(g)


@triton.jit
def uniform(seed, number, pixel, value):
    """The number in (0, 1) at (seed, number of the image, pixel, channel): ``fastvae.ops.uniform`` in float32."""
    zero = (number[:, None] + value[None, :]) * 0  # (M, N)
    block = (zero + (value // 4)[None, :]).to(tl.uint32)
    row = (zero + pixel[:, None]).to(tl.uint32)
    own = (zero + number[:, None]).to(tl.uint32)
    first, second, third, fourth = tl.philox(seed, block, row, own, zero.to(tl.uint32))
    lane = zero + (value % 4)[None, :]
    bits = tl.where(lane == 0, first, tl.where(lane == 1, second, tl.where(lane == 2, third, fourth)))
    # in float64, so that it is rounded once
    wide = (bits.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2^-32
    return tl.minimum(wide.to(tl.float32), 0.999999940395355)  # 1 - 2^-24


@triton.jit
def normal_quantile(u):
    """Wichura's rational functions of float32 accuracy: algorithm AS 241, PPND7 (1988)."""
    q = u - 0.5
    r = 0.180625 - q * q
    near = q * (((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179)
    near = near / (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0)
    r = tl.sqrt(-tl.log(tl.where(q < 0.0, u, 1.0 - u)))
    middle = r - 1.6
    far = ((0.17023821103 * middle + 1.3067284816) * middle + 2.7568153900) * middle + 1.4234372777
    far = far / ((0.12021132975 * middle + 0.73700164250) * middle + 1.0)
    tail = r - 5.0
    last = ((0.017337203997 * tail + 0.42868294337) * tail + 3.0812263860) * tail + 6.6579051150
    last = last / ((0.012258202635 * tail + 0.24197894225) * tail + 1.0)
    far = tl.where(r <= 5.0, far, last)
    return tl.where(tl.abs(q) <= 0.425, near, tl.where(q < 0.0, -far, far))


@triton.jit
def draw(params, u, KIND: tl.constexpr, NUM_PARAMS: tl.constexpr, PARAMS: tl.constexpr):
    """Values and their log-probabilities, (M, V) each, from parameters (M, V, PARAMS >= NUM_PARAMS) and u (M, V)."""
    number = tl.arange(0, PARAMS)[None, None, :]
    first = tl.sum(tl.where(number == 0, params, 0.0), axis=2)
    if KIND == "bernoulli":
        x = tl.where(tl.log(u) - tl.log(1.0 - u) < first, 1.0, 0.0)
        nats = -softplus(tl.where(x > 0.0, -first, first))
    elif KIND == "categorical":
        logits = tl.where(number < NUM_PARAMS, params, float("-inf"))
        shifted = logits - tl.max(logits, axis=2)[:, :, None]
        weights = tl.exp(shifted)
        total = tl.sum(weights, axis=2)
        below = tl.cumsum(weights, axis=2) <= u[:, :, None] * total[:, :, None]
        # the last level needs no bound
        level = tl.sum((below & (number < NUM_PARAMS - 1)).to(tl.int32), axis=2)
        nats = tl.sum(tl.where(number == level[:, :, None], shifted, 0.0), axis=2) - tl.log(total)
        x = level.to(tl.float32)
    else:
        log_scale = tl.sum(tl.where(number == 1, params, 0.0), axis=2)
        z = normal_quantile(u)
        x = first + tl.exp(log_scale) * z
        nats = -0.5 * z * z - log_scale - 0.9189385332046727  # log(2 pi) / 2
    return x, nats
