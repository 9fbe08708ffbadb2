"""A small training loop that can be interrupted at any step and goes on to the same result."""

from .averages import mean_loss
from .fit import fit
from .interruption import Interrupted
from .run import Fit

__all__ = ["Fit", "Interrupted", "fit", "mean_loss"]
