"""Exact fast sampling of any autoregressive network: trace, plan, run, certify."""

from .certify import Certificate, CertificateError
from .compile import compile_sampler
from .inverse import Inverse, compile_inverse
from .naive import naive_samples
from .plan import Plan
from .sampler import Sampler, Samples
from .trace import UnsupportedModelError

__all__ = [
    "Certificate",
    "CertificateError",
    "Inverse",
    "Plan",
    "Sampler",
    "Samples",
    "UnsupportedModelError",
    "compile_inverse",
    "compile_sampler",
    "naive_samples",
]
