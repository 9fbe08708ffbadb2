"""``Sampler``: exact samples from any causal network, in far fewer steps than pixels."""

import operator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from .certify import Certificate, CertificateError, certify
from .engine import Engine, Likelihood
from .inputs import checked_condition, require_integer, require_tensor, uniform_numbers
from .naive import naive_samples
from .plan import Plan

__all__ = ["Sampler", "Samples"]


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Attributes:
        samples: (B, C, H, W) values.
        log_prob: (B,) log-probability of each image in nats, None if the likelihood is a callable.
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
    ) -> None:
        self.model, self.event_shape, self.condition_shape = model, event_shape, condition_shape
        self._engine = Engine(model, event_shape, likelihood, condition_shape, fallback)

    @property
    def plan(self) -> Plan | None:
        """The schedule, which prints itself; None if the model is sampled naively."""
        return self._engine.plan

    @property
    def reason(self) -> str | None:
        """Why planning failed, if it did and ``fallback="naive"`` was asked for."""
        return self._engine.reason

    def __repr__(self) -> str:
        return f"Sampler({type(self.model).__name__}, {self.event_shape})\n{self.plan or self.reason}"

    def __call__(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        condition: Tensor | None = None,
        noise: Tensor | None = None,
        verify: bool = False,
        first_id: int = 0,
    ) -> Samples:
        """Draw images.

        Image number b uses the uniform numbers at (seed, first_id + b, pixel, channel), so it is the same whatever
        batch it is drawn in (but for a value whose u meets the cdf within the rounding of the network).

        Args:
            num_samples: B.
            seed: an integer in [0, 2^64).
            condition: (B, *condition_shape), one for each image, if the model takes one.
            noise: uniform numbers (B, C, H, W) in (0, 1) to use instead of the seed.
            verify: prove the samples exact with one parallel pass.
            first_id: the number of the first image.

        Raises:
            TypeError, ValueError: for arguments that make no sense, or if the model's result is not a number.
            CertificateError: with ``verify``, if a value is not the one that the model gives.
        """
        engine = self._engine
        engine.refresh()
        uniform = uniform_numbers(num_samples, self.event_shape, seed, noise, first_id, engine.dtype, engine.device)
        condition = self._checked(num_samples, condition)
        if self.plan is None:
            images, nats = naive_samples(self.model, engine.draw, uniform, condition, dtype=engine.dtype)
        else:
            parts = []
            for rows in engine.parts(num_samples):
                program = engine.program(rows.stop - rows.start, None if condition is None else condition[rows])
                program.sample(uniform[rows])
                parts.append((program.images(), program.log_prob()))
            images = torch.cat([part for part, _ in parts])
            known = [part for _, part in parts if part is not None]
            nats = torch.cat(known) if known else None
        _refuse_nan(images, nats)
        certificate = None
        if verify:
            proofs = [
                certify(
                    self.model, engine.draw, images[rows], uniform[rows], None if condition is None else condition[rows]
                )
                for rows in engine.parts(num_samples)
            ]
            certificate = reduce(operator.add, proofs)
            if not certificate.ok:
                raise CertificateError(certificate)
        return Samples(images, nats, certificate)

    def naive(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        condition: Tensor | None = None,
        noise: Tensor | None = None,
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
        engine = self._engine
        engine.refresh()
        uniform = uniform_numbers(num_samples, self.event_shape, seed, noise, first_id, engine.dtype, engine.device)
        condition = self._checked(num_samples, condition)
        images, nats = naive_samples(self.model, engine.draw, uniform, condition, num_pixels, engine.dtype)
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
        condition = self._checked(images.shape[0], condition)
        if self.plan is None:
            raise ValueError(f"there are no steps to decode by, the model is sampled naively: {self.reason}")
        images = images.to(engine.device, engine.dtype)
        parts = []
        for rows in engine.parts(images.shape[0]):
            program = engine.program(rows.stop - rows.start, None if condition is None else condition[rows])
            program.decode(images[rows])
            parts.append(program.params())
        return torch.cat(parts)

    def _checked(self, num_samples: int, condition: Tensor | None) -> Tensor | None:
        engine = self._engine
        return checked_condition(num_samples, self.condition_shape, condition, engine.dtype, engine.device)


def _refuse_nan(images: Tensor, nats: Tensor | None) -> None:
    if not bool(torch.isfinite(images if nats is None else nats).all()):
        raise ValueError("the model's parameters are not all finite (nan or infinity); check its weights and condition")
