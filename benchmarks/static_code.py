"""How often the instructions of a kernel run, from the loops in its machine code."""

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["executed", "executed_around_products", "loops_of"]

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z0-9]+)([^;]*)", re.MULTILINE)
_TARGET = re.compile(r"0x([0-9a-f]+)")
_Loop = tuple[int, int]


def loops_of(sass: str) -> list[_Loop]:
    """First and last address of every loop: from where a branch jumps back to, to the last that does."""
    last: dict[int, int] = {}
    for at, condition, name, rest in _lines(sass):
        if name == "EXIT" and not condition:
            break  # behind the end stands what is seldom run: waits that failed, divisions of large numbers
        target = _TARGET.search(rest) if name == "BRA" else None
        if target and int(target[1], 16) < at:
            last[int(target[1], 16)] = at
    return sorted(last.items())


def executed(sass: str, trips: Sequence[float]) -> Counter[str]:
    """Each instruction as often as one thread runs it.

    ``trips`` are those of the nested loops, from the outermost. What a compiler unrolled completely is no loop here, so
    those of one trip are to be left out; in loops that are deeper than ``trips`` says, nothing repeats. Loops one after
    the other have the same depth, and code that stands in no loop, be it skipped, runs once.
    """
    loops = loops_of(sass)
    found: Counter[str] = Counter()
    for at, _, name, _ in _lines(sass):
        depth = sum(first <= at <= last for first, last in loops)
        times = 1.0
        for each in trips[:depth]:
            times *= each
        found[name] += times  # type: ignore[assignment]  # a number of trips may be a mean
    return found


def executed_around_products(sass: str, steps: float) -> Counter[str]:
    """Likewise, where the innermost loop around products on tensor cores runs ``steps`` times, the rest once."""
    lines = list(_lines(sass))
    around = [
        (first, last)
        for first, last in loops_of(sass)
        if any(first <= at <= last and "MMA" in name for at, _, name, _ in lines)
    ]
    first, last = min(around, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    found: Counter[str] = Counter()
    for at, _, name, _ in lines:
        found[name] += steps if first <= at <= last else 1  # type: ignore[assignment]
    return found


def _lines(sass: str) -> list[tuple[int, str, str, str]]:
    """Address, condition, name and operands."""
    return [(int(at, 16), condition, name, rest) for at, condition, name, rest in _LINE.findall(sass) if name != "NOP"]
