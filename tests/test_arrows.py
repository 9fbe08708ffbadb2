"""Imports between the rooms of the library run one way only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# room -> the rooms of ours it may import from; the command line (commands, __main__) and __init__ may import everything
MAY_IMPORT = {
    "fastvae_kernels": set(),
    "reference": set(),
    "ops": {"reference", "fastvae_kernels"},
    "nn": {"ops"},
    "distributions": {"ops", "nn"},
    "models": {"ops", "nn", "distributions"},
    "objectives": {"ops", "distributions", "evaluation"},
    "evaluation": {"ops", "distributions", "checkpoint", "figures", "__version__"},
    "sampling": {"ops", "fastvae_kernels"},
    "acceleration": {"nn", "ops"},
    "data": set(),
    "timing": {"ops"},
    "checkpoint": {"__version__"},
    "training": {"objectives", "checkpoint"},
    "figures": set(),
}
FREE = {"commands", "__main__", "__init__"}


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "kernels":
        return "fastvae_kernels"
    return relative.parts[1] if len(relative.parts) > 2 else relative.stem


def imported_rooms(path: Path) -> set[str]:
    package = ["fastvae_kernels"] if room_of(path) == "fastvae_kernels" else list(path.relative_to(ROOT).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    rooms = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "fastvae_kernels":
            rooms.add("fastvae_kernels")
        elif parts[0] == "fastvae":
            rooms.add(parts[1] if len(parts) > 1 else "__init__")
    return rooms - {room_of(path)}


SOURCES = sorted([*(ROOT / "fastvae").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room in FREE:
        return
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT what it may import"
    wrong = imported_rooms(path) - MAY_IMPORT[room]
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}, which {room} must not know"


def test_import_needs_no_triton_and_touches_no_device() -> None:
    code = """
import sys
sys.modules["triton"] = None  # importing it would raise
import torch
def forbidden(*args, **kwargs):
    raise AssertionError("a device was initialised")
torch.cuda._lazy_init = torch.cuda.init = torch.cuda.is_available = forbidden
import fastvae
assert "fastvae_kernels" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
