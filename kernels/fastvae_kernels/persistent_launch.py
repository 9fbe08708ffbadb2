"""Launches of the persistent sampling kernels."""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from .masked_conv2d_launch import precision_of
from .persistent_config import MOST_REGISTERS, Config, choose_config
from .persistent_gated import gated_kernel
from .persistent_plain import plain_kernel

__all__ = ["GatedStacks", "Geometry", "Noise", "PlainStack", "num_slots", "sample_gated", "sample_plain"]


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
        taps: (T + 3, 2) int32 rows and columns of what the later layers read, in the order of the sum; then anything.
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


@dataclass(frozen=True)
class GatedStacks:
    """A gated PixelCNN of ``L`` layers, the first of which reads the image, then heads as in :class:`PlainStack`.

    v = gate(vertical(v)), h = (h +) mix(gate(horizontal(h) + link(v))), gate(f, g) = tanh(f) sigmoid(g); the two of
    a gate are side by side: 2 C columns.

    Attributes:
        image_taps, image_row_taps: (R, 3) int32 as in :class:`PlainStack`, of the first vertical and horizontal layer.
        first, first_row: (R, 2 C).
        taps, row_taps: (T + 3, 2) int32 of later layers, what earlier steps have computed; then anything.
        vertical: (L, T + newest, C, 2 C), zero for the first layer; newest is 1 if ``newest`` is given, else 0.
        horizontal: (L, T + 1 + links, C, 2 C): the taps, the pixel itself, the link, in two parts if it is not gated.
        mix: (L, C, C).
        heads, last, last_bias, draw, num_params, activation, scale, shift: as in :class:`PlainStack`.
        gate_bias: (2 L, H * W or 1, B or 1, 2 C) float32: vertical, and horizontal with link, of each layer.
        bias: (L + N, 1, 1, C) float32: mix, heads.
        has_residual: whether a layer adds to its horizontal input.
        link_rows: 1 if a pixel is linked to the vertical stack of the row above, 0 if to that of its own row.
        link_gated: whether the link starts after the vertical gate.
        lead, lead_step: layer l of the vertical stack is lead - l * lead_step steps ahead of the draw.
        newest: columns from a pixel to what a vertical layer reads of the same step, None if it reads no such thing.
        ring_length, row_ring_length: diagonals that vertical and horizontal layers look back, their own included.
    """

    image_taps: torch.Tensor
    image_row_taps: torch.Tensor
    first: torch.Tensor
    first_row: torch.Tensor
    taps: torch.Tensor
    row_taps: torch.Tensor
    vertical: torch.Tensor
    horizontal: torch.Tensor
    mix: torch.Tensor
    heads: torch.Tensor
    last: torch.Tensor
    gate_bias: torch.Tensor
    bias: torch.Tensor
    last_bias: torch.Tensor
    draw: str
    num_params: int
    activation: str
    has_residual: bool
    link_rows: int
    link_gated: bool
    lead: int
    lead_step: int
    newest: int | None
    ring_length: int
    row_ring_length: int
    scale: float
    shift: float


def num_slots(geometry: Geometry) -> int:
    """A power of two that holds the pixels of any step."""
    return triton.next_power_of_2(min(geometry.height, triton.cdiv(geometry.width, geometry.skew)))


