"""The benchmark report: what a result says is in the table, and what is no result is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report


def entry(group: str, name: str, seconds: float, **extra: Any) -> dict[str, Any]:
    return {"group": group, "name": name, "stats": {"median": seconds}, "extra_info": extra}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    entries = [
        entry("conv fwd, k=3", "test[a]", 2e-3, ratio=1.0, implementation="plain", baseline="plain"),
        entry(
            "conv fwd, k=3", "test[b]", 1e-3, ratio=2.0, ratio_q1=1.9, ratio_q3=2.1, implementation="ours", of_limit=0.5
        ),
        entry(
            "conv fwd, k=5",
            "test[c]",
            5e-7,
            ratio=8.0,
            ratio_q1=7.0,
            ratio_q3=9.0,
            implementation="ours",
            graph_ratio=3.0,
        ),
        entry("memory", "test_memory", 4.0, peak_MiB=3),
    ]
    path.write_text(json.dumps({"machine_info": {"device": "abacus"}, "benchmarks": entries}))
    return path


def test_prints_machine_table_and_geometric_means(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(result)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("device abacus\n")
    assert "| conv fwd, k=3 | plain | 2 ms | baseline |  |  |" in printed
    assert "| conv fwd, k=3 | ours | 1 ms | 2.00x (1.90-2.10) |  | 50% |" in printed
    assert "| conv fwd, k=5 | ours | 500 ns | 8.00x (7.00-9.00) | 3.00x |  |" in printed
    assert "| memory | test_memory |  |  |  |  | 3 MiB |" in printed
    assert "| conv fwd | ours | 4.00x | 2.00x | 2 |" in printed  # the square root of 2 * 8
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_short_form_has_the_means_alone(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main(["--short", str(result), "--plot", str(result.parent / "picture.png")])
    printed = capsys.readouterr().out
    assert "k=3" not in printed
    assert "| conv fwd | ours | 4.00x |" in printed
    assert (result.parent / "picture.png").exists()
    assert not result.with_suffix(".png").exists()


def test_one_machine_is_named_once(result: Path) -> None:
    machines, rows = report.load([result, result])
    assert machines == [{"device": "abacus"}]
    assert len(rows) == 8


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_what_is_no_result_is_refused_by_name(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        report.main([str(path)])
    assert stopped.value.code == 2
    assert "other.json is no benchmark result" in capsys.readouterr().err
