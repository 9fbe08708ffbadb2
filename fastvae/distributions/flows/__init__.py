"""Normalising flows: bijections of vectors with their log-determinants, and the distribution that they make."""

from .autoregressive import AutoregressiveTransform, InverseAutoregressive, MaskedAutoregressive
from .coupling import AffineCoupling, AffineCouplingTransform
from .flow import Flow
from .planar import PlanarTransform
from .transform import VectorTransform, to_data, to_noise

__all__ = [
    "AffineCoupling",
    "AffineCouplingTransform",
    "AutoregressiveTransform",
    "Flow",
    "InverseAutoregressive",
    "MaskedAutoregressive",
    "PlanarTransform",
    "VectorTransform",
    "to_data",
    "to_noise",
]
