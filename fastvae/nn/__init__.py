from .locally_masked_conv2d import LocallyMaskedConv2d
from .masked_conv2d import MaskedConv2d

__all__ = ["LocallyMaskedConv2d", "MaskedConv2d"]
