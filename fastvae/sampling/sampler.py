"""``compile_sampler``: exact samples from any causal network, in far fewer steps than pixels."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .certify import Certificate, CertificateError, certify
from .compiled import Compiled, live_state
from .draw import Draw, as_draw
from .inputs import checked_condition, require_integer, require_sizes, require_tensor, uniform_numbers
from .naive import naive_samples
from .plan import Plan
from .probe import refuse_leaks, refuse_ordered_channels
from .run import Program
from .trace import NotAutoregressiveError, UnsupportedModelError

__all__ = ["Sampler", "Samples", "compile_sampler"]

Likelihood = str | Callable[[Tensor, Tensor], Tensor] | Any
_MOST_CACHE_BYTES = 1 << 27  # larger batches are drawn in parts: no slower, and the caches stay near
_NAIVE_PART = 64
_PROGRAMS_KEPT = 4  # batch sizes that are ready to run


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


def compile_sampler(
    model: nn.Module,
    event_shape: Sequence[int] | None = None,
    likelihood: Likelihood | None = None,
    *,
    condition_shape: Sequence[int] | None = None,
    example_condition: Tensor | None = None,
    fallback: Literal["naive"] | None = None,
    schedule: Literal["auto", "wavefront", "row", "levels"] = "auto",
) -> "Sampler":
    r"""Plan exact sampling for a causal network as it is.

    The network is traced to ATen operators, every operator gets the offsets at which it reads pixels, and the longest
    path from a pixel to the next gives the smallest skew s such that pixel (i, j) can be drawn at step
    :math:`j + s i`: W + s (H - 1) steps instead of H W passes, and each value is computed once. This is the smallest
    skew of a wavefront; it is the longest chain of dependencies for plain stacks of convolutions, while dilated ones
    have shorter chains. Values are drawn as x = g(u, f(x)), so ``verify=True`` can prove them exact with a single
    parallel pass.

    The channels of a pixel are drawn together, or one after the other where the model orders them (colour masks); a
    callable likelihood then gets the channels of one group only.

    Networks that are causal in another order than raster order (locally masked convolutions along an s-curve or a
    Hilbert curve) are drawn by the levels of their dependencies: each pixel as soon as all it depends on is there.

    Networks with strides are drawn so, too.

    Not covered: attention, pooling and other layers that mix pixels by anything else than convolutions and shifts (see
    ``fallback``).

    Args:
        model: ``model(x)`` or ``model(x, condition)`` with x (N, C, H, W) gives (N, C * P, H, W), the P parameters of
            each value; it must be causal in some order of the pixels. Any module made of convolutions, shifts, pads
            and crops, linear layers and functions of single pixels.
        event_shape: (C, H, W); by default ``model.event_shape``.
        likelihood: "bernoulli" (P = 1 logit), "categorical" (P logits of the levels 0..P-1), "gaussian" (P = 2, mean
            and log-scale), an object with one of these as its ``name`` or a ``LogisticMixtureLikelihood`` (C = 1, P = 3
            for each component), or a callable g(u, params) with u (..., C) and params (..., C, P) that gives values
            (..., C) and is monotone in u. By default ``model.likelihood`` or
            ``model.family`` if that has a name.
        condition_shape: the shape of the condition of one image, (d,) or (C, H, W); by default
            ``model.condition_shape``, None for none.
        example_condition: instead, a condition for some images, (N, ...).
        fallback: "naive" to sample with one full pass per pixel where planning fails for an operator that it does not
            know. A model that is not causal is refused all the same: where the operators do not tell, its parameters
            are probed at one random image when it is compiled.
        schedule: "wavefront", "row" (one pixel after the other, what reads finished rows only a whole row at once), or
            "auto" for the one whose estimated time is shorter at the batch size; ``plan`` tells why.

    Returns:
        A :class:`Sampler`.

    Raises:
        TypeError, ValueError: for arguments that make no sense.
        UnsupportedModelError: a ValueError, if the model is not causal, uses batch statistics or random numbers, or,
            without a fallback, has an operator outside the vocabulary; it names the operator, the module and the line.

    Example:
        >>> import fastvae
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Conv2d(1, 1, 3, padding=1)
        >>> _ = net.weight.data[:, :, 1, 1:].zero_(), net.weight.data[:, :, 2].zero_()  # mask A
        >>> sampler = fastvae.compile_sampler(net, (1, 8, 8), "bernoulli")
        >>> sampler.plan.num_steps, sampler.plan.skew
        (22, 2)
        >>> out = sampler(5, seed=0, verify=True)
        >>> out.samples.shape, out.log_prob.shape, out.certificate.ok
        (torch.Size([5, 1, 8, 8]), torch.Size([5]), True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if type(model).forward is nn.Module.forward:
        raise TypeError(
            f"model must be an autoregressive network, called as model(x), but {type(model).__name__} has no forward; "
            "samples of a latent-variable model come from model.likelihood(model.prior().sample((n,))).sample()"
        )
    if fallback not in (None, "naive"):
        raise ValueError(f"fallback must be None or 'naive', got {fallback!r}")
    if condition_shape is not None and example_condition is not None:
        raise ValueError("give condition_shape or example_condition, not both")
    if event_shape is None:
        event_shape = getattr(model, "event_shape", None)
        if event_shape is None:
            raise ValueError("event_shape is missing: the model has no attribute of that name, pass (C, H, W)")
    shape = require_sizes("event_shape", event_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"event_shape must be (C, H, W) with positive sizes, got {shape}")
    if likelihood is None:
        named = (getattr(model, attribute, None) for attribute in ("likelihood", "family"))
        likelihood = next((each for each in named if isinstance(getattr(each, "name", None), str)), None)
        if likelihood is None:
            raise ValueError("likelihood is missing: pass 'bernoulli', 'categorical', 'gaussian' or g(u, params)")
    if example_condition is not None:
        require_tensor("example_condition", example_condition)
        condition_shape = example_condition.shape[1:]
    elif condition_shape is None:
        condition_shape = getattr(model, "condition_shape", None)
    if condition_shape is not None:
        condition_shape = require_sizes("condition_shape", condition_shape)
    if schedule not in ("auto", "wavefront", "row", "levels"):
        raise ValueError(f"schedule must be 'auto', 'wavefront', 'row' or 'levels', got {schedule!r}")
    return Sampler(model, shape, likelihood, condition_shape, fallback, schedule)


class Sampler:
    """Exact samples from a causal network; see :func:`compile_sampler`. Not to be shared between threads.

    Parameters and buffers are read at every call. A change of their zero pattern, shape, dtype or device, or of the
    model's training mode or of autocast, is noticed and planned again. Python attributes of the model and tensors that
    are neither parameter nor buffer are part of the plan: compile again after replacing one.

    Attributes:
        reason: why planning failed, if it did and ``fallback="naive"`` was asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        event_shape: tuple[int, ...],
        likelihood: Likelihood,
        condition_shape: tuple[int, ...] | None,
        fallback: str | None,
        schedule: str = "auto",
    ) -> None:
        self.model, self.event_shape, self.condition_shape = model, event_shape, condition_shape
        self.reason: str | None = None
        self._likelihood, self._fallback, self._schedule = likelihood, fallback, schedule
        self._compiled: Compiled | None = None
        self._draw: Draw | None = None
        self._programs: dict[int, Program] = {}
        self._signature: Any = None
        self._prepare()

    @property
    def plan(self) -> Plan | None:
        """The schedule for one image, which prints itself; None if the model is sampled naively."""
        return self._compiled.plan if self._compiled else None

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
        draw = self._prepare()
        uniform = uniform_numbers(num_samples, self.event_shape, seed, noise, first_id, self._dtype, self._device)
        condition = self._checked(num_samples, condition)
        if self.plan is None:
            images, nats = naive_samples(self.model, draw, uniform, condition, dtype=self._dtype)
        else:
            parts = []
            for rows in self._parts(num_samples):
                program = self._program(rows, condition)
                program.sample(uniform[rows])
                parts.append((program.images(), program.log_prob()))
            images = torch.cat([part for part, _ in parts])
            known = [part for _, part in parts if part is not None]
            nats = torch.cat(known) if known else None
        _refuse_nan(images, nats)
        certificate = None
        if verify:
            proofs = [
                certify(self.model, draw, images[rows], uniform[rows], None if condition is None else condition[rows])
                for rows in self._parts(num_samples)
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
        draw = self._prepare()
        uniform = uniform_numbers(num_samples, self.event_shape, seed, noise, first_id, self._dtype, self._device)
        condition = self._checked(num_samples, condition)
        images, nats = naive_samples(
            self.model,
            draw,
            uniform,
            condition,
            num_pixels,
            self._dtype,
            self.plan.groups if self.plan else (slice(None),),
            self.plan.order if self.plan else None,
        )
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
        self._prepare()
        condition = self._checked(images.shape[0], condition)
        if self.plan is None:
            raise ValueError(f"there are no steps to decode by, the model is sampled naively: {self.reason}")
        images = images.to(self._device, self._dtype)
        parts = []
        for rows in self._parts(images.shape[0]):
            program = self._program(rows, condition)
            program.decode(images[rows])
            parts.append(program.params())
        return torch.cat(parts)

    def _checked(self, num_samples: int, condition: Tensor | None) -> Tensor | None:
        return checked_condition(num_samples, self.condition_shape, condition, self._dtype, self._device)

    @torch.inference_mode(False)  # what is kept must serve calls in any mode
    def _prepare(self) -> Draw:
        """Plan, or plan again, if the model has changed."""
        live = live_state(self.model)
        signature = (
            tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in live.items()),
            tuple(module.training for module in self.model.modules()),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
        )
        if signature != self._signature or (self._compiled is not None and not self._compiled.refresh()):
            self._compiled, self._programs, self._signature = None, {}, None
            first = next(iter(live.values()), torch.zeros(0))
            parameter = next(iter(self.model.parameters()), first)
            self._device, self._dtype = parameter.device, parameter.dtype
            self._draw = self._plan()
            self._signature = signature
        assert self._draw is not None
        return self._draw

    def _plan(self) -> Draw:
        self.reason = None
        try:
            compiled = Compiled(self.model, self._inputs, self._schedule)
            draw = self._check_output(compiled.output_shape)
            compiled.refresh()
            self._compiled = compiled
            return draw
        except NotAutoregressiveError as error:
            if error.offset == (0, 0) and self.event_shape[0] > 1:
                refuse_ordered_channels(self.model, self._draw_of_a_pass(), self.event_shape, self.condition_shape)
            raise
        except UnsupportedModelError as error:
            if self._fallback is None:
                raise
            draw = self._draw_of_a_pass()
            refuse_leaks(self.model, draw, self.event_shape, self.condition_shape)
            self.reason = str(error)
            return draw

    def _draw_of_a_pass(self) -> Draw:
        image, condition = self._inputs(2)
        with torch.no_grad():
            params = self.model(image) if condition is None else self.model(image, condition)
        if not isinstance(params, Tensor):
            raise UnsupportedModelError(f"the model must return one tensor of parameters, got {type(params).__name__}")
        return self._check_output(tuple(params.shape))

    def _inputs(self, batch: int) -> tuple[Tensor, Tensor | None]:
        image = torch.zeros((batch, *self.event_shape), dtype=self._dtype, device=self._device)
        if self.condition_shape is None:
            return image, None
        return image, torch.zeros((batch, *self.condition_shape), dtype=self._dtype, device=self._device)

    def _check_output(self, shape: tuple[int, ...]) -> Draw:
        channels, height, width = self.event_shape
        if channels > 1 and getattr(self._likelihood, "name", None) == "logistic_mixture":
            raise ValueError(
                "likelihood 'logistic_mixture' is sampled for images of one channel only, as the channels of a colour "
                f"depend on each other; event_shape is {self.event_shape}"
            )
        if len(shape) != 4 or shape[1] % channels or shape[2:] != (height, width):
            raise ValueError(
                f"the model must give (N, C * P, H, W) = (N, {channels} * P, {height}, {width}), got "
                f"(N, {', '.join(map(str, shape[1:]))}); check event_shape"
            )
        return as_draw(self._likelihood, shape[1] // channels)

    def _parts(self, num_samples: int) -> list[slice]:
        """Batches whose caches fit into memory and are still near."""
        most = _NAIVE_PART if self.plan is None else max(1, _MOST_CACHE_BYTES // self.plan.cache_bytes)
        return [slice(start, min(start + most, num_samples)) for start in range(0, num_samples, most)]

    @torch.inference_mode(False)
    def _program(self, rows: slice, condition: Tensor | None) -> Program:
        assert self._compiled is not None
        assert self._draw is not None
        batch = rows.stop - rows.start
        values = self._compiled.values(None if condition is None else condition[rows])
        program = self._programs.pop(batch, None)
        if program is None:
            while len(self._programs) >= _PROGRAMS_KEPT:
                del self._programs[next(iter(self._programs))]
            program = Program(self._compiled.plan_for(batch), batch, self._draw, values, self._device)
        else:
            program.refresh(values)
        self._programs[batch] = program  # the one used last is the last to go
        return program


def _refuse_nan(images: Tensor, nats: Tensor | None) -> None:
    if not bool(torch.isfinite(images if nats is None else nats).all()):
        raise ValueError("the model's parameters are not all finite (nan or infinity); check its weights and condition")
