"""Is this layer a masked convolution? Its forward is tried on a stand-in and compared with the definition."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .exact import exact_products
from .layer import Plan, settings_of, swap_class
from .replica import Replica, is_mask, mask_names, replicate

__all__ = ["probe"]

# float64 leaves no room for another function; float32 is for devices without it and forwards that insist on it
_TRIES = ((torch.float64, 1e-9), (torch.float32, 1e-4))

_CANNOT_TRY = "its forward cannot be tried alone"


class _Refused(Exception):
    """The reason why a layer is left alone."""


class _NoSubclass(_Refused):
    """A reason that another dtype would not change."""


def probe(module: nn.Conv2d) -> Plan | str:
    """The plan of a masked convolution, or the reason why this module is none.

    With random weights, non-zero at the masked taps too, and random images, in training and in evaluation mode, the
    output has to be that of ``F.conv2d`` with the weight times the mask, and its gradients those of one of the two
    ways to mask: before the convolution is recorded (no gradient at masked taps) or behind its back (the gradient of
    the unmasked one). The module, its tensors and the global random numbers are not touched.
    """
    names = mask_names(module, module.kernel_size)
    if not names:
        arrays = [name for name, value in vars(module).items() if _is_mask_array(value, module.kernel_size)]
        if arrays:
            return f"its mask '{arrays[0]}' is a numpy array; only tensors are followed, make it a buffer"
        return "no mask of zeros and ones among its tensors: an ordinary, padded or shifted convolution"
    unserved = _unserved_arguments(module)
    if unserved is not None:
        return unserved
    reasons: list[str] = []
    # asked of what it holds: a parametrized weight may change when it is read
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    with _neutral(device):
        for name in names:
            for dtype, tolerance in _TRIES:
                try:
                    return _plan(module, name, dtype, tolerance)
                except _NoSubclass as refused:
                    return str(refused)
                except _Refused as refused:
                    reasons.append(str(refused))
                except Exception as error:  # whatever code there is in the weight, its attributes and the forward
                    reasons.append(f"{_CANNOT_TRY}: {type(error).__name__}: {error}")
    # a forward that insists on float32 says no more in float64 than that
    return next((reason for reason in reasons if not reason.startswith(_CANNOT_TRY)), reasons[0])


def _unserved_arguments(module: nn.Conv2d) -> str | None:
    if tuple(module.stride) != (1, 1):
        return f"its stride is {tuple(module.stride)}; only 1 is served"
    if module.groups != 1:
        return f"it has {module.groups} groups; only 1 is served"
    if module.padding_mode != "zeros":
        return f"its padding mode is {module.padding_mode!r}; only 'zeros' is served"
    if module.dilation[0] != module.dilation[1]:
        return f"its dilation is {tuple(module.dilation)}; only equal ones are served"
    if any(size % 2 == 0 for size in module.kernel_size):
        return f"its kernel {tuple(module.kernel_size)} has an even size; only odd ones have a centre"
    return None


def _plan(module: nn.Conv2d, mask_name: str, dtype: torch.dtype, tolerance: float) -> Plan:
    found = {_try(module, mask_name, dtype, tolerance, training) for training in (True, False)}
    if len(found) != 1:
        raise _Refused("its forward masks differently in training and in evaluation mode")
    zeroes_weight, keeps_gradient = found.pop()
    _check_autocast(module)
    _check_subclass(module, dtype)
    plan = Plan(mask_name, zeroes_weight, keeps_gradient, settings=settings_of(module))
    plan.look_at(getattr(module, mask_name).detach())
    if (plan.taps.rows, plan.taps.columns) == tuple(module.kernel_size):
        raise _Refused(f"nothing to save: the taps that '{mask_name}' keeps span the whole kernel")
    return plan


def _try(module: nn.Conv2d, mask_name: str, dtype: torch.dtype, tolerance: float, training: bool) -> tuple[bool, bool]:
    """(whether the weight is overwritten, whether masked taps have a gradient), or a refusal."""
    generator = torch.Generator().manual_seed(17 + training)
    replica = replicate(module, dtype, generator)
    for child in replica.module.modules():
        child.training = training
    conv: Any = replica.module
    reach = [size // 2 * step for size, step in zip(conv.kernel_size, conv.dilation, strict=True)]
    rows, columns = 2 * reach[0] + 2 + training, 2 * reach[1] + 3 - training  # borders, and pixels that reach none
    shape = (1 + training, conv.in_channels, rows, columns)
    device = next(iter(replica.leaves.values())).device
    x = torch.randn(shape, generator=generator, dtype=dtype, device="cpu").to(device).requires_grad_()

    weight = conv.weight
    mask = getattr(conv, mask_name).to(dtype)
    expected = [_definition(conv, x, weight, mask, kept) for kept in (False, True)]
    unmasked = _definition(conv, x, weight, torch.ones_like(mask), False).detach()
    grad_y = torch.randn(unmasked.shape, generator=generator, dtype=dtype, device="cpu").to(device)
    gradients = [_gradients(y, x, replica, grad_y) for y in expected]
    weight_before, before = weight.detach().clone(), replica.state()

    y = type(conv).forward(conv, x)  # not called: hooks are the user's and run on the real module only
    _check_output(y, expected[0].detach(), unmasked, mask_name, tolerance)
    got = _gradients(y, x, replica, grad_y)
    zeroes_weight = _check_state(replica, before, weight, weight_before, mask)
    for kept, want in enumerate(gradients):
        if all(_equal(a, b, tolerance) for a, b in zip(got, want, strict=True)):
            return zeroes_weight, bool(kept)
    raise _Refused("its gradients are not those of a masked convolution")


def _check_autocast(module: nn.Conv2d) -> None:
    """Under autocast a convolution computes in a half; a layer that does not is another one."""
    replica = replicate(module, torch.float32, torch.Generator().manual_seed(19))
    conv: Any = replica.module.eval()
    x = torch.zeros(1, conv.in_channels, *conv.kernel_size, device=next(iter(replica.leaves.values())).device)
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
        try:
            dtype = type(conv).forward(conv, x).dtype
        except Exception:  # a forward that insists on float64 has none of this
            return
    if dtype != torch.bfloat16:
        raise _Refused(f"its forward computes in {dtype} under autocast, a convolution in torch.bfloat16")


def _check_subclass(module: nn.Conv2d, dtype: torch.dtype) -> None:
    """The forward of a swapped layer runs in a subclass, with another ``self.__class__``."""
    conv: Any = replicate(module, dtype, torch.Generator().manual_seed(23)).module
    original: Any = type(conv).__bases__[0] if parametrize.is_parametrized(conv) else type(conv)
    x = torch.ones(1, conv.in_channels, *conv.kernel_size, dtype=dtype, device=conv.weight.device)
    expected = original.forward(conv, x)
    try:
        swap_class(conv, Plan("", False, False))
    except Exception as error:  # a class may forbid subclasses
        raise _NoSubclass(f"its class cannot be changed: {error}") from error
    try:
        found = original.forward(conv, x)
    except RecursionError:
        raise _Refused(
            "its forward never reaches its parent's in a subclass, as with super(self.__class__, self): write super()"
        ) from None
    except Exception as error:
        raise _Refused(f"its forward fails in a subclass: {type(error).__name__}: {error}") from error
    if not torch.equal(found, expected):
        raise _Refused("its forward computes something else in a subclass")


def _is_mask_array(value: Any, kernel_size: tuple[int, ...]) -> bool:
    return (
        type(value).__module__ == "numpy"
        and value.dtype.kind in "biuf"
        and is_mask(torch.as_tensor(value), kernel_size)
    )


def _definition(conv: Any, x: Tensor, weight: Tensor, mask: Tensor, keeps_gradient: bool) -> Tensor:
    live = weight - (weight * (1 - mask)).detach() if keeps_gradient else weight * mask
    padding = [size // 2 * step for size, step in zip(conv.kernel_size, conv.dilation, strict=True)]
    return F.conv2d(x, live, conv.bias, padding=padding, dilation=conv.dilation)


def _gradients(y: Tensor, x: Tensor, replica: Replica, grad_y: Tensor) -> list[Tensor | None]:
    if not y.requires_grad:
        return [None] * (1 + len(replica.leaves))
    inputs = [x, *replica.leaves.values()]
    return list(torch.autograd.grad(y, inputs, grad_y, retain_graph=True, allow_unused=True))


@contextmanager
def _neutral(device: torch.device) -> Iterator[None]:
    """Whatever the caller has switched on or off, gradients are recorded, nothing is cast, random numbers stay."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        exact_products(),
    ):
        yield


