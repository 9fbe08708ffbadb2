"""The functional API: validate, dispatch to the fastest implementation, differentiate."""

from ._dispatch import backend
from .random import normal, uniform

__all__ = ["backend", "normal", "uniform"]
