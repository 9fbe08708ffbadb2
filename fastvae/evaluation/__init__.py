"""Evaluation: importance-weighted log-likelihoods with their errors and diagnostics."""

from . import adapters
from .active_units import active_units
from .blocks import BoundCurve, Jackknife
from .calibration import Calibration, calibrate
from .diagnose import diagnose
from .diagnosis import Diagnosis
from .distributed import log_likelihood_distributed
from .khat import pareto_khat
from .log_likelihood import log_likelihood
from .log_weights import LogWeights, MeanLogProb
from .origin import Origin
from .refine import refine
from .result import LogLikelihood

__all__ = [
    "BoundCurve",
    "Calibration",
    "Diagnosis",
    "Jackknife",
    "LogLikelihood",
    "LogWeights",
    "MeanLogProb",
    "Origin",
    "active_units",
    "adapters",
    "calibrate",
    "diagnose",
    "log_likelihood",
    "log_likelihood_distributed",
    "pareto_khat",
    "refine",
]
