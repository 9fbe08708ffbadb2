"""What the sampler of masked MLPs draws: numbers with an address, and values from their noise and parameters."""

import triton
import triton.language as tl

__all__ = ["addressed", "values_of"]


@triton.jit
def _wave(turns, is_sine):
    """Cosine or sine of 0..1 turns, to 1e-7; those of the device keep a stack for large angles."""
    quarter = tl.floor(4.0 * turns + 0.5)
    r = (turns - 0.25 * quarter) * 6.283185307179586
    q = r * r
    sine = r * (1.0 - q * (1 / 6 - q * (1 / 120 - q * (1 / 5040 - q * (1 / 362880)))))
    cosine = 1.0 - q * (0.5 - q * (1 / 24 - q * (1 / 720 - q * (1 / 40320))))
    turned = (quarter.to(tl.int32) + 3 * is_sine.to(tl.int32)) % 4  # sin(a) = cos(a - pi / 2)
    wave = tl.where(turned % 2 == 0, cosine, sine)
    return tl.where((turned == 1) | (turned == 2), -wave, wave)


@triton.jit
def addressed(order_ptr, dims, is_dim, ids, seed_low, seed_high, NOISE: tl.constexpr):
    """Uniform or normal numbers of (seed, id, dimension), those of fastvae.ops.uniform and normal; (dims, ids)."""
    dimension = tl.load(order_ptr + dims, mask=is_dim, other=0)
    zeros = (dims[:, None] * 0 + ids[None, :] * 0).to(tl.uint32)
    c0, c2 = zeros + (dimension // 4).to(tl.uint32)[:, None], zeros + ids.to(tl.uint32)[None, :]
    key_low, key_high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    a, b, c, d = tl.philox_impl(c0, zeros, c2, zeros, key_low, key_high, 10)
    word = (dimension % 4)[:, None]
    if NOISE == "uniform":
        bits = tl.where(word == 0, a, tl.where(word == 1, b, tl.where(word == 2, c, d)))
        # rounded once, from 53 bits; float32 has no number between 1 - 2^-24 and 1
        u = ((bits.to(tl.float64) + 0.5) * 2.3283064365386963e-10).to(tl.float32)
        found = tl.minimum(u, 0.9999999403953552)
    else:  # Box and Muller
        first, second = tl.where(word < 2, a, c).to(tl.float32), tl.where(word < 2, b, d).to(tl.float32)
        radius = tl.sqrt(tl.maximum(-2.0 * tl.log((first + 0.5) * 2.3283064365386963e-10), 0.0))
        found = radius * _wave(second * 2.3283064365386963e-10, word % 2)
    return found


@triton.jit
def values_of(
    # pointers
    params_ptr,  # of the first parameter of these values
    stride,  # from one parameter to the next
    noise,
    live,
    # sizes
    num_params,
    # meta
    DRAW: tl.constexpr,
):
    """Values from their noise and parameters, as fastvae.reference.masked_mlp.DRAWS."""
    first = tl.load(params_ptr, mask=live, other=0.0)
    if DRAW == "bernoulli":
        value = (noise < tl.sigmoid(first)).to(tl.float32)
    elif DRAW == "affine":
        value = first + tl.exp(tl.load(params_ptr + stride, mask=live, other=0.0)) * noise
    elif DRAW == "affine_inverse":
        value = (noise - first) * tl.exp(-tl.load(params_ptr + stride, mask=live, other=0.0))
    else:
        highest = first
        for p in range(1, num_params):
            highest = tl.maximum(highest, tl.load(params_ptr + p * stride, mask=live, other=0.0))
        total = tl.exp(first - highest)
        for p in range(1, num_params):
            total += tl.exp(tl.load(params_ptr + p * stride, mask=live, other=0.0) - highest)
        value, cumulated = tl.zeros_like(noise), tl.zeros_like(noise)
        for p in range(0, num_params - 1):
            cumulated += tl.exp(tl.load(params_ptr + p * stride, mask=live, other=0.0) - highest) / total
            value += tl.where(cumulated <= noise, 1.0, 0.0)
    return value
