from .causal_stack import CausalLayer, CausalStack
from .gated_masked_conv2d import GatedMaskedConv2d
from .locally_masked_conv2d import LocallyMaskedConv2d
from .made import MADE
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear
from .nade import NADE

__all__ = [
    "MADE",
    "NADE",
    "CausalLayer",
    "CausalStack",
    "GatedMaskedConv2d",
    "LocallyMaskedConv2d",
    "MaskedConv2d",
    "MaskedLinear",
]
