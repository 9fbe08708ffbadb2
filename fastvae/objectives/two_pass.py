"""A bound whose memory does not grow with the number of samples: computed in chunks, and again for the gradient."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastvae import ops
from fastvae.distributions import checked_data
from fastvae.evaluation.arguments import checked_log_prob

from .chunks import Chunks
from .draws import Draws
from .estimator import Estimator
from .probe import leaves_of

__all__ = ["TwoPass"]


class TwoPass:
    """One bound of N datapoints in two passes over the chunks of its samples.

    The first pass records no graph and keeps the streaming state of the log-weights, which gives the bound and, in the
    second pass, the normalised weight of every sample. The second pass draws the same noise again and runs backward
    chunk by chunk with these weights as cotangents: through the decoder into parameters and z, and once for each draw
    from z into the proposal. Kept in between: the graph of the proposal (N rows), the state, a seed.

    Args:
        x: (N, ...).
        draws: the samples of the proposal.
        log_prob: ``log_prob(x, z)`` (k, n), what the log-weights are without log q.
        estimator: bound and gradient.
        chunks: what is worked on at once.
    """

    def __init__(
        self,
        x: Tensor,
        draws: Draws,
        log_prob: Callable[[Tensor, Tensor], Tensor],
        estimator: Estimator,
        chunks: Chunks,
    ) -> None:
        self.x, self.draws, self.log_prob = x, draws.with_seed(), log_prob
        self.estimator, self.chunks = estimator, chunks
        self.autocast = _same_autocast(x.device.type)
        self.random_state = _random_state(x.device)
        self.context = copy_context()  # backward on CUDA runs in a thread of its own, where a forced backend is unknown

    def bound(self, leaves: Sequence[Tensor]) -> Tensor:
        """(N,) nats; backward adds to the gradients of ``leaves``."""
        self.leaves = leaves
        return _Bound.apply(self, *leaves)

    def value(self) -> Tensor:
        """The first pass."""
        self.state = ops.empty_log_weights(self.x.shape[0], self.x.device)
        dtype = self.x.dtype
        with torch.no_grad(), self.autocast():
            for first, count in self.chunks.draws():
                z, log_q = self.draws.some(first, count)
                for samples, points in self.chunks.parts(count):
                    seen = first > 0 or samples.start > 0
                    log_w = self._log_w(self._decode(z[samples, points], points, seen), log_q[samples, points])
                    self._enter(self.state, log_w, points)
                    dtype = log_w.dtype
        return self.estimator.bound_of(self.state).to(dtype)

    def gradients(self, grad: Tensor) -> list[Tensor | None]:
        """The second pass: what backward from the bound with cotangent ``grad`` (N,) adds to each of the leaves."""
        sums = _Sums(self.leaves)
        again = ops.empty_log_weights(self.x.shape[0], self.x.device)
        with torch.enable_grad(), self.autocast(), _replayed(self.random_state, self.x.device):
            for first, count in self.chunks.draws():
                z, log_q = self.draws.some(first, count)
                weights, dz = log_q.new_empty(log_q.shape), torch.zeros_like(z)
                for samples, points in self.chunks.parts(count):
                    z_part = z[samples, points].detach().requires_grad_(z.requires_grad)
                    log_prob = self._decode(z_part, points, seen=True)
                    log_w = self._log_w(log_prob.detach(), log_q[samples, points].detach())
                    self._enter(again, log_w, points)
                    part = self.estimator.weights_in(self.state[:, points], log_w)
                    weights[samples, points] = part
                    inputs = [z_part] if z.requires_grad else []
                    for found in sums.add([log_prob], [(part * grad[points]).to(log_prob.dtype)], inputs):
                        dz[samples, points] = found
                self._into_proposal(sums, (z, log_q), dz, weights, grad)
        self._check_same(again)
        return sums.totals

    def _into_proposal(
        self, sums: "_Sums", drawn: tuple[Tensor, Tensor], dz: Tensor, weights: Tensor, grad: Tensor
    ) -> None:
        """From the gradient ``dz`` of log p(x, z) with respect to z to that of the bound in the proposal's parameters.

        ``drawn``: z and log q; ``weights``: (k, N) normalised.
        """
        z, log_q = drawn
        if self.estimator.log_q == "all":
            sums.add([z, log_q], [dz, (-weights * grad).to(log_q.dtype)])
            return
        if not z.requires_grad:
            return
        per_sample = weights.shape + (1,) * (z.ndim - 2)
        if self.estimator.log_q == "path":
            dz = dz - self.draws.score(z) * (weights * grad).view(per_sample)
        if self.estimator.doubly:
            dz = dz * self.estimator.path_factor(weights).view(per_sample)
        sums.add([z], [dz.to(z.dtype)])

    def _decode(self, z: Tensor, points: slice, seen: bool) -> Tensor:
        # the likelihood looks at the values of x once, not for every chunk
        with checked_data() if seen else nullcontext():
            return checked_log_prob(self.log_prob(self.x[points], z), z.shape[:2])

    def _log_w(self, log_prob: Tensor, log_q: Tensor) -> Tensor:
        return log_prob if self.estimator.log_q == "none" else log_prob - log_q

    def _enter(self, state: Tensor, log_w: Tensor, points: slice) -> None:
        state[:, points] = ops.update_log_weights(state[:, points], self.estimator.scaled(log_w))

    def _check_same(self, again: Tensor) -> None:
        first, second = self.estimator.bound_of(self.state), self.estimator.bound_of(again)
        # one read of the device in a pass over all samples; kernels may round differently where a graph is recorded
        if not torch.allclose(first, second, rtol=1e-3, atol=1e-2, equal_nan=True):
            worst = float((first - second).abs().max())
            raise RuntimeError(
                f"log p(x, z) is not the same in both passes of max_bytes: the bounds differ by up to {worst:.3g} "
                "nats. Between forward and backward keep mode, buffers and parameters of the model as they are; draw "
                "random numbers from torch's default generators, which are replayed; or pass max_bytes=None"
            )


class _Bound(torch.autograd.Function):
    """Autograd's view: a function of the leaves."""

    @staticmethod
    def forward(ctx: Any, run: TwoPass, *leaves: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(*leaves)
        return run.value()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # autograd raises if one was modified since
        run: TwoPass = ctx.run
        return None, *run.context.run(run.gradients, grad)


class _Sums:
    """The gradients of leaves, added up over chunks."""

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self.leaves = leaves
        self.totals: list[Tensor | None] = [None] * len(leaves)

    def add(
        self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor] = ()
    ) -> Sequence[Tensor]:
        """Backward from ``outputs``; returns the gradients of ``inputs``, zero where there is none."""
        pairs = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].requires_grad]
        if not pairs:
            return [torch.zeros_like(tensor) for tensor in inputs]
        outputs = [output for output, _ in pairs]
        self._check_known(outputs, inputs)
        # the graph outside of the chunk (of the proposal, the prior, the caller) is needed again
        found = torch.autograd.grad(
            outputs, [*inputs, *self.leaves], [c for _, c in pairs], allow_unused=True, retain_graph=True
        )
        for i, part in enumerate(found[len(inputs) :]):
            if part is not None:
                # a sum of many chunks: 16 bits would lose what one large matrix product keeps
                wide = part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
                total = self.totals[i]
                self.totals[i] = wide if total is None else total + wide
        return [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(inputs, found, strict=False)
        ]

    def _check_known(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        known = {id(tensor) for tensor in (*self.leaves, *inputs)}
        if any(id(leaf) not in known for leaf in leaves_of(outputs)):
            raise RuntimeError(
                "log p(x, z) uses parameters for some samples that it did not use for the first one, and their "
                "gradient would be lost: name the modules they belong to, modules=[decoder, ...]"
            )


def _same_autocast(device_type: str) -> Callable[[], Any]:
    """A context with the autocast of here and now; without its cache, which would hand casts made without a graph to
    code that needs one."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype, enabled, cache_enabled=False)


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def _replayed(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """torch's generators as they were; put back afterwards. What a decoder drew (dropout) it draws again."""
    cuda = device.type == "cuda"
    with ExitStack() as contexts:
        contexts.enter_context(torch.random.fork_rng([device] if cuda else []))
        torch.set_rng_state(state[0])
        if cuda:
            torch.cuda.set_rng_state(state[1], device)
        yield
