"""Images, rows and columns of pixels in raster order, by multiplication; what one tap of them adds.

Dividing by sizes that are known at run time costs dozens of instructions, and a call for 64 bits.
"""

import triton
import triton.language as tl

__all__ = ["FAR", "add_tap", "divisors_of", "origin", "places", "within"]

FAR = tl.constexpr(1 << 29)  # a row or an offset to a row that is in no image


def divisors_of(height: int, width: int) -> dict[str, int]:
    """What the kernels divide by: arguments of their launches."""
    (area_factor, area_shift), (width_factor, width_shift) = _divisor(height * width), _divisor(width)
    return {
        "origin_factor": min(-(-(1 << 63) // (height * width)), (1 << 63) - 1),
        "area_factor": area_factor,
        "area_shift": area_shift,
        "width_factor": width_factor,
        "width_shift": width_shift,
    }


def _divisor(size: int) -> tuple[int, int]:
    """Factor f < 2^32 and shift s with n // size = n f >> (31 + s) for 0 <= n < 2^31.

    T. Granlund and P. Montgomery, "Division by invariant integers using multiplication" (1994), theorem 4.2.
    """
    shift = (size - 1).bit_length()
    return -(-(1 << (31 + shift)) // size), shift


@triton.jit
def origin(first, height, width, origin_factor):
    """Image of a pixel ``first``, int64, and the pixel counted from the first of that image, int32.

    Of images of one pixel the image may be that before; :func:`places` counts on from any.
    """
    image = tl.umulhi((first * 2).to(tl.uint64), origin_factor.to(tl.uint64)).to(tl.int64)
    return image, (first - image * (height * width)).to(tl.int32)


@triton.jit
def _quotient(n, factor, shift):
    return (tl.umulhi((n * 2).to(tl.uint32), factor.to(tl.uint32)) >> shift).to(tl.int32)


@triton.jit
def places(n, height, width, area_factor, area_shift, width_factor, width_shift):
    """Image, row and column of pixels ``n`` < 2^31, int32, counted from the first pixel of an image."""
    image = _quotient(n, area_factor, area_shift)
    in_image = n - image * (height * width)
    row = _quotient(in_image, width_factor, width_shift)
    return image, row, in_image - row * width


@triton.jit
def within(row, col, height, width):
    """Whether a row and a column, negative ones too, lie in the image."""
    return (row.to(tl.uint32) < height) & (col.to(tl.uint32) < width)


@triton.jit
def add_tap(
    acc,  # [M, N]
    x_rows,  # [M] pointers
    w_rows,  # [N] pointers
    live,  # [M]: whether a pixel sees the tap
    is_out,  # [N]
    x_step,  # from a pixel to the one that it sees, in pixels
    w_step,  # from the first tap to this one, in rows of weights
    channel,  # [K]
    C_IN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc`` with the products of a block of channels under one tap."""
    x_live, w_live = live[:, None], is_out[:, None]
    if C_IN % BLOCK_K != 0:
        x_live = x_live & (channel < C_IN)[None, :]
        w_live = w_live & (channel < C_IN)[None, :]
    # words of 8 bytes, because asynchronous copies of 16 pass the first-level cache by
    WORD: tl.constexpr = 64 // x_rows.dtype.element_ty.primitive_bitwidth
    here = x_rows[:, None] + (x_step * C_IN + channel)[None, :]
    x = tl.load(tl.max_contiguous(here, [1, WORD]), mask=x_live, other=0.0)  # [M, K]
    w = tl.load(w_rows[:, None] + (w_step * C_IN + channel)[None, :], mask=w_live, other=0.0)  # [N, K]
    return tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
