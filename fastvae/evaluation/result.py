"""What an evaluation returns: log-likelihoods, everything needed to judge them, and the way to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import stored
from .blocks import BoundCurve, Jackknife
from .log_weights import UNTRUSTED, LogWeights, MeanLogProb, is_trusted, mean_log_prob
from .origin import Origin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LogLikelihood", "read_result", "write_result"]

_FILE = {"blocks": (3, torch.float64), "largest": (2, torch.float64), "ids": (1, torch.int64)}
_KIND = "LogLikelihood"


class LogLikelihood:
    """Importance-weighted log-likelihoods of N datapoints, in nats each; made by :func:`fastvae.log_likelihood`.

    Attributes:
        weights: the :class:`LogWeights` behind the figures.
        num_dims: D, the number of values in a datapoint, for :meth:`bits_per_dim`.
        origin: the :class:`Origin` of the samples: seed, numbers of the datapoints, ranges of sample numbers.

    Example:
        >>> import fastvae
        >>> from torch.distributions import Independent, Normal
        >>> normal = lambda mean: Independent(Normal(mean, torch.ones_like(mean)), 1)
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> log_joint = lambda x, z: normal(z).log_prob(x) + normal(torch.zeros(1)).log_prob(z)
        >>> result = fastvae.log_likelihood(x, proposal=normal, log_joint=log_joint, num_samples=1000)
        >>> longer = result.extend(1000)  # the samples 1000, ..., 1999 of the same run
        >>> longer.curve.num_samples
        tensor([   1,   62,  125,  250,  500, 1000, 2000])
        >>> bool((longer.curve.values.diff(dim=0) >= 0).all())
        True
    """

    def __init__(
        self,
        weights: LogWeights,
        num_dims: int,
        origin: Origin,
        more: Callable[[int, int], LogLikelihood] | None = None,
    ) -> None:
        self.weights, self.num_dims, self.origin = weights, num_dims, origin
        self._more = more  # (first sample, how many) -> the result of these samples

    @cached_property
    def log_prob(self) -> Tensor:
        """(N,) nats, see :attr:`LogWeights.log_prob`."""
        return self.weights.log_prob

    @cached_property
    def elbo(self) -> Tensor:
        """(N,) nats: the mean log-weight of the same samples."""
        return self.weights.elbo

    @cached_property
    def std_error(self) -> Tensor:
        """(N,) nats: Monte-Carlo standard error of ``log_prob``; too small where not ``trusted``."""
        return self.weights.std_error

    @cached_property
    def ess(self) -> Tensor:
        """(N,) effective sample size, between 0 and M."""
        return self.weights.ess

    @cached_property
    def khat(self) -> Tensor:
        """(N,) Pareto tail diagnostic: from 0.5 on errors are larger than shown, above 0.7 weights that matter were not
        drawn."""
        return self.weights.khat

    @cached_property
    def trusted(self) -> Tensor:
        """(N,) bool: ESS above 100 and k-hat below 0.5.

        Then error and bias estimates mean something; not a proof: no figure of the samples knows of a mode that the
        proposal never visits. :mod:`fastvae.evaluation.log_weights` tells how often it errs.
        """
        return is_trusted(self.ess, self.khat)

    @cached_property
    def bias(self) -> Tensor:
        """(N,) nats, at most 0: the O(1/M) bias of ``log_prob``; nan (unknown) where not ``trusted``."""
        return (-self.weights.cv2 / (2 * self.weights.num_samples)).masked_fill(~self.trusted, torch.nan)

    @cached_property
    def curve(self) -> BoundCurve:
        """The bounds L_1 (the ELBO), ..., L_(M/2), L_M (``log_prob``) of the same samples, with their errors."""
        return self.weights.curve

    @cached_property
    def jackknife(self) -> Jackknife:
        """``log_prob`` without its O(1/M) bias (nan where not ``trusted``), and a second estimate of its error."""
        return self.weights.jackknife_where(self.trusted)

    def mean(self) -> MeanLogProb:
        """The mean over datapoints in nats, with Monte-Carlo error and data error apart."""
        return mean_log_prob(self.log_prob, self.std_error, self.trusted)

    def bits_per_dim(self) -> MeanLogProb:
        """The mean code length, ``-log2 p(x) / D``, with its errors."""
        return self.mean().scaled(-1.0 / (max(self.num_dims, 1) * math.log(2.0)))

    def extend(self, num_samples: int) -> LogLikelihood:
        """Go on with the same model: ``num_samples`` more for every datapoint, from where this result stopped.

        The figures are those of one run of the total, to the rounding of the model. It needs the data and the model as
        they were, which the result refers to; they must not have changed.

        Raises:
            TypeError: if ``num_samples`` is not an integer.
            ValueError: if it is below 1, or if the result does not know its model because it was loaded from a file.
        """
        if self._more is None:
            raise ValueError(
                "a result from a file does not know its model: call log_likelihood with the same arguments and "
                f"first_sample={self.origin.next_sample}, and merge the two"
            )
        return self.merge(self._more(self.origin.next_sample, num_samples))

    def merge(self, other: LogLikelihood) -> LogLikelihood:
        """Both together: the same datapoints and seed, other samples (``first_sample=`` of ``log_likelihood``).

        Raises:
            TypeError: if the other is no LogLikelihood.
            ValueError: if the other is not of the same datapoints, has another seed, or shares samples.
        """
        self._check_alike("other", other)
        origin = self.origin.merged(other.origin)
        return LogLikelihood(self.weights.merge(other.weights), self.num_dims, origin, self._more or other._more)

    @staticmethod
    def join(parts: Sequence[LogLikelihood]) -> LogLikelihood:
        """All datapoints of the parts, one part after the other: a test set that was evaluated in pieces.

        Every part needs the numbers of its datapoints (``ids=`` of ``log_likelihood``).

        Raises:
            TypeError: if a part is no LogLikelihood.
            ValueError: if there is no part, a datapoint is in two of them, or their seeds or samples differ.
        """
        if not parts:
            raise ValueError("parts must hold at least one LogLikelihood, got none")
        for part in parts:
            LogLikelihood._check_alike(parts[0], "parts", part)
        origin = Origin.joined([part.origin for part in parts])
        weights = LogWeights.join([part.weights for part in parts])

        def more(first_sample: int, num_samples: int) -> LogLikelihood:
            return LogLikelihood.join([part._more(first_sample, num_samples) for part in parts if part._more])

        known = all(part._more for part in parts)
        return LogLikelihood(weights, parts[0].num_dims, origin, more if known else None)

    def _check_alike(self, name: str, other: LogLikelihood) -> None:
        for one in (self, other):
            if not isinstance(one, LogLikelihood):
                raise TypeError(f"{name} must be a LogLikelihood, got {type(one).__name__}")
        if self.num_dims != other.num_dims:
            raise ValueError(f"{name} must have datapoints of {self.num_dims} values, got {other.num_dims}")

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a safetensors file for :meth:`load`, in one step: 4 KiB for each datapoint.

        Raises:
            FileExistsError: if the file exists, without ``overwrite``.
            ValueError: if there is no folder for it.
        """
        stored.check_free(path, overwrite)
        write_result(path, self, {})

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu", unfinished: bool = False) -> LogLikelihood:
        """What :meth:`save` wrote, or the ``checkpoint=`` of :func:`fastvae.log_likelihood`.

        Args:
            path: the file.
            device: where the figures go.
            unfinished: of the checkpoint of an evaluation that has not finished, take the datapoints that have all
                their samples; by default it is an error.

        Raises:
            ValueError: if the file is missing, damaged, of another kind, of a newer version, or unfinished.
        """
        result, header = read_result(path, device)
        if "unfinished" not in header:
            return result
        done, total = header["unfinished"]["points_done"], result.weights.num_points
        if not unfinished:
            raise ValueError(
                f"{path} holds an evaluation that has not finished: {done} of {total} datapoints; go on with "
                "log_likelihood(..., checkpoint=), or take these with unfinished=True"
            )
        weights = result.weights.first(done)
        return cls(
            weights, result.num_dims, Origin(result.origin.seed, result.origin.ids[:done], result.origin.samples)
        )

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON can hold them, in nats; what is infinite or unknown is None.

        ``mean`` is over the datapoints, ``datapoints`` has a list of N for each figure, ``curve`` and ``jackknife``
        are means over the datapoints.
        """
        mean, bits = self.mean(), self.bits_per_dim()
        jackknife = self.jackknife
        points = {
            "id": self.origin.ids,
            "log_prob": self.log_prob,
            "std_error": self.std_error,
            "bias": self.bias,
            "elbo": self.elbo,
            "ess": self.ess,
            "khat": self.khat,
            "jackknife_log_prob": jackknife.log_prob,
            "jackknife_std_error": jackknife.std_error,
            "num_zero": self.weights.num_zero,
            "num_bad": self.weights.num_bad,
        }
        return _plain(
            {
                "num_points": mean.num_points,
                "num_samples": self.origin.num_samples,
                "num_dims": self.num_dims,
                "num_untrusted": mean.num_untrusted,
                **self.origin.to_json(),
                "mean": {
                    "log_prob": mean.value,
                    "monte_carlo_error": mean.monte_carlo_error,
                    "data_error": mean.data_error,
                    "elbo": self.elbo.mean(),
                    "bits_per_dim": bits.value,
                },
                "jackknife": {"log_prob": jackknife.log_prob.mean(), "monte_carlo_error": jackknife.mean_std_error},
                "curve": self.curve.to_dict(),
                "datapoints": points,
            }
        )

    def plot(self, path: str | Path | None = None) -> Figure:
        """The mean bound over the number of samples with its error band, and the histogram of the ESS.

        Args:
            path: also write a PNG there; an existing file is an error.

        Returns:
            The matplotlib Figure.

        Raises:
            ImportError: without matplotlib.
            FileExistsError: if ``path`` exists.
            ValueError: without datapoints.
        """
        from .plot import plot  # lazily: needs matplotlib

        return plot(self, path)

    def __repr__(self) -> str:
        n = self.weights.num_points
        if n == 0:
            return "LogLikelihood(no datapoints)"
        mean, ess, khat = self.mean(), self.ess, self.khat.nan_to_num(math.inf, math.inf, -math.inf)
        error = f"+- {mean.monte_carlo_error:.4f} (samples)"
        lines = [
            f"LogLikelihood of {n} datapoints, {self.origin.num_samples} samples each, in nats",
            f"  log p(x)  {mean.value:.4f} {error} +- {mean.data_error:.4f} (data)",
            f"  ELBO      {float(self.elbo.mean()):.4f}",
            f"  curve     {self.curve}",
            f"  ESS       median {float(ess.median()):.1f}, smallest {float(ess.min()):.1f}",
            f"  k-hat     median {float(khat.median()):.2f}, largest {float(khat.max()):.2f}",
        ]
        bad = self.weights.num_bad
        if bool(bad.any()):
            lines.append(
                f"  nan       {int((bad > 0).sum())} datapoints, with {int(bad.sum())} log-weights that are nan or "
                "+inf: an error of the model, see weights.num_bad"
            )
        if mean.num_untrusted:
            lines.append(
                f"  unknown   bias of {mean.num_untrusted} datapoints ({UNTRUSTED}): their log p(x) may "
                "be far too low, and the error from samples is larger than shown"
            )
        else:
            jackknife = self.jackknife
            corrected = f"{float(jackknife.log_prob.mean()):.4f} +- {jackknife.mean_std_error:.4f} (samples)"
            lines.append(f"  bias      {float(self.bias.mean()):.1e} (O(1/M) estimate); jackknife: {corrected}")
        return "\n".join(lines)


def write_result(path: str | Path, result: LogLikelihood, header: dict[str, Any]) -> None:
    """Write ``result`` with more entries of its header; an existing file is replaced."""
    tensors = {"blocks": result.weights.blocks, "largest": result.weights.largest, "ids": result.origin.ids}
    about = {**result.origin.to_json(), "num_dims": result.num_dims, "num_points": result.weights.num_points}
    stored.write(path, _KIND, tensors, about | header)


def read_result(path: str | Path, device: torch.device | str) -> tuple[LogLikelihood, dict[str, Any]]:
    """What :func:`write_result` wrote, and the header.

    Raises:
        ValueError: if the file is missing, damaged, of another kind, or of a newer version.
    """
    tensors, header = stored.read(path, _KIND)
    stored.check_tensors(path, tensors, _FILE)
    weights = LogWeights.from_tensors(tensors, path, device)
    try:
        origin = Origin.from_json(header, tensors["ids"])
        num_dims, done = int(header["num_dims"]), int(header.get("unfinished", {}).get("points_done", len(origin.ids)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its header is {header}") from error
    counts = weights.num_samples[:done]
    if len(origin.ids) != weights.num_points or bool((counts != origin.num_samples).any()):
        raise ValueError(f"{path} is damaged: its samples are not those that its header counts")
    return LogLikelihood(weights, num_dims, origin), header


def _plain(value: Any) -> Any:
    """Tensors as lists, and None for what JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
