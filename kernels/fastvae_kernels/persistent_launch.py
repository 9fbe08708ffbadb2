"""Launches of the persistent sampling kernels."""

from dataclasses import dataclass

import torch
import triton

from .masked_conv2d_launch import precision_of
from .persistent_config import choose_config, images_per_program
from .persistent_plain import plain_kernel

__all__ = ["Geometry", "Noise", "PlainStack", "num_slots", "sample_plain"]


@dataclass(frozen=True)
class Geometry:
    """An image (values, height, width) and its schedule: pixel (i, j) at step j + skew * i."""

    num_values: int
    height: int
    width: int
    skew: int

    @property
    def num_steps(self) -> int:
        return self.width + self.skew * (self.height - 1)


@dataclass(frozen=True)
class Noise:
    """Uniform numbers: those at (seed, first_id + image, pixel, channel), or given ones (B, V, H, W) float32."""

    seed: int = 0
    first_id: int = 0
    given: torch.Tensor | None = None


@dataclass(frozen=True)
class PlainStack:
    """A first masked convolution, ``L`` later ones with one set of taps and 1x1 layers around them, then heads.

    C is a power of two of at least 16; what a net has less of is zero. ``a`` is the activation, ``h`` the state:
    u = masked(a(h)) or masked(a(before(a(h)))), then u = after(a(u)) if given, then h = h + u or h = u;
    then h = head(a(h)) for each head, and the parameters are last(a(h)).

    Attributes:
        image_taps: (R, 3) int32 rows, columns and channel of what the first layer reads; channel -1 for padding.
        first: (R, C).
        taps: (T, 2) int32 rows and columns of what the later layers read, in an order that is the order of the sum.
        masked: (L, T + 1, C in, C out), the pixel itself last.
        before, after: (L, C, C) or None.
        heads: (N, C, C).
        last: (C, V * P), parameters of a value side by side, V and P powers of two.
        bias: (1 + 3 L + N, H * W or 1, B or 1, C) float32: first, then before, masked and after of each layer, heads.
        last_bias: (V * P,) float32.
        draw: "bernoulli", "categorical" or "gaussian".
        num_params: of each value.
        activation: "relu", "elu" or "tanh".
        has_residual: whether a layer adds to its input.
        ring_length: diagonals that a later layer looks back, its own included.
        scale, shift: the first layer reads scale * x + shift, and zero outside.
    """

    image_taps: torch.Tensor
    first: torch.Tensor
    taps: torch.Tensor
    masked: torch.Tensor
    before: torch.Tensor | None
    after: torch.Tensor | None
    heads: torch.Tensor
    last: torch.Tensor
    bias: torch.Tensor
    last_bias: torch.Tensor
    draw: str
    num_params: int
    activation: str
    has_residual: bool
    ring_length: int
    scale: float
    shift: float


def num_slots(geometry: Geometry) -> int:
    """A power of two that holds the pixels of any step."""
    return triton.next_power_of_2(min(geometry.height, triton.cdiv(geometry.width, geometry.skew)))


def sample_plain(
    net: PlainStack, geometry: Geometry, num_images: int, noise: Noise, images_per_tile: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images (B, V, H, W) in the type of the weights, and their log-probabilities (B,) float64, in one launch."""
    dtype, device, channels = net.first.dtype, net.first.device, net.first.shape[1]
    config, slots = choose_config("plain", dtype, channels), num_slots(geometry)
    images = images_per_tile or images_per_program(config, slots, num_images, _processors(device))
    programs, layers = triton.cdiv(num_images, images), net.masked.shape[0]
    shape = (num_images, geometry.num_values, geometry.height, geometry.width)
    drawn = torch.empty(shape, dtype=dtype, device=device)
    log_prob = torch.empty(num_images, dtype=torch.float64, device=device)
    ring = torch.empty(programs, layers, net.ring_length, slots * images * channels, dtype=dtype, device=device)
    plain_kernel[(programs,)](
        image_ptr=drawn,
        log_prob_ptr=log_prob,
        noise_ptr=noise.given,
        ring_ptr=ring,
        first_ptr=net.first,
        image_tap_ptr=net.image_taps,
        tap_ptr=net.taps,
        weight_ptr=net.masked,
        before_ptr=net.before,
        after_ptr=net.after,
        head_ptr=net.heads,
        last_ptr=net.last,
        bias_ptr=net.bias,
        last_bias_ptr=net.last_bias,
        num_images=num_images,
        height=geometry.height,
        width=geometry.width,
        num_layers=layers,
        num_heads=net.heads.shape[0],
        num_taps=net.taps.shape[0],
        skew=geometry.skew,
        num_steps=geometry.num_steps,
        length=net.ring_length,
        first_id=noise.first_id,
        seed=_signed(noise.seed),
        scale=net.scale,
        shift=net.shift,
        **_bias_strides(net.bias),
        KIND=net.draw,
        ACTIVATION=net.activation,
        HAS_RESIDUAL=net.has_residual,
        NUM_VALUES=geometry.num_values,
        NUM_PARAMS=net.num_params,
        VALUES=net.last.shape[1] // triton.next_power_of_2(net.num_params),
        PARAMS=triton.next_power_of_2(net.num_params),
        REDUCED=net.first.shape[0],
        CHANNELS=channels,
        SLOTS=slots,
        IMAGES=images,
        PRECISION=precision_of(dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
    return drawn, log_prob


def _bias_strides(bias: torch.Tensor) -> dict[str, int | bool]:
    """Of (layers, pixels or 1, images or 1, channels): 0 where there is one for all."""
    layer, pixel, image, _ = bias.stride()
    pixel, image = pixel if bias.shape[1] > 1 else 0, image if bias.shape[2] > 1 else 0
    return {"bias_layer": layer, "bias_pixel": pixel, "bias_image": image, "VARIES": pixel > 0 or image > 0}


def _signed(seed: int) -> int:
    """The same 64 bits as a signed number."""
    return seed - 2**64 if seed >= 2**63 else seed


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
