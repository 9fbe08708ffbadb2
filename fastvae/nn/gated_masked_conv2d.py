"""``GatedMaskedConv2d``: the masked convolution of gated PixelCNNs with its conditioning and its gate."""

from typing import Any

from torch import Tensor, nn

from fastvae.ops.gated_masked_conv2d import check_gated, gate_in_place, gated_masked_conv2d_by_taps
from fastvae.ops.masked_conv2d import NamedMask, decide, taps_for
from fastvae.ops.masked_conv2d_calls import key_of, known_call
from fastvae.ops.masked_conv2d_checks import check_arguments, check_channels, check_mask, check_tensor

from .masked_conv2d import MaskedConv2d

__all__ = ["GatedMaskedConv2d"]


class GatedMaskedConv2d(MaskedConv2d):
    """A masked convolution, one half of whose channels gates the other; :func:`fastvae.ops.gated_masked_conv2d`.

    tanh(f + condition_f) * sigmoid(g + condition_g): weight and bias have ``2 * out_channels`` channels. A condition
    enters by an unmasked path, a 1x1 convolution without bias named ``condition``, so that even the first pixel sees
    all of it.

    Args:
        in_channels: channels of the input.
        out_channels: C, channels of the output.
        kernel_size: odd, one number or (rows, columns).
        dilation: the distance between taps.
        bias: whether to learn one.
        condition_channels: F, the size of the condition; 0 for none.
        device: as in ``nn.Conv2d``.
        dtype: as in ``nn.Conv2d``.
        mask: as in :class:`MaskedConv2d`.

    Shapes:
        (N, in_channels, H, W), condition (N, F) or (N, F, H, W), to (N, out_channels, H, W).

    Raises:
        ValueError: for an argument that is not served, with the one that is.

    Example:
        >>> import torch
        >>> layer = GatedMaskedConv2d(3, 16, 3, mask="B", condition_channels=10)
        >>> layer(torch.zeros(2, 3, 8, 8), torch.zeros(2, 10)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        dilation: int = 1,
        bias: bool = True,
        condition_channels: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        mask: NamedMask | Tensor,
    ) -> None:
        check_channels("out_channels", out_channels)  # before it is doubled
        check_channels("condition_channels", condition_channels, least=0)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_channels, 2 * out_channels, kernel_size, dilation=dilation, bias=bias, mask=mask, **made)
        self.condition_channels = condition_channels
        has_condition = condition_channels > 0
        self.condition = (
            nn.Conv2d(condition_channels, 2 * out_channels, 1, bias=False, **made) if has_condition else None
        )

    def forward(self, x: Tensor, condition: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """The gated layer.

        Args:
            x: (N, in_channels, H, W).
            condition: (N, F) or (N, F, H, W); None exactly if ``condition_channels`` is 0.
            added: (N, 2C, H, W), added before the gate, for what another stack of layers has to say.

        Returns:
            (N, C, H, W).
        """
        weight, bias, dilation = self.weight, self.bias, self.dilation[0]
        key = key_of("gated", self.mask_name, dilation, 1, x, weight, bias)
        call = known_call(key)
        if call is None:
            check_arguments(x, weight, bias, dilation)
            check_gated(x, weight, None)
            if key is not None:  # what is remembered serves others: not what an attribute was before it was replaced
                check_mask(self.mask, weight, 1)
                call = decide(key, x, weight, taps_for(self.mask, weight, 1), self.mask, dilation)
        before_gate = self._before_gate(x, condition)
        if added is not None:
            self._check_added(x, added)
            if before_gate is not None:
                added = added + (before_gate[:, :, None, None] if before_gate.ndim == 2 else before_gate)
            before_gate = added
        if call is not None:
            return gate_in_place(call(x, weight, bias), before_gate)
        return gated_masked_conv2d_by_taps(x, weight, bias, before_gate, self._taps, self.mask, dilation)

    def _check_added(self, x: Tensor, added: Tensor) -> None:
        check_tensor("added", added, x)
        expected = (x.shape[0], self.weight.shape[0], *x.shape[2:])
        if tuple(added.shape) != expected:
            raise ValueError(f"added must have shape {expected}, got {tuple(added.shape)}")

    def _before_gate(self, x: Tensor, condition: Tensor | None) -> Tensor | None:
        size = self.condition_channels
        if (condition is None) != (self.condition is None):
            takes = f"a condition of {size} channels" if size else "no condition"
            if condition is not None:
                check_tensor("condition", condition, x)
            got = "none" if condition is None else f"one of shape {tuple(condition.shape)}"
            raise ValueError(f"this layer takes {takes}, got {got}")
        if condition is None or self.condition is None:
            return None
        check_tensor("condition", condition, x)
        if tuple(condition.shape) == (x.shape[0], size):
            return self.condition(condition[:, :, None, None]).flatten(1)
        if tuple(condition.shape) == (x.shape[0], size, *x.shape[2:]):
            return self.condition(condition)
        vector, maps = (x.shape[0], size), (x.shape[0], size, *x.shape[2:])
        raise ValueError(f"condition must have shape {vector} or {maps}, got {tuple(condition.shape)}")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gated"
