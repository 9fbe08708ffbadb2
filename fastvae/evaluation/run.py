"""One evaluation: datapoints are encoded, samples drawn and decoded in chunks, log-weights enter the state."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastvae.distributions import checked_data

from .arguments import checked_log_prob
from .clamps import ClampedProbabilities
from .conditioned import Conditioned
from .draw import Latent, chunk, draw, example, is_addressed, latent_size, repeated
from .plan import Plan, Sizes, bytes_per_row, make_plan
from .refine import Refined, parameters_of
from .resume import Checkpoint

__all__ = ["Run", "raise_if_bad"]


class Run:
    """One evaluation: what is the same for all of its chunks."""

    def __init__(
        self,
        x: Tensor | Conditioned,
        ids: Tensor,
        proposal: Callable[..., Any],
        log_joint: Callable[..., Tensor],
        seed: int,
        noise_dtype: torch.dtype,
        refine: int = 0,
    ) -> None:
        self.x, self.ids, self.seed, self.noise_dtype, self.refine = x, ids, seed, noise_dtype, refine
        self.proposal, self.log_joint = proposal, log_joint

    def all(self, samples: range, plan: Plan, checkpoint: Checkpoint, on_bad: str, bar: tqdm) -> None:
        """Whatever ``checkpoint`` has not done yet, into the weights of its result."""
        refined = Refined(
            self.proposal,
            plan.points,
            plan.chunk_points * plan.chunk_samples,
            log_joint=self.log_joint,
            x=cast(Tensor, self.x),  # data with conditions are indexed as a tensor is
            ids=self.ids,
            seed=self.seed,
            steps=self.refine,
            advance=bar.update,
        )
        done, next_sample = checkpoint.position
        for start in range(done, self.x.shape[0], plan.points):
            stop = min(start + plan.points, self.x.shape[0])
            points = slice(start, stop)
            x, ids = self.x[points], self.ids[points]
            q = refined(points) if self.refine else self.proposal(x)
            for first in range(next_sample, samples.stop, plan.samples):
                count = min(plan.samples, samples.stop - first)
                z, log_q = draw(q, self.seed, ids, first, count, self.noise_dtype, contiguous=False)
                log_joint = self.log_joint_chunks(x, z, count, plan, seen=first > next_sample)
                checkpoint.update(log_joint - log_q, points, first)
                bar.update(count * x.shape[0])
            if on_bad == "raise":
                raise_if_bad(checkpoint.result.weights.num_bad[points], ids, len(samples))
            next_sample = samples.start
            checkpoint.position = (stop, next_sample)

    def plan(self, samples: range, max_bytes: int) -> Plan:
        """From few rows of the real computation: what encoding a datapoint and decoding a sample of it take, the size
        of z, the kind of q."""
        x, proposals = self.x[self.ids.new_zeros(2)], []
        point_bytes = bytes_per_row(lambda count: proposals.append(self.proposal(x[:count])))
        q = proposals[-1]
        if self.refine:
            parameters_of(q)  # refuses other proposals before any work
        z = repeated(example(q, self.ids[:1].expand(2), self.noise_dtype), 2)

        def decode(count: int) -> None:
            checked_log_prob(self.log_joint(x, chunk(z, slice(count), slice(2))), (count, 2))

        row_bytes = bytes_per_row(decode, ClampedProbabilities()) // 2  # each sample is one of either datapoint
        sizes = Sizes(row_bytes, point_bytes, latent_size(z))
        return make_plan(self.x.shape[0], len(samples), sizes, max_bytes, is_addressed(q))

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
                parts.append(checked_log_prob(log_joint, (rows.stop - rows.start, x[some].shape[0])))
            columns.append(torch.cat(parts))
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


def raise_if_bad(num_bad: Tensor, ids: Tensor, num_samples: int) -> None:
    """``ValueError`` that names the datapoints with nan or +inf among their log-weights, if there are any."""
    if not bool(num_bad.any()):
        return
    bad = num_bad.nonzero()[:, 0].tolist()
    named = ", ".join(f"{int(ids[i])} ({int(num_bad[i])} of {num_samples} samples)" for i in bad[:10])
    raise ValueError(
        f"log-weights are nan or +inf for datapoints {named}{', ...' if len(bad) > 10 else ''}: the model or the "
        "proposal gives no probability there (look for nan parameters, zero scales, data outside the support); "
        "on_bad='count' finishes with nan for these datapoints"
    )
