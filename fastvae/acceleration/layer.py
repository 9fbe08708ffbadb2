"""What a swapped layer becomes: its own class with another forward, so that everything else stays what it was.

The module remains the same object with the same parameters, buffers, hooks and attributes, and an instance of its own
class; only calls of ``forward`` take the fast way, and those that it does not serve take the original one.
"""

import copyreg
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastvae.ops._dispatch import untraced
from fastvae.ops.masked_conv2d import NamedMask, masked_conv2d_by_taps
from fastvae.ops.masked_conv2d_taps import Seen, Taps, named_taps, taps_of

from .masked_gradient import convolve_keeping_gradient

__all__ = ["Accelerated", "Plan", "describe_mask", "restore_class", "settings_of", "swap_class"]

_PLAN = "_accelerated"
# above which cropping pays on the CPU: the share of the kernel cut off, the products saved for each element of the
# input and in total; in general (no lower than in fastvae.ops.masked_conv2d), and with the whole gradient of the weight
_PAYS = (0.0, 100, 4_000_000)
_PAYS_KEEPING_GRADIENT = (0.38, 160, 40_000_000)  # in training 5x5 kernels gain, 3x3 ones do not
_NOWHERE = Taps(0, 0, 0, 0, 0, 0, 0, False)
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


@dataclass
class Plan:
    """What probing found out about a layer.

    Attributes:
        mask_name: the attribute that holds the mask.
        zeroes_weight: whether a forward overwrites the masked taps of the weight by zero.
        keeps_gradient: whether masked taps receive a gradient.
        taps: where the taps lie that the mask keeps.
        served: False where the mask has become one that cannot be served.
        settings: the plain attributes under which this was found out.
    """

    mask_name: str
    zeroes_weight: bool
    keeps_gradient: bool
    taps: Taps = _NOWHERE
    served: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    seen: Seen | None = field(default=None, repr=False, compare=False)  # the mask when last looked at

    def look_at(self, mask: Tensor) -> None:
        """Follow the mask, which may have been moved, loaded or edited since; nothing to do in most calls."""
        if mask.is_meta or type(mask) not in (Tensor, nn.Parameter):
            return  # it has no values to look at: the module is being traced
        with untraced():
            if self.seen is not None and self.seen.is_same(mask):
                return
            self.served = mask.ndim in (2, 3, 4) and bool(((mask == 0) | (mask == 1)).all())
            if self.served:
                self.taps = taps_of(mask != 0, (mask.shape[-2], mask.shape[-1]))
            self.seen = Seen(mask)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seen": None}  # copies and files hold another mask


class Accelerated:
    """Mixed into the class of a swapped layer, in front of it; takes over ``forward``."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan: Plan = self._accelerated
        mask: Any = getattr(self, plan.mask_name, None)
        if kwargs or len(args) != 1 or not _serves(self, plan, mask, args[0]):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        x, weight = args[0], self.weight
        if plan.zeroes_weight:
            weight.data.mul_(mask)
        keeps = plan.keeps_gradient and torch.is_grad_enabled() and weight.requires_grad
        fast = convolve_keeping_gradient if keeps else masked_conv2d_by_taps
        return fast(x, weight, self.bias, plan.taps, mask, self.dilation[0])

    def _load_from_state_dict(self: Any, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]
        mask = getattr(self, self._accelerated.mask_name, None)
        if isinstance(mask, Tensor):
            self._accelerated.look_at(mask)  # now: compiled code does not look at values, but is guarded on the plan

    def __prepare_scriptable__(self: Any) -> Any:
        raise RuntimeError(
            "torch.jit.script compiles the original forward: call restore() of the report, or "
            "fastvae.acceleration.restore(model), before it"
        )

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        # the class was made at run time: files name the original one instead
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        made, args, *rest = reduced
        if made is not copyreg.__newobj__ or args[0] is not type(self):  # type: ignore[attr-defined]
            return made, args, *rest
        return _unpickle, (type(self)._original_class, *args[1:]), *rest


def _serves(module: Any, plan: Plan, mask: Any, x: Any) -> bool:
    if not isinstance(x, Tensor) or not isinstance(mask, Tensor):
        return False
    if x.ndim != 4 or x.is_meta or mask.device != x.device or not x.is_floating_point():
        return False
    if not torch.compiler.is_compiling():
        # its own rules for transforms and forward-mode differentiation are the original's business
        if torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0:
            return False
        plan.look_at(mask)
    if not plan.served or 0 in x.shape:
        return False
    for name, value in plan.settings:
        if getattr(module, name, plan) != value:
            return False
    if x.is_cuda:
        return True
    share, each, in_total = _PAYS_KEEPING_GRADIENT if plan.keeps_gradient and torch.is_grad_enabled() else _PAYS
    whole = module.kernel_size[0] * module.kernel_size[1]
    cut_off = whole - plan.taps.rows * plan.taps.columns
    saved = module.out_channels * cut_off
    return cut_off >= share * whole and saved >= each and saved * x.numel() >= in_total


def settings_of(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """The numbers, strings, flags and tuples among the attributes of a layer, which its forward may depend on."""
    own = vars(module).items()
    return tuple((name, value) for name, value in own if name not in _OF_EVERY_MODULE and _is_simple(value))


def _is_simple(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_simple, value))
    return isinstance(value, bool | int | float | str | None)


def describe_mask(taps: Taps, kernel_size: tuple[int, int]) -> str:
    """The name of the mask, or the size of the window that another one keeps."""
    for name in get_args(NamedMask):
        if named_taps(kernel_size, name) == taps:
            return name
    return f"{taps.rows}x{taps.columns} of {kernel_size[0]}x{kernel_size[1]}"


def _accelerated_class(original: type[nn.Module]) -> type[nn.Module]:
    for cls in original.__subclasses__():  # one for all layers of a class, kept alive by them alone
        if vars(cls).get("_original_class") is original:
            return cls
    name = f"Accelerated{original.__name__}"
    made: Any = type(name, (Accelerated, original), {"__module__": original.__module__})
    made._original_class = original  # not before: a class that forbids subclasses leaves one half made
    return made


def _unpickle(original: type[nn.Module], *args: Any) -> nn.Module:
    made = _accelerated_class(original)
    return made.__new__(made, *args)


def swap_class(module: nn.Module, plan: Plan) -> None:
    """Give ``module`` the fast forward; the module stays the same object."""
    cls = type(module)
    if parametrize.is_parametrized(module):  # below the class that parametrizations put on top and take off again
        module.__class__ = _rebased(cls, _accelerated_class(cls.__bases__[0]))
    else:
        module.__class__ = _accelerated_class(cls)
    module.__dict__[_PLAN] = replace(plan)


def restore_class(module: nn.Module) -> None:
    """Undo ``swap_class``, also where a parametrization came or went in between.

    Raises:
        RuntimeError: if other code has put another class on top.
    """
    cls = type(module)
    if "_original_class" in vars(cls):
        module.__class__ = cls._original_class  # type: ignore[attr-defined]
    elif parametrize.is_parametrized(module) and "_original_class" in vars(cls.__bases__[0]):
        module.__class__ = _rebased(cls, cls.__bases__[0]._original_class)  # type: ignore[attr-defined]
    else:
        raise RuntimeError(
            f"{cls.__name__} was made from the accelerated {cls.__bases__[0].__name__} by other code; undo that first"
        )
    del module.__dict__[_PLAN]


def _rebased(parametrized: type, base: type) -> type:
    own = {name: value for name, value in vars(parametrized).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), own)
