"""The engine of a sampler: the plan of a model as it is now, and programs that are ready to run it."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .backends import Backends
from .compiled import Compiled, live_state
from .draw import Draw
from .likelihoods import as_draw
from .plan import Plan
from .probe import refuse_leaks, refuse_ordered_channels
from .trace import NotAutoregressiveError, UnsupportedModelError

__all__ = ["Engine", "Likelihood"]

Likelihood = str | Callable[[Tensor, Tensor], Tensor] | Any
# larger batches are drawn in parts; on the CPU that is no slower, as the caches stay near
_MOST_CACHE_BYTES, _MOST_CACHE_BYTES_CUDA = 1 << 27, 1 << 32
_NAIVE_PART = 64
_PROGRAMS_KEPT = 4  # batch sizes and sets of known values that are ready to run


class Engine:
    """What a sampler keeps between calls: plans again when the model has changed, builds and keeps programs.

    Attributes:
        draw: the likelihood.
        device, dtype: of the model's parameters.
        programs: those that are ready, by their key; the one used last comes last.
        reason: why planning failed, if it did and ``fallback="naive"`` was asked for.
    """

    draw: Draw
    device: torch.device
    dtype: torch.dtype

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
        self._backend = backend
        self.reason: str | None = None
        self.programs: dict[Any, Any] = {}
        self._likelihood, self._fallback, self._schedule = likelihood, fallback, schedule
        self._compiled: Compiled | None = None
        self._signature: Any = None
        self.refresh()

    @property
    def plan(self) -> Plan | None:
        """The schedule for one image; None if the model is sampled naively."""
        return self._compiled.plan if self._compiled else None

    @cached_property
    def backends(self) -> Backends:
        """What can run the plan."""
        assert self.plan is not None
        return Backends(self._backend, self.plan, self.draw, self.device)

    @torch.inference_mode(False)  # what is kept must serve calls in any mode
    def refresh(self) -> None:
        """Read the live parameters; plan, or plan again, if the model has changed."""
        live = live_state(self.model)
        signature = (
            tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in live.items()),
            tuple(module.training for module in self.model.modules()),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
        )
        if signature != self._signature or (self._compiled is not None and not self._compiled.refresh()):
            self._compiled, self.programs, self._signature = None, {}, None
            self.__dict__.pop("backends", None)
            first = next(iter(live.values()), torch.zeros(0))
            parameter = next(iter(self.model.parameters()), first)
            self.device, self.dtype = parameter.device, parameter.dtype
            self.draw = self._plan()
            self._signature = signature

    def parts(self, num_samples: int) -> list[slice]:
        """Batches whose caches fit into memory and are still near."""
        bytes_kept = _MOST_CACHE_BYTES_CUDA if self.device.type == "cuda" else _MOST_CACHE_BYTES
        most = _NAIVE_PART if self.plan is None else max(1, bytes_kept // self.plan.cache_bytes)
        return [slice(start, min(start + most, num_samples)) for start in range(0, num_samples, most)]

    @torch.inference_mode(False)
    def program(
        self,
        batch: int,
        condition: Tensor | None,
        unknown: NDArray[np.bool_] | None = None,
        backend: str = "torch",
    ) -> Any:
        """A program for so many images, with the present weights and the condition (batch, ...).

        Where only some values (C, H, W) are ``unknown``, it walks the steps that draw those; ``backend`` runs it.
        """
        assert self._compiled is not None
        values = self._compiled.values(condition)
        plan = self._compiled.plan_for(batch)
        key: Any = batch if unknown is None else (batch, unknown.tobytes())
        key = key if backend == "torch" else (key, backend)
        program = self.programs.pop(key, None)
        if program is None:
            while len(self.programs) >= _PROGRAMS_KEPT:
                del self.programs[next(iter(self.programs))]
            plan = plan if unknown is None else plan.only(unknown)
            program = self.backends.program(backend, plan, batch, values)
        else:
            program.refresh(values)
        self.programs[key] = program  # the one used last is the last to go
        return program

    def _plan(self) -> Draw:
        self.reason = None
        try:
            compiled = Compiled(self.model, self._inputs, self._schedule)
            draw = self._check_output(compiled.output_shape)
            compiled.refresh()
            if draw.joint and len(compiled.plan.groups) > 1:
                raise NotAutoregressiveError(
                    f"the parameters of a pixel depend on its own channels, but likelihood {draw.name!r} orders these "
                    "itself, by its coefficients: the first layer's mask must exclude all channels of the centre pixel"
                )
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
        image = torch.zeros((batch, *self.event_shape), dtype=self.dtype, device=self.device)
        if self.condition_shape is None:
            return image, None
        return image, torch.zeros((batch, *self.condition_shape), dtype=self.dtype, device=self.device)

    def _check_output(self, shape: tuple[int, ...]) -> Draw:
        channels, height, width = self.event_shape
        joint = getattr(self._likelihood, "name", None) == "logistic_mixture"
        if len(shape) != 4 or (shape[1] % channels and not joint) or shape[2:] != (height, width):
            raise ValueError(
                f"the model must give (N, C * P, H, W) = (N, {channels} * P, {height}, {width}), got "
                f"(N, {', '.join(map(str, shape[1:]))}); check event_shape"
            )
        return as_draw(self._likelihood, shape[1], channels)
