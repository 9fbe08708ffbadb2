"""The end of a step of the persistent sampling kernels: uniform numbers, values, log-probabilities."""

import triton
import triton.language as tl

from .likelihood_terms import softplus

__all__ = ["draw_pixels", "store_log_prob", "uniform"]


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


@triton.jit
def draw_pixels(
    params,  # (ROWS, VALUES * PARAMS)
    image_ptr,
    noise_ptr,
    seed,
    first_id,
    image,  # of the batch, 64 bits
    pixel,
    is_live,
    num_pixels,
    KIND: tl.constexpr,
    NUM_VALUES: tl.constexpr,
    NUM_PARAMS: tl.constexpr,
    VALUES: tl.constexpr,
    PARAMS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Draw a value of each channel of the live pixels, store it, and return the nats of each pixel (ROWS,)."""
    value = tl.arange(0, VALUES)
    is_value = is_live[:, None] & (value < NUM_VALUES)[None, :]
    places = (image[:, None] * NUM_VALUES + value[None, :]) * num_pixels + pixel[:, None]
    if noise_ptr is not None:
        u = tl.load(noise_ptr + places, mask=is_value, other=0.5)
    else:
        u = uniform(seed, image + first_id, pixel, value)
    x, nats = draw(tl.reshape(params, [ROWS, VALUES, PARAMS]), u, KIND, NUM_PARAMS, PARAMS)
    tl.store(image_ptr + places, x.to(image_ptr.dtype.element_ty), mask=is_value)
    return tl.sum(tl.where(is_value, nats, 0.0), axis=1).to(tl.float64)


@triton.jit
def store_log_prob(log_prob_ptr, nats, num_images, SLOTS: tl.constexpr, IMAGES: tl.constexpr):
    """The sum over the slots of an image, for every image of this program."""
    total = tl.sum(tl.reshape(nats, [SLOTS, IMAGES]), axis=0)
    image = tl.program_id(0).to(tl.int64) * IMAGES + tl.arange(0, IMAGES)
    tl.store(log_prob_ptr + image, total, mask=image < num_images)