def _check_output(y: Any, want: Tensor, unmasked: Tensor, mask_name: str, tolerance: float) -> None:
    if not isinstance(y, Tensor):
        raise _Refused(f"its forward returns a {type(y).__name__}, not a tensor")
    if y.shape != want.shape:
        raise _Refused(
            f"its output has another shape than a padded convolution: {tuple(y.shape)} for {tuple(want.shape)}"
        )
    if _equal(y.detach(), want, tolerance):
        return
    if _equal(y.detach(), unmasked, tolerance):
        raise _Refused(f"its forward does not apply '{mask_name}'")
    raise _Refused(f"its forward is not a convolution with the weight times '{mask_name}'")


def _check_state(replica: Replica, before: dict[str, Any], weight: Tensor, weight_before: Tensor, mask: Tensor) -> bool:
    """Whether the weight was overwritten with zeros at masked taps; no other change is allowed."""
    after, zeroes = replica.state(), False
    if set(after) != set(before):
        raise _Refused(f"its forward sets {sorted(set(after) ^ set(before))}")
    for name, value in after.items():
        if _same(value, before[name]):
            continue
        is_weight = name == "weight" and replica.module.weight is weight
        if not is_weight or not torch.equal(value, weight_before * mask):
            raise _Refused(f"its forward changes '{name}'")
        zeroes = True
    return zeroes


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    try:
        return a is b or bool(a == b)
    except Exception:  # a value that cannot be compared is another object, and so a change
        return False


def _equal(a: Tensor | None, b: Tensor | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-6))
