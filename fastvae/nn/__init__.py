from .masked_conv2d import MaskedConv2d

__all__ = ["MaskedConv2d"]
