"""Priors r(z) with parameters to learn: modules whose call gives the distribution."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .diagonal_gaussian import DiagonalGaussian
from .flows import Flow, MaskedAutoregressive
from .mixture import Mixture

__all__ = [
    "AutoregressivePrior",
    "MixturePrior",
    "Prior",
    "StandardNormal",
    "VampPrior",
    "as_prior",
    "check_positive",
    "family_and_options",
]


class Prior(nn.Module):
    """A family of distributions over z (d,), built from ``latent_size`` and what ``config`` returns."""

    name: str

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.options: dict[str, Any] = {}

    def forward(self) -> Distribution:
        raise NotImplementedError(f"{type(self).__name__} does not define its distribution")

    def config(self) -> dict[str, Any]:
        """What :func:`as_prior` needs to build it again, ready for JSON."""
        return {"name": self.name, **self.options}


class StandardNormal(Prior):
    """N(0, I).

    Example:
        >>> StandardNormal(3)().sample((2,)).shape
        torch.Size([2, 3])
    """

    name = "normal"
    zeros: Tensor

    def __init__(self, latent_size: int) -> None:
        super().__init__(latent_size)
        self.register_buffer("zeros", torch.zeros(latent_size), persistent=False)  # follows .to(device)

    def forward(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.zeros, self.zeros)


class MixturePrior(Prior):
    """A mixture of diagonal Gaussians with means, scales and weights to learn.

    The means start as draws of N(0, I), the scales at one.

    Args:
        latent_size: d.
        num_components: K.

    Example:
        >>> prior = MixturePrior(3, num_components=10)
        >>> prior().log_prob(torch.zeros(5, 2, 3)).shape
        torch.Size([5, 2])
    """

    name = "mixture"

    def __init__(self, latent_size: int, num_components: int = 100) -> None:
        super().__init__(latent_size)
        check_positive(num_components=num_components)
        self.options = {"num_components": num_components}
        self.loc = nn.Parameter(torch.randn(num_components, latent_size))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_size))
        self.log_weights = nn.Parameter(torch.zeros(num_components))

    def forward(self) -> Mixture:
        return Mixture(DiagonalGaussian(self.loc, self.log_scale), self.log_weights)


class VampPrior(Prior):
    r"""The mixture of the proposals of learned pseudo-inputs, :math:`\frac1K \sum_k q(z | u_k)`.

    Tomczak and Welling: "VAE with a VampPrior" (2018), equation 9. Pseudo-inputs live in the range of the data, by a
    clamp as in the paper. They start near its middle: from images, whose proposals are everywhere at first, nothing
    keeps all scales from shrinking to zero together. Samples are of the same mixture that was trained.

    Args:
        latent_size: d.
        event_shape: (C, H, W) of the pseudo-inputs.
        num_components: K.
        top: the largest value of the data; the smallest is 0.

    Example:
        >>> prior = VampPrior(2, (1, 4, 4), num_components=10)
        >>> encoder = lambda x: DiagonalGaussian(x.flatten(1)[:, :2], torch.zeros(2))
        >>> prior(encoder).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    name = "vamp"

    def __init__(
        self, latent_size: int, event_shape: Sequence[int], num_components: int = 500, top: float = 1.0
    ) -> None:
        super().__init__(latent_size)
        check_positive(num_components=num_components)
        self.options = {"num_components": num_components}  # shape and range are the model's
        self.top = top
        self.pseudo_inputs = nn.Parameter(0.5 + 0.1 * torch.randn(num_components, *event_shape))

    def forward(self, proposal: Callable[[Tensor], Distribution] | None = None) -> Mixture:
        """``proposal(x)``: the encoder, which the model owns."""
        if proposal is None:
            raise TypeError("a VampPrior is made of the model's proposal: call it as prior(model.proposal)")
        return Mixture(proposal(self.top * self.pseudo_inputs.clamp(0.0, 1.0)))


class AutoregressivePrior(Prior):
    """A masked autoregressive flow over z: densities in one parallel pass, draws by one pass, too.

    Papamakarios et al. (2017); the order is reversed from layer to layer. It starts as N(0, I). Draws cost what one
    density costs, for units are computed once, in d steps; see :meth:`fastvae.nn.MADE.solve`.

    Args:
        latent_size: d.
        num_flows: layers.
        hidden_features: of the MADE of each.

    Example:
        >>> prior = AutoregressivePrior(3, hidden_features=(16,))
        >>> z = prior().sample((4,))
        >>> prior().log_prob(z).shape
        torch.Size([4])
    """

    name = "autoregressive"
    zeros: Tensor

    def __init__(self, latent_size: int, num_flows: int = 2, hidden_features: Sequence[int] = (128, 128)) -> None:
        super().__init__(latent_size)
        check_positive(num_flows=num_flows)
        self.options = {"num_flows": num_flows, "hidden_features": list(hidden_features)}
        self.register_buffer("zeros", torch.zeros(latent_size), persistent=False)
        forward = list(range(latent_size))
        orders = [forward[::-1] if number % 2 else forward for number in range(num_flows)]
        self.flows = nn.ModuleList(MaskedAutoregressive(latent_size, hidden_features, order=order) for order in orders)

    def forward(self) -> Flow:
        return Flow(DiagonalGaussian(self.zeros, self.zeros), [flow() for flow in self.flows])


_PRIORS: dict[str, type[Prior]] = {
    prior.name: prior for prior in (StandardNormal, MixturePrior, VampPrior, AutoregressivePrior)
}


def as_prior(
    value: Prior | str | dict[str, Any], latent_size: int, event_shape: Sequence[int], top: float = 1.0
) -> Prior:
    """A prior from itself, its name, or its config ``{"name": ..., **options}``.

    Args:
        value: ``"normal"``, ``"mixture"``, ``"vamp"``, ``"autoregressive"``, or a config.
        latent_size: d.
        event_shape: (C, H, W) of the data, for pseudo-inputs.
        top: the largest value of the data, likewise.

    Raises:
        TypeError: for anything else, or an option that the prior does not have.
        ValueError: for an unknown name, or a prior of another size.

    Example:
        >>> as_prior({"name": "mixture", "num_components": 7}, 3, (1, 4, 4)).config()
        {'name': 'mixture', 'num_components': 7}
    """
    if isinstance(value, Prior):
        if value.latent_size != latent_size:
            raise ValueError(f"prior must have latent_size {latent_size}, got {value.latent_size}")
        return value
    name, options = family_and_options("prior", value, _PRIORS)
    if name == VampPrior.name:
        options |= {"event_shape": event_shape, "top": top}
    return _PRIORS[name](latent_size, **options)


def family_and_options(what: str, value: Any, families: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the options of a config, or of a name alone, that one of ``families`` takes."""
    options = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, dict) else {}
    name = options.pop("name", None)
    if name is None:
        raise TypeError(f"{what} must be a name or a config with a name, got {value!r}")
    if name not in families:
        raise ValueError(f"{what} must be one of {sorted(families)}, got {name!r}")
    known = set(inspect.signature(families[name].__init__).parameters) - {"self", "latent_size", "event_shape", "top"}
    if unknown := options.keys() - known:
        raise TypeError(f"the {what} {name!r} has options {sorted(known)}, got {sorted(unknown)}")
    return name, options


def check_positive(**sizes: int) -> None:
    """Raise for what is no positive integer, by the name of the argument."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
