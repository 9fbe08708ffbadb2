"""Every module that can be reached from a model, those in plain lists and dictionaries too."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["walk"]

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)  # hooks and registries: not attributes that a user set


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) for ``model`` itself, whose path is empty, and everything below it.

    Paths are those of ``named_modules``; a list that is a plain attribute adds ``name[0]``. A module that is reached
    by several paths comes once for each, but is entered once. What hides in closures or in other objects is not found.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> model.spare = [nn.Tanh()]
        >>> [path for path, _ in walk(model)]
        ['', '0', 'spare[0]']
    """
    yield from _walk("", model, set())


def _walk(path: str, found: Any, entered: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(found, nn.Module):
        yield path, found
    if id(found) in entered:
        return
    entered.add(id(found))
    for name, child in _children(found):
        below = f"{path}{name}" if name.startswith("[") or not path else f"{path}.{name}"
        yield from _walk(below, child, entered)


def _children(found: Any) -> list[tuple[str, Any]]:
    if isinstance(found, nn.Module):
        registered = [(name, child) for name, child in found._modules.items() if child is not None]
        plain = [(name, value) for name, value in vars(found).items() if name not in _OF_EVERY_MODULE]
        return registered + [(name, value) for name, value in plain if _may_hold_modules(value)]
    if isinstance(found, Mapping):
        return [(f"[{key!r}]", value) for key, value in found.items() if _may_hold_modules(value)]
    return [(f"[{index}]", value) for index, value in enumerate(found) if _may_hold_modules(value)]


def _may_hold_modules(value: Any) -> bool:
    return isinstance(value, nn.Module | list | tuple | dict)
