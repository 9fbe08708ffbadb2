"""``log_likelihood``: importance-weighted estimates of log p(x) with many samples, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastvae.distributions import checked_data
from fastvae.ops._dispatch import choose

from .clamps import ClampedProbabilities
from .conditioned import Conditioned, conditioned
from .draw import Latent, chunk, draw, is_addressed, latent_size
from .fused_layers import fused_layers
from .log_weights import LogWeights
from .origin import Origin
from .plan import Plan, bytes_per_row, default_max_bytes, make_plan
from .result import LogLikelihood

__all__ = ["log_likelihood"]

_IDS = 2**32  # datapoint and sample numbers are 32-bit words of the counter


def log_likelihood(
    x: Tensor,
    model: Any = None,
    *,
    proposal: Callable[..., Any] | None = None,
    log_joint: Callable[..., Tensor] | None = None,
    condition: Tensor | None = None,
    num_samples: int,
    seed: int = 0,
    ids: Tensor | None = None,
    first_sample: int = 0,
    max_bytes: int | None = None,
    progress: bool | None = None,
    on_bad: Literal["raise", "count"] = "raise",
    modules: Sequence[nn.Module] = (),
) -> LogLikelihood:
    r"""Estimate :math:`\log p(x) \approx \log \frac1M \sum_m p(x, z_m) / q(z_m | x)` of every datapoint.

    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016), equation 8: a lower bound in expectation
    that rises to log p(x) with M. The encoder runs once for each datapoint, the decoder in chunks bounded by a byte
    budget, and nothing but a small state is kept, so memory does not depend on M.

    The noise of sample m of datapoint i depends only on (seed, i, m): the estimate does not change with the chunk
    size, the batch the datapoint is in, or the device. That holds for proposals with ``from_noise(noise)`` (ours) and
    for ``torch.distributions.Normal``, alone or in ``Independent``. Any other proposal samples by itself, in fixed
    blocks of 16 datapoints and 256 samples seeded by (seed, first datapoint, block): independent of the chunk size,
    but only of batch splits at multiples of 16. torch's global random state is left as it was.

    Modules (and modules whose methods are passed) are evaluated in eval mode and put back. On CPUs with AVX-512 the
    linear layers of their ``nn.Sequential`` run through oneDNN meanwhile. No gradients are recorded.

    Args:
        x: (N, ...) data in the units of the likelihood, on the device of the model.
        model: has ``proposal(x)``, ``prior()`` and ``likelihood(z)``, each a Distribution with ``log_prob``.
        proposal: instead of ``model``, ``proposal(x)`` for x (n, ...): a Distribution with batch (n,), or anything with
            ``rsample`` or ``sample`` and ``log_prob``, or ``rsample_and_log_prob``.
        log_joint: instead of ``model``, ``log_joint(x, z)`` for x (n, ...), z (k, n, ...): log p(x, z) (k, n) in nats.
            It is called for chunks of datapoints and samples. z is a tuple where the proposal draws tuples. Models of
            other styles fit as :mod:`fastvae.evaluation.adapters` tells.
        condition: (N, ...) labels or whatever else a conditional model takes beside x: ``proposal(x, condition)`` and
            ``log_joint(x, z, condition)`` are called with the rows of their datapoints.
        num_samples: M, at least 1.
        seed: an integer in [0, 2^64).
        ids: (N,) int64 in [0, 2^32), the global numbers of the datapoints; 0, 1, ... by default. A test set evaluated
            in parts gives the figures of one call if each part brings its numbers.
        first_sample: the number of the first sample: evaluate 0..M1 now and M1..M later, and ``merge`` the results.
        max_bytes: the largest tensor of one chunk may grow to about this size; the whole takes a few times that. By
            default 4 MiB on the CPU, where larger chunks leave the cache, and 256 MiB on CUDA.
        progress: show a progress bar; by default only on a terminal.
        on_bad: log-weights that are nan or +inf (errors of the model, never dropped) ``"raise"``, or ``"count"``:
            their datapoints become nan and ``result.weights.num_bad`` tells how many there were.
        modules: further modules that ``proposal`` and ``log_joint`` use but do not belong to, as a lambda's do: these
            are put in eval mode (dropout would break the address of the noise) and fused, too.

    Returns:
        :class:`fastvae.evaluation.LogLikelihood`: ``log_prob``, ``std_error``, ``ess``, ``khat``, ``elbo``, ``bias``
        (N,) float64, ``curve``, ``jackknife``, ``mean()``, ``bits_per_dim()``, ``extend(num_samples)``,
        ``merge(other)``, ``join(parts)``, ``save(path)``, ``to_dict()``, ``plot()``; printing it shows the summary.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a value or shape does not fit, or log-weights are nan or +inf.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> normal = lambda mean, scale: Independent(Normal(mean, scale * torch.ones_like(mean)), 1)
        >>> x = torch.tensor([[0.0], [2.0]])  # z ~ N(0, 1), x ~ N(z, 1), so x ~ N(0, 2) and z | x ~ N(x / 2, 1 / 2)
        >>> result = log_likelihood(
        ...     x,
        ...     proposal=lambda x: normal(x / 2, 0.8),
        ...     log_joint=lambda x, z: normal(z, 1.0).log_prob(x) + normal(torch.zeros(1), 1.0).log_prob(z),
        ...     num_samples=5000,
        ... )
        >>> exact = normal(torch.zeros(1), 2**0.5).log_prob(x)
        >>> bool(((result.log_prob - exact).abs() < 4 * result.std_error + 1e-6).all())
        True
    """
    _check_numbers(num_samples, seed, first_sample, max_bytes, on_bad)
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.ndim < 1:
        raise ValueError("x must have shape (N, ...), got a scalar; add a batch dimension with x[None]")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(f"modules must be torch.nn.Module objects, got {type(module).__name__}")
    modules = _modules(model, proposal, log_joint, *modules)
    _check_device(x, modules)
    ids = _checked_ids(ids, x)
    data = x if condition is None else Conditioned(x, condition)
    more = partial(
        _more,
        x,
        model,
        proposal=proposal,
        log_joint=log_joint,
        condition=condition,
        seed=seed,
        ids=ids,
        max_bytes=max_bytes,
        progress=progress,
        on_bad=on_bad,
        modules=modules,
    )
    weights = LogWeights(x.shape[0], device=x.device)
    with ExitStack() as contexts:
        contexts.enter_context(torch.no_grad())
        contexts.enter_context(_evaluation_mode(modules))
        if choose(x) == "torch":
            contexts.enter_context(fused_layers(modules))
        proposal, log_joint = _callables(model, proposal, log_joint, condition)
        if x.shape[0]:
            run = _Run(data, ids, proposal, log_joint, seed, _noise_dtype(x, modules))
            _keep_freed_memory()
            budget = default_max_bytes(x.device) if max_bytes is None else max_bytes
            total = x.shape[0] * num_samples
            bar = tqdm(total=total, desc="log p(x)", unit="sample", unit_scale=True, disable=_hidden(progress))
            with bar:
                run.all(weights, range(first_sample, first_sample + num_samples), budget, on_bad, bar)
    origin = Origin(seed, ids.cpu().clone(), ((first_sample, first_sample + num_samples),))
    return LogLikelihood(weights, x.shape[1:].numel(), origin, more)


def _more(x: Tensor, model: Any, first_sample: int, num_samples: int, **options: Any) -> LogLikelihood:
    """Further samples of the same evaluation, for ``LogLikelihood.extend``."""
    return log_likelihood(x, model, first_sample=first_sample, num_samples=num_samples, **options)


class _Run:
    """One evaluation: what is the same for all of its chunks."""

    def __init__(
        self,
        x: Tensor | Conditioned,
        ids: Tensor,
        proposal: Callable[..., Any],
        log_joint: Callable[..., Tensor],
        seed: int,
        noise_dtype: torch.dtype,
    ) -> None:
        self.x, self.ids, self.seed, self.noise_dtype = x, ids, seed, noise_dtype
        self.proposal, self.log_joint = proposal, log_joint

    def all(self, weights: LogWeights, samples: range, max_bytes: int, on_bad: str, bar: tqdm) -> None:
        plan = self.plan(samples, max_bytes)
        for start in range(0, self.x.shape[0], plan.points):
            points = slice(start, min(start + plan.points, self.x.shape[0]))
            x, ids = self.x[points], self.ids[points]
            q = self.proposal(x)
            for first in range(samples.start, samples.stop, plan.samples):
                count = min(plan.samples, samples.stop - first)
                z, log_q = draw(q, self.seed, ids, first, count, self.noise_dtype)
                log_joint = self.log_joint_chunks(x, z, count, plan, seen=first > samples.start)
                weights.update(log_joint - log_q, points, first_sample=first)
                bar.update(count * x.shape[0])
            if on_bad == "raise":
                _raise_if_bad(weights.num_bad[points], ids, len(samples))

    def plan(self, samples: range, max_bytes: int) -> Plan:
        """From one row and two rows of the real computation: the bytes of a row, the size of z, the kind of q."""
        index = self.ids.new_zeros(2)
        q = self.proposal(self.x[index])
        z, _ = draw(q, self.seed, self.ids[index], samples.start, 1, self.noise_dtype)

        def rows(count: int) -> None:
            x = self.x[index[:count]]
            self.proposal(x)
            with ClampedProbabilities() if count == 1 else nullcontext():
                _checked(self.log_joint(x, chunk(z, slice(1), slice(count))), (1, count))

        row_bytes = bytes_per_row(rows)
        return make_plan(self.x.shape[0], len(samples), row_bytes, latent_size(z), max_bytes, is_addressed(q))

    def log_joint_chunks(self, x: Tensor | Conditioned, z: Latent, count: int, plan: Plan, seen: bool) -> Tensor:
        """``x`` (n, ...), ``z`` (count, n, ...) -> log p(x, z) (count, n)."""
        columns = []
        for i in range(0, x.shape[0], plan.chunk_points):
            some = slice(i, i + plan.chunk_points)
            parts = []
            for j in range(0, count, plan.chunk_samples):
                rows = slice(j, min(j + plan.chunk_samples, count))
                # the likelihood looks at the values of x once, not for every chunk
                with checked_data() if seen or j else nullcontext():
                    log_joint = self.log_joint(x[some], chunk(z, rows, some))
                parts.append(_checked(log_joint, (rows.stop - rows.start, x[some].shape[0])))
            columns.append(torch.cat(parts))
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


def _checked(log_joint: Any, want: tuple[int, ...]) -> Tensor:
    got = tuple(log_joint.shape) if isinstance(log_joint, Tensor) else type(log_joint).__name__
    if got != want:
        raise ValueError(
            f"log p(x, z) must be a tensor of shape {want} (samples, datapoints), one number for each z, got {got}; "
            "sum over the dimensions of x, and keep samples first"
        )
    return log_joint


def _raise_if_bad(num_bad: Tensor, ids: Tensor, num_samples: int) -> None:
    if not bool(num_bad.any()):
        return
    bad = num_bad.nonzero()[:, 0].tolist()
    named = ", ".join(f"{int(ids[i])} ({int(num_bad[i])} of {num_samples} samples)" for i in bad[:10])
    raise ValueError(
        f"log-weights are nan or +inf for datapoints {named}{', ...' if len(bad) > 10 else ''}: the model or the "
        "proposal gives no probability there (look for nan parameters, zero scales, data outside the support); "
        "on_bad='count' finishes with nan for these datapoints"
    )


def _callables(
    model: Any,
    proposal: Callable[..., Any] | None,
    log_joint: Callable[..., Tensor] | None,
    condition: Tensor | None,
) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    if model is None:
        if proposal is None or log_joint is None:
            raise TypeError("pass a model, or both proposal= and log_joint=")
        for name, part in (("proposal", proposal), ("log_joint", log_joint)):
            if not callable(part):
                raise TypeError(f"{name} must be callable, got {type(part).__name__}")
        return (proposal, log_joint) if condition is None else conditioned(proposal, log_joint)
    if condition is not None:
        raise TypeError("condition goes with proposal=(x, condition) and log_joint=(x, z, condition), not with a model")
    if proposal is not None or log_joint is not None:
        raise TypeError("pass either a model or proposal= and log_joint=, not both")
    missing = [name for name in ("proposal", "prior", "likelihood") if not callable(getattr(model, name, None))]
    if missing:
        raise TypeError(
            f"model must have the methods proposal(x), prior() and likelihood(z); {type(model).__name__} lacks "
            f"{', '.join(missing)}. Other models fit through proposal= and log_joint="
        )
    prior = model.prior()
    return model.proposal, lambda x, z: model.likelihood(z).log_prob(x) + prior.log_prob(z)


def _check_numbers(num_samples: int, seed: int, first_sample: int, max_bytes: int | None, on_bad: str) -> None:
    limits = {"num_samples": (num_samples, 1, _IDS), "seed": (seed, 0, 2**64 - 1)}
    limits["first_sample"] = (first_sample, 0, _IDS - 1)
    if max_bytes is not None:
        limits["max_bytes"] = (max_bytes, 1, 2**62)
    for name, (value, least, most) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{name} must be between {least} and {most}, got {value}")
    if first_sample + num_samples > _IDS:
        raise ValueError(f"first_sample + num_samples must be at most {_IDS}, got {first_sample + num_samples}")
    if on_bad not in ("raise", "count"):
        raise ValueError(f"on_bad must be 'raise' or 'count', got {on_bad!r}")


def _modules(*parts: Any) -> list[nn.Module]:
    """Those of the arguments that are modules or methods of one."""
    owners = [getattr(part, "__self__", part) for part in parts]
    return [owner for owner in owners if isinstance(owner, nn.Module)]


def _check_device(x: Tensor, modules: list[nn.Module]) -> None:
    for module in modules:
        for parameter in module.parameters():
            if parameter.device != x.device:
                raise ValueError(
                    f"x must be on the device of {type(module).__name__}, {parameter.device}, got {x.device}; "
                    f"pass x.to({str(parameter.device)!r})"
                )
            break


def _checked_ids(ids: Tensor | None, x: Tensor) -> Tensor:
    if ids is None:
        return torch.arange(x.shape[0], device=x.device)
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise TypeError(f"ids must be an int64 tensor, got {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.shape != x.shape[:1]:
        raise ValueError(f"ids must have shape ({x.shape[0]},), one number for each datapoint, got {tuple(ids.shape)}")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= _IDS):
        raise ValueError(f"ids must be in [0, 2^32), got {int(ids.min())} to {int(ids.max())}")
    return ids.to(x.device)


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of one chunk for the next.

    Blocks above its threshold go back to the system when they are freed, and every page of the next chunk would be
    mapped and cleared again: 9 % of an evaluation. Freeing one larger block, never touched, raises the threshold.
    """
    torch.empty(2**24, dtype=torch.uint8)


def _noise_dtype(x: Tensor, modules: list[nn.Module]) -> torch.dtype:
    """Of the model where there is one to look at, else of the data."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def _hidden(progress: bool | None) -> bool | None:
    return None if progress is None else not progress  # tqdm: None hides the bar where there is no terminal


@contextmanager
def _evaluation_mode(modules: list[nn.Module]) -> Iterator[None]:
    training = [part for module in modules for part in module.modules() if part.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
