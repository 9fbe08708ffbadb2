"""Families of proposals q(z | x): how many numbers the encoder gives for them, and the distribution they make."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvae.nn import MADE

from .autoregressive_gaussian import AutoregressiveGaussian
from .diagonal_gaussian import DiagonalGaussian
from .flows import AffineCoupling, Flow, InverseAutoregressive, PlanarTransform
from .full_gaussian import FullGaussian
from .priors import check_positive, family_and_options

__all__ = [
    "AutoregressiveProposal",
    "CouplingProposal",
    "DiagonalProposal",
    "FullProposal",
    "IAFProposal",
    "PlanarProposal",
    "Proposal",
    "as_proposal",
]


class Proposal(nn.Module):
    """A family q(z | parameters): an encoder ends in ``num_params`` numbers, calling the family on them gives q.

    Every q has ``rsample_and_log_prob``, and ``from_noise`` for samples that depend on their address alone.
    """

    name: str
    num_params: int

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        check_positive(latent_size=latent_size)
        self.latent_size = latent_size
        self.options: dict[str, Any] = {}

    def forward(self, params: Tensor) -> Distribution:
        """``params`` (N, num_params) -> a distribution with batch (N,) and event (latent_size,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define the distribution of its parameters")

    def config(self) -> dict[str, Any]:
        """What :func:`as_proposal` needs to build it again, ready for JSON."""
        return {"name": self.name, **self.options}

    def base(self, params: Tensor) -> tuple[DiagonalGaussian, Tensor]:
        """The Gaussian of the first 2 d parameters, and the others."""
        loc, log_scale, others = params.split([self.latent_size, self.latent_size, self._num_others], dim=-1)
        return DiagonalGaussian(loc, log_scale), others

    @property
    def _num_others(self) -> int:
        return self.num_params - 2 * self.latent_size


class DiagonalProposal(Proposal):
    """Independent Gaussians.

    Example:
        >>> DiagonalProposal(3)(torch.zeros(8, 6)).batch_shape
        torch.Size([8])
    """

    name = "diagonal"

    def __init__(self, latent_size: int) -> None:
        super().__init__(latent_size)
        self.num_params = 2 * latent_size

    def forward(self, params: Tensor) -> DiagonalGaussian:
        loc, log_scale = params.chunk(2, dim=-1)
        return DiagonalGaussian(loc, log_scale)


class FullProposal(Proposal):
    """A Gaussian with a full covariance: mean, logarithms of the diagonal of its Cholesky factor, the rest of it.

    Example:
        >>> proposal = FullProposal(3)
        >>> proposal(torch.zeros(8, proposal.num_params)).covariance_matrix.shape
        torch.Size([8, 3, 3])
    """

    name = "full"
    rows: Tensor
    columns: Tensor

    def __init__(self, latent_size: int) -> None:
        super().__init__(latent_size)
        self.num_params = 2 * latent_size + latent_size * (latent_size - 1) // 2
        rows, columns = torch.tril_indices(latent_size, latent_size, -1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, params: Tensor) -> FullGaussian:
        diagonal, others = self.base(params)
        tril = torch.diag_embed(diagonal.stddev)
        tril[..., self.rows, self.columns] = others
        return FullGaussian(diagonal.loc, tril)


class PlanarProposal(Proposal):
    """A Gaussian and planar steps whose parameters all come from the encoder; Rezende and Mohamed (2015), section 4.2.

    Args:
        latent_size: d.
        num_flows: steps; 10 to 80 in the paper.

    Example:
        >>> proposal = PlanarProposal(3, num_flows=4)
        >>> proposal(torch.zeros(8, proposal.num_params)).sample((5,)).shape
        torch.Size([5, 8, 3])
    """

    name = "planar"

    def __init__(self, latent_size: int, num_flows: int = 10) -> None:
        super().__init__(latent_size)
        check_positive(num_flows=num_flows)
        self.options = {"num_flows": num_flows}
        self.num_params = 2 * latent_size + num_flows * (2 * latent_size + 1)

    def forward(self, params: Tensor) -> Flow:
        base, others = self.base(params)
        size = self.latent_size
        steps = (step.split([size, size, 1], dim=-1) for step in others.chunk(self.options["num_flows"], dim=-1))
        return Flow(base, [PlanarTransform(v, w, b.squeeze(-1)) for v, w, b in steps])


class CouplingProposal(Proposal):
    """A Gaussian and affine coupling layers, which take a context from the encoder, halves exchanged in between.

    Args:
        latent_size: d, at least 2.
        num_flows: layers.
        hidden_features: of the network of each.
        context_features: numbers from the encoder beside mean and scale.

    Example:
        >>> proposal = CouplingProposal(3, hidden_features=(16,))
        >>> proposal(torch.zeros(8, proposal.num_params)).sample((5,)).shape
        torch.Size([5, 8, 3])
    """

    name = "coupling"

    def __init__(
        self,
        latent_size: int,
        num_flows: int = 4,
        hidden_features: Sequence[int] = (64,),
        context_features: int = 32,
    ) -> None:
        super().__init__(latent_size)
        check_positive(num_flows=num_flows, context_features=context_features)
        self.options = {"num_flows": num_flows, "hidden_features": list(hidden_features)}
        self.options["context_features"] = context_features
        self.num_params = 2 * latent_size + context_features
        self.flows = nn.ModuleList(
            AffineCoupling(latent_size, hidden_features, context_features=context_features, flip=number % 2 == 1)
            for number in range(num_flows)
        )

    def forward(self, params: Tensor) -> Flow:
        base, context = self.base(params)
        return Flow(base, [flow(context) for flow in self.flows])


class IAFProposal(Proposal):
    """A Gaussian and inverse autoregressive layers, with a context from the encoder.

    Kingma et al. (2016), algorithm 1. The Gaussian is larger by what the gates of new layers take away, so a new
    proposal is the diagonal Gaussian of the encoder: scales that start too small cost nats for long. Draws with their
    density are parallel; DReG and STL, which ask for the density at a point given, solve each layer once.

    Args:
        latent_size: d.
        num_flows: layers.
        hidden_features: of the :class:`fastvae.nn.MADE` of each.
        context_features: numbers from the encoder beside mean and scale.
        gate_bias: of the gated scale, sigmoid(s + gate_bias); None for an ungated one, exp(s).
        reverse: whether the order of the dimensions is reversed from layer to layer.

    Example:
        >>> proposal = IAFProposal(3, hidden_features=(16,))
        >>> proposal(torch.zeros(8, proposal.num_params)).sample((5,)).shape
        torch.Size([5, 8, 3])
    """

    name = "iaf"

    def __init__(
        self,
        latent_size: int,
        num_flows: int = 2,
        hidden_features: Sequence[int] = (128, 128),
        context_features: int = 32,
        gate_bias: float | None = 1.5,
        reverse: bool = True,
    ) -> None:
        super().__init__(latent_size)
        check_positive(num_flows=num_flows, context_features=context_features)
        self.options = {"num_flows": num_flows, "hidden_features": list(hidden_features)}
        self.options |= {"context_features": context_features, "gate_bias": gate_bias, "reverse": reverse}
        self.num_params = 2 * latent_size + context_features
        # what new gates take away, log(1 / sigmoid(gate_bias)) each
        self.log_gates = 0.0 if gate_bias is None else num_flows * math.log1p(math.exp(-gate_bias))
        forward = list(range(latent_size))
        self.flows = nn.ModuleList(
            InverseAutoregressive(
                latent_size,
                hidden_features,
                context_features=context_features,
                order=forward[::-1] if reverse and number % 2 else forward,
                gate_bias=gate_bias,
            )
            for number in range(num_flows)
        )

    def forward(self, params: Tensor) -> Flow:
        base, context = self.base(params)
        base = DiagonalGaussian(base.loc * math.exp(self.log_gates), base.log_scale + self.log_gates)
        return Flow(base, [flow(context) for flow in self.flows])


class AutoregressiveProposal(Proposal):
    r"""Gaussians one after the other, :math:`q(z | x) = \prod_i q(z_i | z_{<i}, x)`.

    The distribution is an :class:`AutoregressiveGaussian` whose context is all that the encoder gives: the mean and
    log-scale of a diagonal Gaussian, which a new network passes on as they are, and a context. Draws are
    reparameterised and take one pass, each unit of the network computed once; densities of given points are parallel.

    Args:
        latent_size: d.
        hidden_features: of the :class:`fastvae.nn.MADE`.
        context_features: numbers from the encoder beside mean and log-scale.

    Example:
        >>> proposal = AutoregressiveProposal(3, hidden_features=(16,))
        >>> proposal(torch.zeros(8, proposal.num_params)).sample((5,)).shape
        torch.Size([5, 8, 3])
    """

    name = "autoregressive"

    def __init__(
        self, latent_size: int, hidden_features: Sequence[int] = (128, 128), context_features: int = 32
    ) -> None:
        super().__init__(latent_size)
        check_positive(context_features=context_features)
        self.options = {"hidden_features": list(hidden_features), "context_features": context_features}
        self.num_params = 2 * latent_size + context_features
        # tanh: what an outlier does to the dimensions after it stays bounded
        self.net = MADE(latent_size, hidden_features, num_params=2, context_features=self.num_params, activation="tanh")
        last, condition = self.net.layers[-1], cast(nn.Linear, self.net.conditions[-1])
        with torch.no_grad():
            for parameter in (*last.parameters(), *condition.parameters()):
                parameter.zero_()
            ours = torch.arange(latent_size)
            condition.weight[2 * ours, ours] = 1.0  # the mean
            condition.weight[2 * ours + 1, latent_size + ours] = 1.0  # the log-scale

    def forward(self, params: Tensor) -> AutoregressiveGaussian:
        return AutoregressiveGaussian(self.net, params)


_PROPOSALS: dict[str, type[Proposal]] = {
    family.name: family
    for family in (
        DiagonalProposal,
        FullProposal,
        PlanarProposal,
        CouplingProposal,
        IAFProposal,
        AutoregressiveProposal,
    )
}


def as_proposal(value: Proposal | str | dict[str, Any], latent_size: int) -> Proposal:
    """A family of proposals from itself, its name, or its config ``{"name": ..., **options}``.

    Args:
        value: ``"diagonal"``, ``"full"``, ``"planar"``, ``"coupling"``, ``"iaf"``, ``"autoregressive"``, or a
            config.
        latent_size: d.

    Raises:
        TypeError: for anything else, or an option that the family does not have.
        ValueError: for an unknown name, or a family of another size.

    Example:
        >>> as_proposal({"name": "planar", "num_flows": 3}, 2).num_params
        19
    """
    if isinstance(value, Proposal):
        if value.latent_size != latent_size:
            raise ValueError(f"proposal must have latent_size {latent_size}, got {value.latent_size}")
        return value
    name, options = family_and_options("proposal", value, _PROPOSALS)
    return _PROPOSALS[name](latent_size, **options)
