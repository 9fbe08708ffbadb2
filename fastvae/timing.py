"""Ratios that survive a drifting machine: candidate and baseline are timed in turn, and each pair gives one ratio."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fastvae.ops._memory import keep_freed_memory

__all__ = ["geometric_mean", "interleaved", "synchronized"]


def interleaved(
    candidate: Callable[[], Any], baseline: Callable[[], Any], *, rounds: int = 15, min_seconds: float = 0.02
) -> dict[str, float]:
    """How many times faster is ``candidate`` than ``baseline``?

    The order is A B A B ..., so that a machine whose speed moves over minutes moves both alike. Every turn repeats
    its call until ``min_seconds`` have passed and, once CUDA is in use, waits for the device at its end.

    Args:
        candidate: called without arguments.
        baseline: called without arguments.
        rounds: the number of pairs.
        min_seconds: the least duration of one turn.

    Returns:
        ``ratio``, the median over pairs of baseline time / candidate time, its quartiles ``ratio_q1`` and
        ``ratio_q3``, and the median seconds of one call, ``candidate_s`` and ``baseline_s``.

    Raises:
        ValueError: if ``rounds`` is less than 3 (there would be no quartiles).

    Example:
        >>> result = interleaved(lambda: sum(range(1000)), lambda: sum(range(9000)), rounds=5, min_seconds=1e-3)
        >>> sorted(result)
        ['baseline_s', 'candidate_s', 'ratio', 'ratio_q1', 'ratio_q3']
    """
    if rounds < 3:
        raise ValueError(f"rounds must be at least 3, got {rounds}")
    keep_freed_memory()  # as in a process that has run for a while
    calls = [_calls_for(function, min_seconds) for function in (candidate, baseline)]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for turn, function in enumerate((candidate, baseline)):
            seconds[turn].append(_time(function, calls[turn]))
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    first, middle, third = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ratio": middle,
        "ratio_q1": first,
        "ratio_q3": third,
        "candidate_s": statistics.median(seconds[0]),
        "baseline_s": statistics.median(seconds[1]),
    }


def synchronized(function: Callable[[], Any]) -> Callable[[], Any]:
    """``function`` followed by a wait for the device, for timers that know nothing of CUDA."""

    def call() -> Any:
        result = function()
        _wait()
        return result

    return call


def geometric_mean(values: list[float]) -> float:
    """The mean that ratios need."""
    return statistics.geometric_mean(values)


def _calls_for(function: Callable[[], Any], min_seconds: float) -> int:
    function()  # compilation and first-use costs are not speed
    calls = 1
    while (one := _time(function, calls)) * calls < min_seconds:
        calls = max(calls + 1, min(10 * calls, int(1.1 * min_seconds / max(one, 1e-9)) + 1))
    return calls


def _time(function: Callable[[], Any], calls: int) -> float:
    """Seconds of one call, averaged over ``calls``."""
    _wait()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    _wait()
    return (time.perf_counter() - start) / calls


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