def sample_plain(
    net: PlainStack, geometry: Geometry, num_images: int, noise: Noise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images (B, V, H, W) in the type of the weights, and their log-probabilities (B,) float64, in one launch."""
    layers = net.masked.shape[0]
    tile = _Tile.of("plain", net, geometry, num_images, layers * net.ring_length)
    plain_kernel[(tile.programs,)](
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
        num_layers=layers,
        num_heads=net.heads.shape[0],
        num_taps=net.taps.shape[0] - 3,
        length=net.ring_length,
        HAS_RESIDUAL=net.has_residual,
        REDUCED=net.first.shape[0],
        **_bias_strides(net.bias),
        **tile.arguments(net, geometry, noise),
    )
    return tile.images, tile.log_prob


def sample_gated(
    net: GatedStacks, geometry: Geometry, num_images: int, noise: Noise
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`sample_plain`."""
    layers = net.mix.shape[0]
    diagonals = layers * (net.ring_length + net.row_ring_length)
    tile = _Tile.of("gated", net, geometry, num_images, diagonals)
    gated_kernel[(tile.programs,)](
        first_ptr=net.first,
        first_row_ptr=net.first_row,
        image_tap_ptr=net.image_taps,
        image_row_tap_ptr=net.image_row_taps,
        tap_ptr=net.taps,
        row_tap_ptr=net.row_taps,
        weight_ptr=net.vertical,
        row_weight_ptr=net.horizontal,
        mix_ptr=net.mix,
        head_ptr=net.heads,
        last_ptr=net.last,
        gate_bias_ptr=net.gate_bias,
        bias_ptr=net.bias,
        last_bias_ptr=net.last_bias,
        num_layers=layers,
        num_heads=net.heads.shape[0],
        num_taps=net.taps.shape[0] - 3,
        num_row_taps=net.row_taps.shape[0] - 3,
        length=net.ring_length,
        row_length=net.row_ring_length,
        lead=net.lead,
        lead_step=net.lead_step,
        newest=net.newest or 0,
        HAS_RESIDUAL=net.has_residual,
        NUM_NEWEST=int(net.newest is not None),
        LINK_ROWS=net.link_rows,
        LINK_GATED=net.link_gated,
        REDUCED=net.first.shape[0],
        REDUCED_ROW=net.first_row.shape[0],
        **_bias_strides(net.gate_bias),
        **tile.arguments(net, geometry, noise),
    )
    return tile.images, tile.log_prob


@dataclass(frozen=True)
class _Tile:
    """What a launch allocates, and how it is cut."""

    images: torch.Tensor  # (B, V, H, W)
    log_prob: torch.Tensor  # (B,)
    ring: torch.Tensor
    programs: int
    slots: int
    per_program: int
    config: Config

    @classmethod
    def of(
        cls,
        kernel: str,
        net: PlainStack | GatedStacks,
        geometry: Geometry,
        num_images: int,
        diagonals: int,
    ) -> "_Tile":
        dtype, device, channels = net.heads.dtype, net.heads.device, net.heads.shape[-1]
        slots = num_slots(geometry)
        config = choose_config(kernel, dtype, channels, slots, num_images, _processors(device))
        per_program = config.rows // slots
        programs = triton.cdiv(num_images, per_program)
        shape = (num_images, geometry.num_values, geometry.height, geometry.width)
        return cls(
            images=torch.empty(shape, dtype=dtype, device=device),
            log_prob=torch.empty(num_images, dtype=torch.float64, device=device),
            ring=torch.empty(programs, diagonals * slots * per_program * channels, dtype=dtype, device=device),
            programs=programs,
            slots=slots,
            per_program=per_program,
            config=config,
        )

    def arguments(self, net: PlainStack | GatedStacks, geometry: Geometry, noise: Noise) -> dict[str, Any]:
        """What both kernels take."""
        params = triton.next_power_of_2(net.num_params)
        return {
            "image_ptr": self.images,
            "log_prob_ptr": self.log_prob,
            "noise_ptr": noise.given,
            "ring_ptr": self.ring,
            "num_images": self.images.shape[0],
            "height": geometry.height,
            "width": geometry.width,
            "skew": geometry.skew,
            "num_steps": geometry.num_steps,
            "first_id": noise.first_id,
            "seed": _signed(noise.seed),
            "scale": net.scale,
            "shift": net.shift,
            "KIND": net.draw,
            "ACTIVATION": net.activation,
            "NUM_VALUES": geometry.num_values,
            "NUM_PARAMS": net.num_params,
            "VALUES": net.last.shape[1] // params,
            "PARAMS": params,
            "CHANNELS": net.last.shape[0],
            "SLOTS": self.slots,
            "IMAGES": self.per_program,
            "PRECISION": precision_of(self.images.dtype),
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
            "maxnreg": MOST_REGISTERS,
            "enable_fp_fusion": True,
        }


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
