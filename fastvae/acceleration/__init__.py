"""The fast masked convolution for models that people already have."""

from .accelerate import accelerate
from .report import Report, Skipped, Swapped, restore

__all__ = ["Report", "Skipped", "Swapped", "accelerate", "restore"]
