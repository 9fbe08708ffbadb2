"""What evaluations and objectives take: a model or two callables, their modules, the numbers of the datapoints."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .conditioned import with_condition
from .draw import Latent

__all__ = [
    "MOST_IDS",
    "Joint",
    "callables",
    "check_device",
    "check_distinct",
    "check_numbers",
    "checked_ids",
    "checked_log_prob",
    "checked_modules",
    "evaluation_mode",
    "likelihood_of",
    "modules_of",
    "noise_dtype",
]

MOST_IDS = 2**32  # datapoint and sample numbers are 32-bit words of the counter
MOST_STEPS = 2**29  # of refining, each with a few samples


def callables(
    model: Any, proposal: Callable[..., Any] | None, log_joint: Callable[..., Tensor] | None, conditioned: bool = False
) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """``proposal(x)`` and ``log_joint(x, z)`` of a model, or those given instead of it.

    Raises:
        TypeError: if neither or both are given, or a part is missing or cannot be called.
    """
    if model is None:
        if proposal is None or log_joint is None:
            raise TypeError("pass a model, or both proposal= and log_joint=")
        for name, part in (("proposal", proposal), ("log_joint", log_joint)):
            if not callable(part):
                raise TypeError(f"{name} must be callable, got {type(part).__name__}")
        return with_condition(proposal, log_joint) if conditioned else (proposal, log_joint)
    if conditioned:
        raise TypeError("condition goes with proposal=(x, condition) and log_joint=(x, z, condition), not with a model")
    if proposal is not None or log_joint is not None:
        raise TypeError("pass either a model or proposal= and log_joint=, not both")
    missing = [name for name in ("proposal", "prior", "likelihood") if not callable(getattr(model, name, None))]
    if missing:
        raise TypeError(
            f"model must have the methods proposal(x), prior() and likelihood(z); {type(model).__name__} lacks "
            f"{', '.join(missing)}. Other models fit through proposal= and log_joint="
        )
    return model.proposal, Joint(model)


class Joint:
    """log p(x, z) of a model as a function of x (n, ...) and z (k, n, ...); its prior is made once."""

    def __init__(self, model: Any) -> None:
        self.prior, self.likelihood = model.prior(), likelihood_of(model)

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        return self.likelihood(x, z) + self.prior.log_prob(z)


def likelihood_of(model: Any) -> Callable[[Tensor, Latent], Tensor]:
    """log p(x | z) of a model as a function of x (n, ...) and z (k, n, ...), or a tuple of such layers."""

    def log_prob(x: Tensor, z: Latent) -> Tensor:
        lead = (z if isinstance(z, Tensor) else z[0]).shape[:2]
        return checked_log_prob(model.likelihood(z).log_prob(x), lead, "log p(x | z)")

    return log_prob


def checked_log_prob(log_prob: Any, want: Sequence[int], name: str = "log p(x, z)") -> Tensor:
    """``log_prob`` if it is a tensor of one number for each z; ``want`` is (samples, datapoints).

    Raises:
        TypeError: if its numbers are integer or complex.
        ValueError: if not.
    """
    got = tuple(log_prob.shape) if isinstance(log_prob, Tensor) else type(log_prob).__name__
    if got != tuple(want):
        raise ValueError(
            f"{name} must be a tensor of shape {tuple(want)} (samples, datapoints), one number for each z, got {got}; "
            "sum over the dimensions of x (torch.distributions.Independent does), and keep samples first"
        )
    if not log_prob.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {log_prob.dtype}; log_joint returns nats")
    return log_prob


def modules_of(*parts: Any) -> list[nn.Module]:
    """Those of the arguments that are modules or methods of one."""
    owners = [getattr(part, "__self__", part) for part in parts]
    return [owner for owner in owners if isinstance(owner, nn.Module)]


def checked_modules(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """A list of them, or ``TypeError``."""
    if not isinstance(modules, Iterable):
        raise TypeError(f"modules must be a list of torch.nn.Module objects, got {type(modules).__name__}")
    found = list(modules)
    for module in found:
        if not isinstance(module, nn.Module):
            raise TypeError(f"modules must be torch.nn.Module objects, got {type(module).__name__}")
    return found


def check_numbers(
    num_samples: int, seed: int, first_sample: int, max_bytes: int | None, refine: int, on_bad: str
) -> None:
    """Raise ``TypeError`` for what is no integer, ``ValueError`` for what is out of range."""
    limits = {"num_samples": (num_samples, 1, MOST_IDS), "seed": (seed, 0, 2**64 - 1)}
    limits["first_sample"] = (first_sample, 0, MOST_IDS - 1)
    limits["refine"] = (refine, 0, MOST_STEPS)
    if max_bytes is not None:
        limits["max_bytes"] = (max_bytes, 1, 2**62)
    for name, (value, least, most) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{name} must be between {least} and {most}, got {value}")
    if first_sample + num_samples > MOST_IDS:
        raise ValueError(f"first_sample + num_samples must be at most {MOST_IDS}, got {first_sample + num_samples}")
    if on_bad not in ("raise", "count"):
        raise ValueError(f"on_bad must be 'raise' or 'count', got {on_bad!r}")


def check_device(x: Tensor, modules: list[nn.Module]) -> None:
    """Raise ``ValueError`` if a module is elsewhere than the data."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.device != x.device:
                raise ValueError(
                    f"x must be on the device of {type(module).__name__}, {parameter.device}, got {x.device}; "
                    f"pass x.to({str(parameter.device)!r})"
                )
            break


def checked_ids(ids: Tensor | None, x: Tensor) -> Tensor:
    """The global numbers of the datapoints, on the device of ``x``; 0, 1, ... by default.

    Raises:
        TypeError: if they are not int64.
        ValueError: if there is not one in [0, 2^32) for each datapoint.
    """
    if ids is None:
        return torch.arange(x.shape[0], device=x.device)
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise TypeError(f"ids must be an int64 tensor, got {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.shape != x.shape[:1]:
        raise ValueError(f"ids must have shape ({x.shape[0]},), one number for each datapoint, got {tuple(ids.shape)}")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= MOST_IDS):
        raise ValueError(f"ids must be in [0, 2^32), got {int(ids.min())} to {int(ids.max())}")
    return ids.to(x.device)


def check_distinct(ids: Tensor) -> None:
    """Raise ``ValueError`` if two datapoints have one number: their samples would be the same, and errors of means over
    datapoints, which take them for independent, too small."""
    values, counts = ids.unique(return_counts=True)
    if len(values) < len(ids):
        twice = ", ".join(map(str, values[counts > 1][:5].tolist()))
        raise ValueError(
            f"ids must be different numbers, but {twice} are there more than once: their noise would be the same, and "
            "the error of the mean far too small"
        )


def noise_dtype(x: Tensor, modules: list[nn.Module]) -> torch.dtype:
    """Of the model where there is one to look at, else of the data."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


@contextmanager
def evaluation_mode(modules: list[nn.Module]) -> Iterator[None]:
    """All modules in eval mode inside, in the mode they had afterwards."""
    training = [part for module in modules for part in module.modules() if part.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
