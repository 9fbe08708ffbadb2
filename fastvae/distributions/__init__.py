"""Likelihoods, priors and proposals, by the conventions of torch.distributions."""

from typing import Any

from .autoregressive import Autoregressive
from .autoregressive_gaussian import AutoregressiveGaussian
from .bernoulli import Bernoulli, BernoulliLikelihood
from .categorical import Categorical, CategoricalLikelihood
from .chained import Chained
from .conv_heads import ConvBernoulli, ConvCategorical, ConvGaussian, ConvLogisticMixture, likelihood_of_conv1x1
from .diagonal_gaussian import DiagonalGaussian
from .flows import Flow
from .full_gaussian import FullGaussian
from .gaussian import Gaussian, GaussianLikelihood
from .kl import kl_by_dimension
from .likelihood import ImageDistribution, Likelihood, checked_data
from .linear_heads import (
    LinearBernoulli,
    LinearCategorical,
    LinearGaussian,
    LinearLogisticMixture,
    likelihood_of_linear,
)
from .logistic_mixture import LogisticMixture, LogisticMixtureLikelihood
from .mixture import Mixture
from .priors import AutoregressivePrior, MixturePrior, Prior, StandardNormal, VampPrior, as_prior
from .proposals import (
    AutoregressiveProposal,
    CouplingProposal,
    DiagonalProposal,
    FullProposal,
    IAFProposal,
    PlanarProposal,
    Proposal,
    as_proposal,
)

__all__ = [
    "Autoregressive",
    "AutoregressiveGaussian",
    "AutoregressivePrior",
    "AutoregressiveProposal",
    "Bernoulli",
    "BernoulliLikelihood",
    "Categorical",
    "CategoricalLikelihood",
    "Chained",
    "ConvBernoulli",
    "ConvCategorical",
    "ConvGaussian",
    "ConvLogisticMixture",
    "CouplingProposal",
    "DiagonalGaussian",
    "DiagonalProposal",
    "Flow",
    "FullGaussian",
    "FullProposal",
    "Gaussian",
    "GaussianLikelihood",
    "IAFProposal",
    "ImageDistribution",
    "Likelihood",
    "LinearBernoulli",
    "LinearCategorical",
    "LinearGaussian",
    "LinearLogisticMixture",
    "LogisticMixture",
    "LogisticMixtureLikelihood",
    "Mixture",
    "MixturePrior",
    "PlanarProposal",
    "Prior",
    "Proposal",
    "StandardNormal",
    "VampPrior",
    "as_likelihood",
    "as_prior",
    "as_proposal",
    "checked_data",
    "kl_by_dimension",
    "likelihood",
    "likelihood_of_conv1x1",
    "likelihood_of_linear",
]

_FAMILIES: dict[str, type[Likelihood]] = {
    family.name: family
    for family in (BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, LogisticMixtureLikelihood)
}


def likelihood(name: str, **options: Any) -> Likelihood:
    """A likelihood family by name, as configuration files and the command line give it.

    Args:
        name: ``"bernoulli"``, ``"categorical"``, ``"gaussian"`` or ``"logistic_mixture"``.
        options: arguments of the family, for example ``num_levels=17`` or ``scale="pixel"``.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an option the family does not have.

    Example:
        >>> likelihood("categorical", num_levels=17)
        CategoricalLikelihood(num_levels=17)
    """
    if name not in _FAMILIES:
        raise ValueError(f"likelihood must be one of {sorted(_FAMILIES)}, got {name!r}")
    return _FAMILIES[name](**options)


def as_likelihood(value: Likelihood | str | dict[str, Any]) -> Likelihood:
    """A family from itself, its name, or its config ``{"name": ..., **options}``."""
    if isinstance(value, Likelihood):
        return value
    if isinstance(value, str):
        return likelihood(value)
    if isinstance(value, dict) and "name" in value:
        return likelihood(**value)
    raise TypeError(f"likelihood must be a Likelihood, a name or a config with a name, got {value!r}")
