"""``log_likelihood``: importance-weighted estimates of log p(x) with many samples, in bounded memory."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from tqdm.std import tqdm as AnyBar  # that of a terminal is no subclass of a notebook's

from fastvae.ops._dispatch import choose
from fastvae.ops._memory import keep_freed_memory

from .arguments import (
    callables,
    check_device,
    check_distinct,
    check_numbers,
    checked_ids,
    checked_modules,
    evaluation_mode,
    modules_of,
    noise_dtype,
)
from .conditioned import Conditioned
from .fused_layers import fused_layers
from .log_weights import LogWeights
from .origin import Origin
from .plan import default_max_bytes
from .refine import NUM_SAMPLES
from .result import LogLikelihood
from .resume import Checkpoint
from .run import Run, raise_if_bad

__all__ = ["log_likelihood"]


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
    refine: int = 0,
    progress: bool | tqdm | None = None,
    on_bad: Literal["raise", "count"] = "raise",
    modules: Sequence[nn.Module] = (),
    checkpoint: str | Path | None = None,
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

    The noise is the same. What the model makes of it is so only to rounding where it has matrix products, which add in
    another order for another number of rows: in float32, figures of other chunks, batches or processes agree to about
    1e-6 of log p(x) or better, not bit for bit.

    The generator is Philox 4x32-10 (:func:`fastvae.ops.normal`), the same words everywhere; normal numbers of CPU and
    CUDA agree to the rounding of logarithm and cosine. On two CPU cores it takes about a tenth of an evaluation of the
    standard case (28x28, decoder 50-200-200-784), so there is no other one to choose.

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
        ids: (N,) different int64 in [0, 2^32), the global numbers of the datapoints; 0, 1, ... by default. A test set
            evaluated in parts gives the figures of one call if each part brings its numbers.
        first_sample: the number of the first sample: evaluate 0..M1 now and M1..M later, and ``merge`` the results.
        max_bytes: the largest tensor of one chunk may grow to about this size; the whole takes a few times that. By
            default 16 MiB on the CPU, where larger chunks gain nothing, and 256 MiB on CUDA.
        refine: steps of :func:`fastvae.evaluation.refine`, which fits the proposal to each datapoint first: 100 to 300
            where k-hat says that the encoder's is not to be trusted. Each costs about as much as 24 samples. For
            Gaussian proposals.
        progress: show a progress bar, or a bar of tqdm that goes on; by default one only on a terminal.
        on_bad: log-weights that are nan or +inf (errors of the model, never dropped) ``"raise"``, or ``"count"``:
            their datapoints become nan and ``result.weights.num_bad`` tells how many there were.
        modules: further modules that ``proposal`` and ``log_joint`` use but do not belong to, as a lambda's do: these
            are put in eval mode (dropout would break the address of the noise) and fused, too.
        checkpoint: a file that keeps what is done: written every half minute, on Ctrl-C, on errors, and at the end. The
            same call goes on from there and gives, to the bit, the figures of a run that was not interrupted. A file
            of other data, numbers or parameters (of the modules known here) is an error; nothing removes the file.

    Returns:
        :class:`fastvae.evaluation.LogLikelihood`: ``log_prob``, ``std_error``, ``ess``, ``khat``, ``elbo``, ``bias``
        (N,) float64, ``curve``, ``jackknife``, ``mean()``, ``bits_per_dim()``, ``extend(num_samples)``,
        ``merge(other)``, ``join(parts)``, ``save(path)``, ``to_dict()``, ``plot()``; printing it shows the summary.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a value or shape does not fit, log-weights are nan or +inf, or ``checkpoint`` is damaged or of
            another evaluation.

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
    check_numbers(num_samples, seed, first_sample, max_bytes, refine, on_bad)
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.ndim < 1:
        raise ValueError("x must have shape (N, ...), got a scalar; add a batch dimension with x[None]")
    modules = modules_of(model, proposal, log_joint, *checked_modules(modules))
    if progress is not None and not isinstance(progress, bool | AnyBar):
        raise TypeError(f"progress must be True, False, None or a bar of tqdm, got {progress!r}")
    check_device(x, modules)
    ids = checked_ids(ids, x)
    check_distinct(ids)
    data = x if condition is None else Conditioned(x, condition)
    options: dict[str, Any] = {"seed": seed, "ids": ids, "max_bytes": max_bytes, "refine": refine}
    options |= {"condition": condition, "progress": progress, "on_bad": on_bad}
    more = partial(_more, x, model, proposal=proposal, log_joint=log_joint, modules=modules, **options)
    samples = range(first_sample, first_sample + num_samples)
    origin = Origin(seed, ids.cpu().clone(), ((samples.start, samples.stop),))
    result = LogLikelihood(LogWeights(x.shape[0], device=x.device), x.shape[1:].numel(), origin, more)
    with ExitStack() as contexts:
        contexts.enter_context(torch.no_grad())
        contexts.enter_context(evaluation_mode(modules))
        if choose(x) == "torch":
            contexts.enter_context(fused_layers(modules))
        proposal, log_joint = callables(model, proposal, log_joint, conditioned=condition is not None)
        # what else the numbers depend on, down to the last bit
        same = {"num_samples": num_samples, "first_sample": first_sample, "seed": seed, "max_bytes": max_bytes}
        same["refine"] = refine
        values: dict[str, Sequence[Tensor | nn.Module]] = {"x": [x], "ids": [ids], "the parameters": modules}
        if condition is not None:
            values["the condition"] = [condition]
        keeper = Checkpoint(checkpoint, result, same, values)
        if on_bad == "raise" and checkpoint is not None:  # what was counted before
            raise_if_bad(result.weights.num_bad, ids, num_samples)
        if not keeper.finished:
            run = Run(data, ids, proposal, log_joint, seed, noise_dtype(x, modules), refine)
            keep_freed_memory()
            contexts.enter_context(keeper.kept())
            budget = default_max_bytes(x.device) if max_bytes is None else max_bytes
            keeper.plan = keeper.plan or run.plan(samples, budget)
            bar = contexts.enter_context(_bar(x.shape[0] * (num_samples + refine * NUM_SAMPLES), keeper, progress))
            run.all(samples, keeper.plan, keeper, on_bad, bar)
    return result


def _more(x: Tensor, model: Any, first_sample: int, num_samples: int, **options: Any) -> LogLikelihood:
    """Further samples of the same evaluation, for ``LogLikelihood.extend``."""
    return log_likelihood(x, model, first_sample=first_sample, num_samples=num_samples, **options)


def _bar(total: int, checkpoint: Checkpoint, progress: bool | tqdm | None) -> AbstractContextManager[tqdm]:
    if isinstance(progress, AnyBar):
        progress.update(checkpoint.samples_done)
        return nullcontext(progress)  # whoever made it closes it
    hidden = None if progress is None else not progress  # tqdm: None hides the bar where there is no terminal
    done = checkpoint.samples_done
    return tqdm(total=total, initial=done, desc="log p(x)", unit="sample", unit_scale=True, disable=hidden)
