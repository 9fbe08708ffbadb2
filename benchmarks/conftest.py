"""What every suite shares: the environment in the results, and a small timer where pytest-benchmark is missing."""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.environment import environment

HAS_PLUGIN = importlib.util.find_spec("pytest_benchmark") is not None


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # the plugin's own block names the host
    machine_info.update(environment())


if not HAS_PLUGIN:
    # machines that can install nothing still measure: same fixture, same option, same layout of the results

    def pytest_addoption(parser: pytest.Parser) -> None:
        parser.addoption("--benchmark-json", default=None, metavar="PATH", help="write the results here")

    def pytest_configure(config: pytest.Config) -> None:
        config.addinivalue_line("markers", "benchmark(group): the question that a benchmark belongs to")
        config._fastvae_results = []

    def pytest_sessionfinish(session: pytest.Session) -> None:
        path = session.config.getoption("--benchmark-json")
        results = session.config._fastvae_results
        if path and results:
            Path(path).write_text(json.dumps({"machine_info": environment(), "benchmarks": results}, indent=1))

    def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
        terminalreporter.write_line("pytest-benchmark is not installed: timed by the minimal timer of conftest.py")
        for row in config._fastvae_results:
            terminalreporter.write_line(f"{row['stats']['median'] * 1e3:12.4f} ms  {row['group']}  {row['name']}")

    class Benchmark:
        """The part of pytest-benchmark's fixture that our suites use."""

        def __init__(self, group: str | None) -> None:
            self.group = group
            self.extra_info: dict[str, Any] = {}
            self.stats: dict[str, float] = {}

        def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            seconds: list[float] = []
            end = time.perf_counter() + 0.5
            while len(seconds) < 5 or (time.perf_counter() < end and len(seconds) < 1000):
                start = time.perf_counter()
                function(*args, **kwargs)
                seconds.append(time.perf_counter() - start)
            return self._store(seconds, result)

        def pedantic(
            self,
            target: Callable[..., Any],
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
            rounds: int = 5,
            iterations: int = 1,
            warmup_rounds: int = 0,
        ) -> Any:
            result, seconds = None, []
            for turn in range(warmup_rounds + rounds):
                start = time.perf_counter()
                for _ in range(iterations):
                    result = target(*args, **(kwargs or {}))
                if turn >= warmup_rounds:
                    seconds.append((time.perf_counter() - start) / iterations)
            return self._store(seconds, result)

        def _store(self, seconds: list[float], result: Any) -> Any:
            many = seconds if len(seconds) > 1 else seconds * 2
            q1, median, q3 = statistics.quantiles(many, n=4, method="inclusive")
            self.stats = {
                "min": min(seconds),
                "max": max(seconds),
                "mean": statistics.fmean(seconds),
                "stddev": statistics.pstdev(seconds),
                "median": median,
                "q1": q1,
                "q3": q3,
                "rounds": len(seconds),
            }
            return result

    @pytest.fixture
    def benchmark(request: pytest.FixtureRequest) -> Iterator[Benchmark]:
        marker = request.node.get_closest_marker("benchmark")
        timer = Benchmark(marker.kwargs.get("group") if marker else None)
        yield timer
        if timer.stats:
            request.config._fastvae_results.append(
                {
                    "group": timer.group,
                    "name": request.node.name,
                    "fullname": request.node.nodeid,
                    "params": request.node.callspec.params if hasattr(request.node, "callspec") else None,
                    "extra_info": timer.extra_info,
                    "stats": timer.stats,
                }
            )
