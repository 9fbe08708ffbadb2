"""Where the samples of an evaluation come from: its seed, its datapoints, its sample numbers. None may count twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Origin"]


@dataclass(frozen=True)
class Origin:
    """The addresses of the noise behind a result: the same address gives the same sample, so none may enter twice.

    Attributes:
        seed: of the noise.
        ids: (N,) int64 on the CPU, the global numbers of the datapoints.
        samples: the ranges ``(first, stop)`` of sample numbers that every datapoint has seen, ascending.
    """

    seed: int
    ids: Tensor
    samples: tuple[tuple[int, int], ...]

    @property
    def num_samples(self) -> int:
        """M."""
        return sum(stop - first for first, stop in self.samples)

    @property
    def next_sample(self) -> int:
        """The first number after all of them."""
        return self.samples[-1][1] if self.samples else 0

    def merged(self, other: "Origin") -> "Origin":
        """Of both: the same datapoints and seed, other samples.

        Raises:
            ValueError: if that is not so.
        """
        self._check_seed(other)
        if not torch.equal(self.ids, other.ids):
            raise ValueError(
                "other must be of the same datapoints in the same order, their numbers (ids) differ; results of other "
                "datapoints are put together by join"
            )
        ranges: list[tuple[int, int]] = []
        for first, stop in sorted(self.samples + other.samples):
            if ranges and first < ranges[-1][1]:
                raise ValueError(
                    f"other must bring new samples, but samples {first} to {min(stop, ranges[-1][1])} are in both: "
                    f"continue with first_sample={max(self.next_sample, other.next_sample)}"
                )
            if ranges and first == ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((first, stop))
        return Origin(self.seed, self.ids, tuple(ranges))

    @staticmethod
    def joined(parts: Sequence["Origin"]) -> "Origin":
        """Of all parts: other datapoints, the same seed and samples.

        Raises:
            ValueError: if that is not so.
        """
        for part in parts[1:]:
            parts[0]._check_seed(part)
            if part.samples != parts[0].samples:
                raise ValueError(
                    f"parts must have seen the same samples, got the ranges {parts[0].samples} and {part.samples}; "
                    "extend the shorter ones first"
                )
        ids = torch.cat([part.ids for part in parts])
        values, counts = ids.unique(return_counts=True)
        if bool((counts > 1).any()):
            twice = ", ".join(map(str, values[counts > 1][:5].tolist()))
            raise ValueError(
                f"parts must be of different datapoints, but numbers {twice} are there twice; give each part its "
                "numbers with ids= of log_likelihood, or their noise would be the same"
            )
        return Origin(parts[0].seed, ids, parts[0].samples)

    def to_json(self) -> dict[str, Any]:
        """For the header of a file, which has ``ids`` as a tensor."""
        return {"seed": self.seed, "samples": [list(pair) for pair in self.samples]}

    @classmethod
    def from_json(cls, header: Mapping[str, Any], ids: Tensor) -> "Origin":
        """From what :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: if something is missing or of the wrong kind.
        """
        samples = tuple((int(first), int(stop)) for first, stop in header["samples"])
        return cls(int(header["seed"]), ids, samples)

    def _check_seed(self, other: "Origin") -> None:
        if self.seed != other.seed:
            raise ValueError(
                f"both must have one seed, got {self.seed} and {other.seed}; more samples of one seed are "
                "first_sample= of log_likelihood, or extend"
            )
