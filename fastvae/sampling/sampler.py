"""``Sampler``: exact samples from any causal network, in far fewer steps than pixels."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from .certify import Certificate, CertificateError, certify
from .draw import Draw
from .engine import Engine, Likelihood
from .inputs import checked_condition, require_integer, require_tensor, uniform_numbers
from .likelihoods import adjusted
from .naive import naive_samples
from .plan import Plan
from .request import Request, checked_observations

__all__ = ["Sampler", "Samples"]


OnRows = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Attributes:
        samples: (B, C, H, W) values.
        log_prob: (B,) nats of the values that were drawn, each given all earlier ones, under the model itself, whatever
            the temperature: log p(x) of the image if nothing was observed, 0 if everything was. None if the likelihood
            is a callable.
        certificate: the proof that the samples are exact, if it was asked for.
    """

    samples: Tensor
    log_prob: Tensor | None
    certificate: Certificate | None = None


class Sampler:
    """Exact samples from a causal network; see :func:`fastvae.compile_sampler`. Not to be shared between threads.

    Parameters and buffers are read at every call. A change of their zero pattern, shape, dtype or device, or of the
    model's training mode or of autocast, is noticed and planned again. Python attributes of the model and tensors that
    are neither parameter nor buffer are part of the plan: compile again after replacing one.
    """

    def __init__(
        self,
        model: nn.Module,
        event_shape: tuple[int, ...],
        likelihood: Likelihood,
        condition_shape: tuple[int, ...] | None,
        fallback: str | None,
        schedule: str = "auto",
        backend: str = "auto",
    ) -> None:
        self.model, self.event_shape, self.condition_shape = model, event_shape, condition_shape
        self._engine = Engine(model, event_shape, likelihood, condition_shape, fallback, schedule, backend)

    @property
    def plan(self) -> Plan | None:
        """The schedule for one image, which prints itself; None if the model is sampled naively."""
        return self._engine.plan

    @property
    def reason(self) -> str | None:
        """Why planning failed, if it did and ``fallback="naive"`` was asked for."""
        return self._engine.reason

    def __repr__(self) -> str:
        how = f"{self.plan}\n{self._engine.backends}" if self.plan else self.reason
        return f"Sampler({type(self.model).__name__}, {self.event_shape})\n{how}"

    def __call__(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        condition: Tensor | None = None,
        noise: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        greedy: bool = False,
        observed: tuple[Tensor, Tensor] | None = None,
        verify: bool = False,
        first_id: int = 0,
        progress: bool | None = None,
        on_rows: OnRows | None = None,
    ) -> Samples:
        """Draw images.

        Image number b uses the uniform numbers at (seed, first_id + b, pixel, channel), so it is the same whatever
        batch it is drawn in (but for a value whose u meets the cdf within the rounding of the network).

        With ``observed``, pixels that are known keep their values and the others are drawn in raster order, each given
        all pixels before it. Known pixels that come after an unknown one do not inform it: only where all known pixels
        come first, such as the upper half of an image, are the completions draws of p(unknown | known) and ``log_prob``
        its logarithm. What is known up to the first unknown pixel costs one parallel pass, the steps between that draw
        nothing are merged, and nothing is computed after the last one.

        Args:
            num_samples: B.
            seed: an integer in [0, 2^64).
            condition: (B, *condition_shape), one for each image, if the model takes one.
            noise: uniform numbers (B, C, H, W) in (0, 1) to use instead of the seed.
            temperature: T > 0. It divides the logits of "bernoulli" and "categorical" and multiplies the scale of
                "gaussian"; for a logistic mixture it divides the logits of the components and multiplies their scales.
            top_k: for "categorical": draw from the k levels with the largest logits (and any that equal the k-th).
            greedy: take the limit of temperature 0: the most probable level, the mean of "gaussian", the centre of the
                heaviest component of a logistic mixture. The noise plays no part.
            observed: (mask, values): a boolean mask that is True for known values, and the values, (B, C, H, W) each or
                with 1 in place of B or C. Values where the mask is False do not count and may be nan.
            verify: prove the samples exact with one parallel pass.
            first_id: the number of the first image.
            progress: show a bar, which counts images; by default on a terminal if it takes more than a second.
            on_rows: called as rows are finished, with the number of the first image in them (large batches are drawn in
                parts), the number of the first row and values (images, C, rows, W): each row of each image once, from
                the top.

        Raises:
            TypeError, ValueError: for arguments that make no sense, or if the model's result is not a number.
            CertificateError: with ``verify``, if a value is not the one that the model gives.
        """
        if on_rows is not None and not callable(on_rows):
            raise TypeError(f"on_rows must be a function of (first image, first row, values), got {on_rows!r}")
        self._engine.refresh()
        draw = adjusted(self._engine.draw, temperature, top_k, greedy)
        request = self._request(num_samples, seed, condition, noise, first_id, draw, observed)
        unknown = None if request.known is None else (~request.known).any(0).cpu().numpy()  # in any image
        images, nats, proofs = [], [], []
        with _bar(num_samples, progress) as bar:
            for rows in self._engine.parts(num_samples):
                part = request.part(rows)
                values, log_prob = self._drawn(part, unknown, on_rows and partial(on_rows, rows.start))
                _refuse_nan(values, log_prob)
                images.append(values)
                nats.append(log_prob)
                if verify:
                    proofs.append(self._proof(part, values))
                bar.update(part.size)
        certificate = reduce(operator.add, proofs) if verify else None
        if certificate is not None and not certificate.ok:
            raise CertificateError(certificate)
        return Samples(torch.cat(images), _joined(nats), certificate)

    def naive(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        condition: Tensor | None = None,
        noise: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        greedy: bool = False,
        observed: tuple[Tensor, Tensor] | None = None,
        first_id: int = 0,
        num_pixels: int | None = None,
    ) -> Samples:
        """The same images by one full pass of the model per pixel: slow, and free of any plan.

        Args:
            num_pixels: stop after so many pixels and leave the others zero; every pixel costs the same.

        The other arguments are those of a call of the sampler.
        """
        if num_pixels is not None:
            require_integer("num_pixels", num_pixels, 1, self.event_shape[1] * self.event_shape[2] + 1)
        self._engine.refresh()
        draw = adjusted(self._engine.draw, temperature, top_k, greedy)
        request = self._request(num_samples, seed, condition, noise, first_id, draw, observed)
        images, nats = self._naive(request, num_pixels)
        _refuse_nan(images, nats)
        return Samples(images, nats)

    def decode(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Parameters of given images by the steps of the plan: equal to ``model(images)``, computed as sampling does.

        Args:
            images: (B, C, H, W).
            condition: (B, *condition_shape), if the model takes one.

        Returns:
            (B, C * P, H, W).

        Raises:
            ValueError: if a shape does not fit, or the model is sampled naively.
        """
        require_tensor("images", images)
        if images.ndim != 4 or tuple(images.shape[1:]) != self.event_shape or not images.shape[0]:
            raise ValueError(f"images must have shape (B, *{self.event_shape}), B >= 1, got {tuple(images.shape)}")
        engine = self._engine
        engine.refresh()
        condition = checked_condition(images.shape[0], self.condition_shape, condition, engine.dtype, engine.device)
        if self.plan is None:
            raise ValueError(f"there are no steps to decode by, the model is sampled naively: {self.reason}")
        images = images.to(engine.device, engine.dtype)
        parts = []
        for rows in engine.parts(images.shape[0]):
            program = engine.program(rows.stop - rows.start, None if condition is None else condition[rows])
            program.decode(images[rows])
            parts.append(program.params())
        return torch.cat(parts)

    def _request(
        self,
        num_samples: int,
        seed: int,
        condition: Tensor | None,
        noise: Tensor | None,
        first_id: int,
        draw: Draw,
        observed: Any,
    ) -> Request:
        kind = (self._engine.dtype, self._engine.device)
        uniform = uniform_numbers(num_samples, self.event_shape, seed, noise, first_id, *kind)
        condition = checked_condition(num_samples, self.condition_shape, condition, *kind)
        known, values = checked_observations(num_samples, self.event_shape, observed, draw, *kind)
        return Request(draw, uniform, condition, known, values, (seed, first_id) if noise is None else None)

    def _drawn(
        self,
        request: Request,
        unknown: NDArray[np.bool_] | None,
        on_rows: Callable[[int, Tensor], None] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Images and their nats."""
        if self.plan is None or (unknown is not None and not unknown.any()):  # all is known: no pass at all
            return self._naive(request, on_rows=on_rows)
        name = self._engine.backends.for_request(request, whole=unknown is None and on_rows is None)
        program = self._engine.program(request.size, request.condition, unknown, name)
        program.sample(request, on_rows)
        return program.images(), program.log_prob()

    def _proof(self, request: Request, images: Tensor) -> Certificate:
        return certify(
            self.model, request.draw, images, request.uniform, request.condition, request.known, request.values
        )

    def _naive(self, request: Request, num_pixels: int | None = None, **options: Any) -> tuple[Tensor, Tensor | None]:
        return naive_samples(
            self.model,
            request.draw,
            request.uniform,
            request.condition,
            num_pixels,
            self._engine.dtype,
            self.plan.groups if self.plan else (slice(None),),
            self.plan.order if self.plan else None,
            known=request.known,
            values=request.values,
            **options,
        )


def _bar(total: int, progress: bool | None) -> tqdm:
    # tqdm: None hides the bar where there is no terminal; short calls show nothing unless asked to
    delay = 1 if progress is None else 0
    return tqdm(
        total=total, desc="sampling", unit="image", delay=delay, disable=None if progress is None else not progress
    )


def _joined(nats: list[Tensor | None]) -> Tensor | None:
    found = [part for part in nats if part is not None]
    return torch.cat(found) if found else None


def _refuse_nan(images: Tensor, nats: Tensor | None) -> None:
    if not bool(torch.isfinite(images if nats is None else nats).all()):
        raise ValueError("the model's parameters are not all finite (nan or infinity); check its weights and condition")
