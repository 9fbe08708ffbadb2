"""``python -m benchmarks.report RESULT.json...``: the Markdown tables and one plot of benchmark results.

Reads pytest-benchmark's JSON. What a suite puts into ``extra_info`` is shown: ``ratio`` with ``ratio_q1`` and
``ratio_q3`` against ``baseline``, ``graph_ratio``, ``of_limit``, ``TFLOP/s``, ``serial_steps``, ``peak_MiB``,
``implementation``; anything else stays in the file.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

__all__ = ["load", "main", "plot", "summary", "table"]

Row = dict[str, Any]


def load(paths: list[Path]) -> tuple[list[dict[str, Any]], list[Row]]:
    """The machines, each once, and one flat row for every benchmark."""
    machines: list[dict[str, Any]] = []
    rows: list[Row] = []
    for path in paths:
        try:
            result = json.loads(path.read_text())
            entries = result["benchmarks"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no benchmark result (pytest --benchmark-json): {error!r}") from error
        if result["machine_info"] not in machines:
            machines.append(result["machine_info"])
        for entry in entries:
            group = entry["group"] or entry["name"]
            row = {"group": group, "name": entry["name"], "seconds": entry["stats"]["median"]}
            rows.append(row | entry["extra_info"])
    return machines, rows


def table(rows: list[Row]) -> str:
    """Markdown, in the order of the rows; a column that no row has an entry for is left out."""
    columns: dict[str, list[str]] = {
        "case": [row["group"] for row in rows],
        "implementation": [label(row) for row in rows],
        "time": [time_of(row) for row in rows],
        "ratio to baseline (quartiles)": [ratio(row) for row in rows],
        "under CUDA graphs": [shown(row, "graph_ratio", "{:.2f}x") for row in rows],
        "of the limit": [shown(row, "of_limit", "{:.0%}") for row in rows],
        "TFLOP/s": [shown(row, "TFLOP/s", "{:.3g}") for row in rows],
        "serial steps": [shown(row, "serial_steps", "{}") for row in rows],
        "peak memory": [shown(row, "peak_MiB", "{:.0f} MiB") for row in rows],
        "of the baseline's": [shown(row, "memory_ratio", "1/{:.1f}") for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [list(columns), ["---"] * len(columns), *map(list, zip(*columns.values(), strict=True))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def time_of(row: Row) -> str:
    """Of one call; a row about memory timed the start of a process, which says nothing."""
    return "" if "peak_MiB" in row and "ratio" not in row else duration(row.get("candidate_s", row["seconds"]))


def shown(row: Row, key: str, form: str) -> str:
    return form.format(row[key]) if key in row else ""


def summary(rows: list[Row]) -> str:
    """Geometric mean and least ratio of every implementation in every family: what is before the comma of a group."""
    families: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if "ratio" in row and label(row) != row.get("baseline"):
            families.setdefault((family(row), label(row)), []).append(row["ratio"])
    lines = ["| question | implementation | geometric mean of ratios | least | cases |", "|---|---|---|---|---|"]
    for (question, name), ratios in families.items():
        mean = statistics.geometric_mean(ratios)
        lines.append(f"| {question} | {name} | {mean:.2f}x | {min(ratios):.2f}x | {len(ratios)} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Bars of the ratios with their quartiles: one panel and scale for each question, one colour for each name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families: dict[str, list[Row]] = {}
    for row in rows:
        if "ratio" in row and label(row) != row.get("baseline"):
            families.setdefault(family(row), []).append(row)
    if not families:
        raise ValueError("no row has a ratio: nothing to plot")
    heights = [len(members) + 3 for members in families.values()]
    figure, panels = plt.subplots(
        len(families),
        figsize=(9, 0.2 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, members) in zip(panels[:, 0], families.items(), strict=True):
        draw(axes, members, plt.get_cmap("tab10"))
        axes.set_title(name, fontsize=9, loc="left")
    panels[-1, 0].set_xlabel("times faster than the baseline: median of interleaved pairs, quartiles", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw(axes: Any, members: list[Row], colours: Any) -> None:
    names = list(dict.fromkeys(label(row) for row in members))
    for place, row in enumerate(members):
        low, high = (row.get(key, row["ratio"]) for key in ("ratio_q1", "ratio_q3"))
        error = [[max(0.0, row["ratio"] - low)], [max(0.0, high - row["ratio"])]]
        axes.barh(place, row["ratio"], xerr=error, color=colours(names.index(label(row)) % 10), height=0.8)
    cases = [row["group"].partition(",")[2].strip() for row in members]
    axes.set_yticks(range(len(members)), [f"{c} {label(r)}" for c, r in zip(cases, members, strict=True)], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.margins(y=0.01)


def family(row: Row) -> str:
    """The question that a group is one case of: what is before its comma."""
    return str(row["group"]).split(",")[0]


def label(row: Row) -> str:
    return str(row.get("implementation", row["name"]))


def ratio(row: Row) -> str:
    if "ratio" not in row:
        return ""
    if label(row) == row.get("baseline"):
        return "baseline"
    quartiles = f" ({row['ratio_q1']:.2f}-{row['ratio_q3']:.2f})" if "ratio_q1" in row and "ratio_q3" in row else ""
    return f"{row['ratio']:.2f}x{quartiles}"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of pytest --benchmark-json")
    parser.add_argument("--plot", type=Path, help="where to write the picture (default: beside the first result)")
    parser.add_argument("--short", action="store_true", help="the summary only")
    options = parser.parse_args(arguments)
    try:
        machines, rows = load(options.results)
    except ValueError as error:
        parser.error(str(error))
    for machine in machines:
        print(", ".join(f"{key} {value}" for key, value in machine.items()), end="\n\n")
    if not options.short:
        print(table(rows), end="\n\n")
    print(summary(rows))
    picture = options.plot or options.results[0].with_suffix(".png")
    try:
        plot(rows, picture)
        print(f"\nplot: {picture}")
    except (ImportError, ValueError) as error:
        print(f"\nno plot: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
