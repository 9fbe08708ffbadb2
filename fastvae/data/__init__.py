"""Image data sets with a stated protocol: scikit-learn's digits, .npz files, idx files."""

from .dataset import Data
from .load import load
from .noise import binarize, dequantize, frozen_noise

__all__ = ["Data", "binarize", "dequantize", "frozen_noise", "load"]
