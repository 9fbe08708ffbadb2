"""``elbo`` and ``iwae``: the bounds, with a choice of gradient estimators and of memory."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from fastvae.evaluation.arguments import (
    Joint,
    callables,
    checked_ids,
    checked_modules,
    likelihood_of,
    modules_of,
    noise_dtype,
)

from .chunks import make_chunks
from .draws import Draws
from .estimator import Estimator
from .one_pass import one_pass
from .probe import leaves_of, probe
from .two_pass import TwoPass

__all__ = ["elbo", "iwae"]

LogProb = Callable[[Tensor, Any], Tensor]  # z is a tensor, or a tuple of layers
ElboEstimator = Literal["elbo", "stl"]
IwaeEstimator = Literal["iwae", "dreg", "stl", "vr"]


def elbo(
    model: Any = None,
    x: Tensor | None = None,
    num_samples: int = 1,
    analytic_kl: bool | None = None,
    *,
    estimator: ElboEstimator = "elbo",
    proposal: Callable[[Tensor], Any] | None = None,
    log_joint: LogProb | None = None,
    max_bytes: int | None = None,
    seed: int | None = None,
    ids: Tensor | None = None,
    modules: Sequence[nn.Module] = (),
) -> Tensor:
    r"""The evidence lower bound, :math:`E_q[\log p(x|z)] - KL(q(z|x) \| r(z))`, with M samples.

    Kingma and Welling (2014), equations 2 and 3: with the closed-form KL where there is one, else with the
    Monte-Carlo estimate :math:`\log q(z|x) - \log r(z)` of the same samples.

    Args:
        model, x, proposal, log_joint, max_bytes, seed, ids, modules: see :func:`iwae`.
        num_samples: M, samples of z for each datapoint.
        analytic_kl: True demands the closed form, False the estimate, None takes the closed form if torch knows it
            (and the arguments allow it: a ``model``, and the plain estimator).
        estimator: ``"elbo"`` differentiates the value as it is. ``"stl"`` leaves q's own parameters out of log q
            (Roeder, Wu, Duvenaud: "Sticking the landing", 2017): the same gradient in expectation, and without noise
            where q is the posterior. It estimates the KL. Prefer it for a mixture, a VampPrior or a flow as the
            prior: there the value is estimated anyway, and the noise of ``"elbo"`` may cost more than the prior gains.

    Returns:
        (N,) nats, differentiable by reparameterisation.

    Raises:
        TypeError: if an argument is of the wrong kind, or the proposal cannot be reparameterised.
        ValueError: if a value or shape does not fit, or ``analytic_kl`` is True and there is no closed form.

    Example:
        >>> import torch
        >>> from fastvae.models import VAE
        >>> elbo(VAE((1, 8, 8)), torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3])
    """
    _check_choice(estimator, get_args(ElboEstimator))
    if analytic_kl and (estimator == "stl" or model is None):
        what = "estimator='stl' estimates the KL" if estimator == "stl" else "log_joint= gives no prior of its own"
        raise ValueError(f"analytic_kl=True, but {what}; pass None or False")
    bound = _Bound(model, x, num_samples, proposal, log_joint, max_bytes, seed, ids, modules)
    if estimator == "stl":
        return bound(bound.log_joint, Estimator(alpha=1.0, log_q="path"))
    if isinstance(bound.log_joint, Joint) and analytic_kl is not False:
        prior = bound.log_joint.prior
        try:
            kl = kl_divergence(bound.q, prior)
        except NotImplementedError:
            if analytic_kl:
                raise ValueError(
                    f"analytic_kl=True, but torch knows no closed form for {type(bound.q).__name__} and "
                    f"{type(prior).__name__}; register one with torch.distributions.register_kl or pass None"
                ) from None
        else:
            return bound(likelihood_of(model), Estimator(alpha=1.0, log_q="none")) - kl
    return bound(bound.log_joint, Estimator(alpha=1.0))


def iwae(
    model: Any = None,
    x: Tensor | None = None,
    num_samples: int = 50,
    *,
    estimator: IwaeEstimator = "iwae",
    alpha: float | None = None,
    proposal: Callable[[Tensor], Any] | None = None,
    log_joint: LogProb | None = None,
    max_bytes: int | None = None,
    seed: int | None = None,
    ids: Tensor | None = None,
    modules: Sequence[nn.Module] = (),
) -> Tensor:
    r"""The importance-weighted bound :math:`E[\log \frac1K \sum_k w_k]`, :math:`w_k = p(x, z_k) / q(z_k | x)`.

    Burda, Grosse, Salakhutdinov (2016), equation 8; K = 1 is the ELBO with a Monte-Carlo KL. The value is always the
    bound itself. Its gradient in the parameters of p is
    :math:`\sum_k \tilde w_k \, \partial \log w_k`, :math:`\tilde w = \mathrm{softmax}(\log w)`, for every estimator; in
    those of q, with :math:`\partial_z` through :math:`z_k` alone,

    =========== ====================================================================================================
    ``"iwae"``  :math:`\sum_k \tilde w_k \, d \log w_k`: equation 14, what autograd makes of the value
    ``"stl"``   :math:`\sum_k \tilde w_k \, \partial_z \log w_k`: Roeder, Wu, Duvenaud, "Sticking the landing" (2017).
                Less noise, but for K > 1 not the gradient of the bound in expectation
    ``"dreg"``  :math:`\sum_k \tilde w_k^2 \, \partial_z \log w_k`: Tucker, Lawson, Gu, Maddison, "Doubly
                reparameterized gradient estimators for Monte Carlo objectives" (2019). The gradient of the bound in
                expectation, with a signal-to-noise ratio that grows with K, and without noise at the posterior
    ``"vr"``    :math:`\sum_k (\alpha \tilde w_k + (1 - \alpha) \tilde w_k^2) \, \partial_z \log w_k` with
                :math:`\tilde w = \mathrm{softmax}((1 - \alpha) \log w)`: Daudel, Benton, Shi, Doucet,
                "Alpha-divergence variational inference meets importance weighted auto-encoders" (2023). The value is
                their VR-IWAE bound, :math:`\frac{1}{1 - \alpha} \log \frac1K \sum_k w_k^{1 - \alpha}`: IWAE with
                DReG at ``alpha`` 0, the ELBO with STL at 1
    =========== ====================================================================================================

    With ``max_bytes``, memory does not grow with K: where the samples do not fit, the bound is computed in chunks
    without a graph, and backward draws the same noise again and recomputes chunk by chunk. That costs one more forward
    pass and gives the same numbers. Rows (samples, datapoints) must not depend on each other: batch normalisation in
    training mode is refused. Random numbers that the decoder takes from torch's generators (dropout) are the same in
    both passes. The result can be differentiated once.

    Args:
        model: has ``proposal(x)``, ``likelihood(z)`` and ``prior()``; see
            :class:`fastvae.models.LatentVariableModel`.
        x: (N, ...) data in the units of the likelihood.
        num_samples: K, samples of z for each datapoint.
        estimator: of the gradient, see above. All but ``"iwae"`` need ``proposal(x).log_prob(z)``.
        alpha: in [0, 1], for ``"vr"``.
        proposal, log_joint: instead of ``model``, as in :func:`fastvae.log_likelihood`: ``proposal(x)`` is a
            distribution with batch (N,), ``log_joint(x, z)`` for z (k, n, ...) is log p(x, z) (k, n) in nats. z of
            several stochastic layers is a tuple (:class:`fastvae.evaluation.adapters.Chain`), for every estimator.
        max_bytes: about what the graph of one chunk may hold; what has one row for each datapoint (the proposal) comes
            on top. None: one graph of everything.
        seed: in [0, 2^64): noise that depends only on (seed, datapoint, sample), as in :func:`fastvae.log_likelihood`,
            whatever ``max_bytes``. None: noise from torch's generators.
        ids: (N,) int64, the numbers of the datapoints for ``seed``; 0, 1, ... by default.
        modules: with ``max_bytes``, the modules that ``log_joint`` uses but does not belong to, as a lambda's do.
            Needed only if it uses some parameters for some samples and not for the first.

    Returns:
        (N,) nats, differentiable by reparameterisation.

    Raises:
        TypeError: if an argument is of the wrong kind, or the proposal cannot be reparameterised.
        ValueError: if a value or shape does not fit, or ``max_bytes`` meets batch normalisation.
        RuntimeError: (in backward, with ``max_bytes``) if the second pass finds another bound than the first, or
            parameters that the first sample did not use.

    Example:
        >>> import torch
        >>> from fastvae.models import VAE
        >>> model, x = VAE((1, 8, 8)), torch.zeros(3, 1, 8, 8)
        >>> bound = iwae(model, x, num_samples=1000, estimator="dreg", max_bytes=2**20)
        >>> bound.shape
        torch.Size([3])
        >>> (-bound.mean()).backward()
    """
    _check_choice(estimator, get_args(IwaeEstimator))
    if estimator == "vr":
        _check_alpha(alpha)
    elif alpha is not None:
        raise ValueError(f"alpha belongs to estimator='vr', got alpha={alpha!r} and estimator={estimator!r}")
    table = {
        "iwae": Estimator(),
        "stl": Estimator(log_q="path"),
        "dreg": Estimator(log_q="path", doubly=True),
        "vr": Estimator(alpha=float(alpha or 0.0), log_q="path", doubly=True),
    }
    bound = _Bound(model, x, num_samples, proposal, log_joint, max_bytes, seed, ids, modules)
    return bound(bound.log_joint, table[estimator])


class _Bound:
    """The arguments that both bounds share, checked, and the choice of one pass or two."""

    def __init__(
        self,
        model: Any,
        x: Tensor | None,
        num_samples: int,
        proposal: Callable[[Tensor], Any] | None,
        log_joint: LogProb | None,
        max_bytes: int | None,
        seed: int | None,
        ids: Tensor | None,
        modules: Sequence[nn.Module],
    ) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.ndim < 1:
            raise ValueError("x must have shape (N, ...), got a scalar; add a batch dimension with x[None]")
        _check_integer("num_samples", num_samples, 1, 2**32)
        if max_bytes is not None:
            _check_integer("max_bytes", max_bytes, 1, 2**62)
        if seed is not None:
            _check_integer("seed", seed, 0, 2**64 - 1)
        self.x, self.num_samples, self.max_bytes = x, num_samples, max_bytes
        ids = checked_ids(ids, x)
        self.modules = modules_of(model, proposal, log_joint, *checked_modules(modules))
        encode, self.log_joint = callables(model, proposal, log_joint)
        self.q = encode(x)
        self.draws = Draws(self.q, ids, seed, noise_dtype(x, self.modules))

    def __call__(self, log_prob: LogProb, estimator: Estimator) -> Tensor:
        """The bound (N,) of log-weights ``log_prob(x, z)`` less log q."""
        if not self.x.shape[0]:
            return self._of_nothing()
        log_prob = self.draws.with_split(log_prob)
        if self.max_bytes is None:
            return one_pass(self.x, self.draws, log_prob, self.num_samples, estimator)
        with torch.random.fork_rng([self.x.device] if self.x.is_cuda else []):
            z, log_q = self.draws.first(1)
        found = probe(log_prob, self.x[:1], z[:, :1])
        chunks = make_chunks(
            self.x.shape[0], self.num_samples, found.row_bytes, z[0, 0].numel(), self.max_bytes, self.draws.addressed
        )
        if chunks is None:
            return one_pass(self.x, self.draws, log_prob, self.num_samples, estimator)
        leaves = {id(leaf): leaf for leaf in (*leaves_of([z, log_q]), *found.leaves, *self._parameters())}
        return TwoPass(self.x, self.draws, log_prob, estimator, chunks).bound(list(leaves.values()))

    def _of_nothing(self) -> Tensor:
        """(0,), with gradients of zero: the distributions of torch cannot sum over no rows."""
        dtype = torch.promote_types(self.draws.dtype, torch.float32)
        empty = torch.zeros(0, dtype=dtype, device=self.x.device, requires_grad=torch.is_grad_enabled())
        return sum((p.sum() for p in self._parameters()), start=empty)

    def _parameters(self) -> list[Tensor]:
        return [p for module in self.modules for p in module.parameters() if p.requires_grad]


def _check_choice(estimator: str, choices: Sequence[str]) -> None:
    if estimator not in choices:
        raise ValueError(f"estimator must be one of {', '.join(choices)}, got {estimator!r}")


def _check_alpha(alpha: float | None) -> None:
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise TypeError(f"alpha must be a number between 0 and 1 for estimator='vr', got {alpha!r}")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be between 0 (IWAE) and 1 (ELBO), got {alpha}")


def _check_integer(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
