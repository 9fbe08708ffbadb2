"""The arguments of ``log_likelihood``: checked before any work, and brought into one form."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .conditioned import with_condition

__all__ = [
    "as_callables",
    "check_device",
    "check_numbers",
    "checked_ids",
    "evaluation_mode",
    "noise_dtype",
    "owners",
]

_IDS = 2**32  # datapoint and sample numbers are 32-bit words of the counter


def as_callables(
    model: Any, proposal: Callable[..., Any] | None, log_joint: Callable[..., Tensor] | None, conditioned: bool = False
) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
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
    prior = model.prior()
    return model.proposal, lambda x, z: model.likelihood(z).log_prob(x) + prior.log_prob(z)


def check_numbers(num_samples: int, seed: int, first_sample: int, max_bytes: int | None, on_bad: str) -> None:
    limits = {"num_samples": (num_samples, 1, _IDS), "seed": (seed, 0, 2**64 - 1)}
    limits["first_sample"] = (first_sample, 0, _IDS - 1)
    if max_bytes is not None:
        limits["max_bytes"] = (max_bytes, 1, 2**62)
    for name, (value, least, most) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{name} must be between {least} and {most}, got {value}")
    if first_sample + num_samples > _IDS:
        raise ValueError(f"first_sample + num_samples must be at most {_IDS}, got {first_sample + num_samples}")
    if on_bad not in ("raise", "count"):
        raise ValueError(f"on_bad must be 'raise' or 'count', got {on_bad!r}")


def owners(*parts: Any) -> list[nn.Module]:
    """Those of the arguments that are modules or methods of one."""
    owners = [getattr(part, "__self__", part) for part in parts]
    return [owner for owner in owners if isinstance(owner, nn.Module)]


def check_device(x: Tensor, modules: list[nn.Module]) -> None:
    for module in modules:
        for parameter in module.parameters():
            if parameter.device != x.device:
                raise ValueError(
                    f"x must be on the device of {type(module).__name__}, {parameter.device}, got {x.device}; "
                    f"pass x.to({str(parameter.device)!r})"
                )
            break


def checked_ids(ids: Tensor | None, x: Tensor) -> Tensor:
    if ids is None:
        return torch.arange(x.shape[0], device=x.device)
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise TypeError(f"ids must be an int64 tensor, got {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.shape != x.shape[:1]:
        raise ValueError(f"ids must have shape ({x.shape[0]},), one number for each datapoint, got {tuple(ids.shape)}")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= _IDS):
        raise ValueError(f"ids must be in [0, 2^32), got {int(ids.min())} to {int(ids.max())}")
    return ids.to(x.device)


def noise_dtype(x: Tensor, modules: list[nn.Module]) -> torch.dtype:
    """Of the model where there is one to look at, else of the data."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


@contextmanager
def evaluation_mode(modules: list[nn.Module]) -> Iterator[None]:
    training = [part for module in modules for part in module.modules() if part.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
