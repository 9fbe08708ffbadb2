"""Evaluation: importance-weighted log-likelihoods with their errors and diagnostics."""

from . import adapters
from .active_units import active_units
from .khat import pareto_khat
from .log_likelihood import log_likelihood
from .log_weights import LogWeights, MeanLogProb
from .result import LogLikelihood

__all__ = ["LogLikelihood", "LogWeights", "MeanLogProb", "active_units", "adapters", "log_likelihood", "pareto_khat"]
