"""The definitions: one plain PyTorch function per operator, any dtype, importable anywhere."""

from .philox import philox

__all__ = ["philox"]
