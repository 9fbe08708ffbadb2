"""Exact fast sampling of any autoregressive network: trace, plan, run, certify."""

from .certify import Certificate, CertificateError
from .naive import naive_samples
from .plan import Plan
from .sampler import Sampler, Samples, compile_sampler
from .trace import UnsupportedModelError

__all__ = [
    "Certificate",
    "CertificateError",
    "Plan",
    "Sampler",
    "Samples",
    "UnsupportedModelError",
    "compile_sampler",
    "naive_samples",
]
