"""Recipes of published experiments: readable files, whose options are those of ``train`` and ``evaluate``."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

__all__ = ["BUDGETS", "Plan", "Recipe", "read_recipe", "recipe_names"]

BUDGETS = ("cpu", "full")
_REQUIRED = {"paper": str, "binarization": str, "event_shape": list, "train": dict, "budget": dict}
_OPTIONAL = {"choices": dict, "published": list}


@dataclass(frozen=True)
class Plan:
    """A recipe with its choices made: options of ``train`` and of ``evaluate``, and the published nats, if any."""

    choices: dict[str, str]
    train: dict[str, Any]
    evaluate: dict[str, Any]
    published: float | None


@dataclass(frozen=True)
class Recipe:
    """One file of ``fastvae/recipes``.

    Attributes:
        paper: where the figures were published.
        binarization: of the published figures: fixed, or sample, afresh in each epoch.
        event_shape: (C, H, W) of the published images.
        train: options of ``train`` that all runs share.
        choices: choice -> value -> more of them; the first value is the default. An entry ``budget`` as below goes
            before the recipe's own: what costs less per epoch may have more of them.
        budget: cpu or full -> ``{"train": more of them, "evaluate": options of evaluate}``.
        published: entries ``{"choices": ..., "nats": ...}``.
    """

    name: str
    paper: str
    binarization: str
    event_shape: list[int]
    train: dict[str, Any]
    budget: dict[str, dict[str, dict[str, Any]]]
    choices: dict[str, dict[str, dict[str, Any]]]
    published: list[dict[str, Any]]

    def plan(self, given: Iterable[str], budget: str) -> Plan:
        """The options for choices such as ``k=50``.

        Raises:
            ValueError: for a choice or value that the recipe does not have, or one given twice.
        """
        chosen = {name: next(iter(values)) for name, values in self.choices.items()} | self._parsed(given)
        options = [self.choices[name][value] for name, value in chosen.items()]
        budgets = [self.budget[budget], *(some.get("budget", {}).get(budget, {}) for some in options)]
        train = dict(self.train)
        for some in (*options, *(some.get("train", {}) for some in budgets)):
            train |= {name: value for name, value in some.items() if name != "budget"}
        evaluate: dict[str, Any] = {}
        for some in budgets:
            evaluate |= some.get("evaluate", {})
        nats = [entry["nats"] for entry in self.published if entry.get("choices", {}) == chosen]
        return Plan(chosen, train, evaluate, nats[0] if nats else None)

    def _parsed(self, given: Iterable[str]) -> dict[str, str]:
        parsed: dict[str, str] = {}
        for text in given:
            name, _, value = text.partition("=")
            if name in parsed:
                raise ValueError(f"{name} was given twice, as {parsed[name]} and {value}")
            if value not in self.choices.get(name, {}):
                raise ValueError(f"{self.name} has the choices {self.described()}, got {text}")
            parsed[name] = value
        return parsed

    def described(self) -> str:
        """The choices with their values in one line."""
        return "; ".join(f"{name}={'|'.join(values)}" for name, values in self.choices.items()) or "none"


def recipe_names() -> list[str]:
    """The names that :func:`read_recipe` takes.

    Example:
        >>> "iwae-table1" in recipe_names()
        True
    """
    files = (resources.files("fastvae") / "recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        ValueError: if there is none of that name, or the file is damaged.

    Example:
        >>> read_recipe("iwae-table1").plan(["k=50"], "full").published
        84.78
    """
    if name not in (names := recipe_names()):
        raise ValueError(f"recipe must be one of {', '.join(names)}, got {name}")
    content: Mapping[str, Any] = tomllib.loads((resources.files("fastvae") / "recipes" / f"{name}.toml").read_text())
    for key, kind in (_REQUIRED | _OPTIONAL).items():
        if (key in _REQUIRED and key not in content) or not isinstance(content.get(key, kind()), kind):
            raise ValueError(f"the recipe {name} must have an entry {key}, a {kind.__name__}")
    if unknown := content.keys() - _REQUIRED - _OPTIONAL.keys():
        raise ValueError(f"the recipe {name} has unknown entries {', '.join(sorted(unknown))}")
    if any(set(content["budget"].get(budget, {})) != {"train", "evaluate"} for budget in BUDGETS):
        raise ValueError(f"the recipe {name} must have train and evaluate for each budget, {' and '.join(BUDGETS)}")
    return Recipe(name, **({"choices": {}, "published": []} | dict(content)))
