"""``python -m benchmarks.static_report``: what can be said of every kernel without a card.

Compiles whatever tests/compile compiles and prints, for each kernel, its constants and architecture: registers, spills,
shared memory, resident warps, instructions on tensor cores and asynchronous copies found in the machine code, and the
time that a saturated multiprocessor needs for it, from its ceilings. "of limit" is the time of the work that cannot be
avoided, the larger of its floating point operations at the full rate and its bytes at the memory's, over that time;
"bound by" names the ceiling that is hit. Instructions count as often as the loops in the machine code run them; those
of a last layer, which wait for its products, overlap with the products of other resident programs alone. A prediction,
to be compared with a measurement: it knows no caches but the one that all multiprocessors share, and no latency but
that of memory.
"""

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cross_compile import OBSERVERS, Compiled
from benchmarks.static_code import executed, executed_around_products
from benchmarks.static_work import Work, products_of, work_of

__all__ = ["Prediction", "main", "predict", "resident_programs"]


@dataclass(frozen=True)
class Card:
    """Ceilings of one multiprocessor in a clock cycle."""

    name: str
    registers: int
    shared: int
    own_cache: int  # bytes of the memory that the cache of a multiprocessor shares with shared memory
    memory_bytes: float
    cache_bytes: float  # between the common cache and a multiprocessor
    flops: dict[str, float]  # dense, by what is multiplied
    warp_level: float  # the share of that which the older warp-level instructions reach


def _card(
    name: str, shared: int, own: int, processors: int, clock: float, terabytes: float, bf16: float, share: float
) -> Card:
    per_cycle = processors * clock * 1e9
    rates = {"bf16": bf16, "tf32": bf16 / 2, "tf32x3": bf16 / 6}
    flops = {kind: rate * 1e12 / per_cycle for kind, rate in rates.items()} | {"fp32": 256.0}
    return Card(name, 65536, shared, own * 1024, terabytes * 1e12 / per_cycle, 5120 / processors, flops, share)


# multiprocessors, boost clock, memory and dense rates of the vendor's data sheets. 5120 bytes per cycle out of the
# common cache: the A100 whitepaper, assumed of its successors too. 0.62: Luo et al., "Benchmarking and dissecting the
# Nvidia Hopper GPU architecture" (2024), for mma.sync on Hopper; half of that assumed where the rate doubled again.
CARDS = {
    80: _card("A100 80 GB", 167_936, 192, 108, 1.41, 2.04, 312, 1.0),
    90: _card("H200", 233_472, 256, 132, 1.83, 4.8, 989, 0.62),
    100: _card("B200", 233_472, 256, 148, 1.85, 8.0, 2250, 0.31),
}
LATENCY = 700  # cycles from memory to register, about 400 ns
# an asynchronous copy reads the own cache and writes shared memory, which are one memory of 128 bytes in a cycle
OWN_CACHE_BYTES = 64
SHARED_SIZES = (0, 8, 16, 32, 64, 100, 132, 164, 196, 228)  # KiB that it may be split into, CUDA programming guide
SPECIAL = 16  # exp, log, 1/x of a multiprocessor in a cycle
ISSUED = 128  # instructions of single threads likewise


@dataclass(frozen=True)
class Prediction:
    """Cycles of one multiprocessor for one program at saturation, and of the work that cannot be avoided."""

    cycles: float
    limit: float
    bound_by: str
    needs: Mapping[str, float]  # cycles by what they are spent on

    @property
    def of_limit(self) -> float:
        return self.limit / self.cycles


def resident_programs(compiled: Compiled) -> int:
    """Programs that a multiprocessor holds at once."""
    card, warps = CARDS[compiled.arch], compiled.num_warps
    per_warp = -(-compiled.registers * 32 // 256) * 256
    shared = card.shared // (compiled.shared + 1024)
    return max(1, min(64 // warps, card.registers // (per_warp * warps), shared, 32))


def own_cache(compiled: Compiled) -> int:
    """Bytes that the cache of a multiprocessor keeps beside the shared memory of its programs."""
    card, programs = CARDS[compiled.arch], resident_programs(compiled)
    if compiled.shared > 49_152:  # then Triton asks the driver for all the shared memory there is
        return card.own_cache - card.shared
    needed = programs * (compiled.shared + 1024)
    return card.own_cache - next(size * 1024 for size in SHARED_SIZES if size * 1024 >= needed)


def predict(compiled: Compiled, work: Work, instructions: Mapping[str, float]) -> Prediction:
    """The slowest of what a multiprocessor has to do; ``instructions`` as often as a thread runs each of them."""
    card = CARDS[compiled.arch]
    kind = products_of(compiled)
    rate = card.flops[kind]
    modern = any(name.startswith(("HGMMA", "UTC")) for name in instructions)
    on_cores = any("MMA" in name for name in instructions)
    reached = rate * (1.0 if modern or not on_cores else card.warp_level)
    in_flight = resident_programs(compiled) * work.in_flight
    threads = 32 * compiled.num_warps
    is_held = resident_programs(compiled) * work.held_bytes <= own_cache(compiled)
    cached_bytes = work.cached_bytes - (work.repeated_bytes if is_held else 0)
    needs = {
        "products": (work.padded or work.flops) / reached,
        "memory": work.bytes / card.memory_bytes,
        "common cache": cached_bytes / card.cache_bytes,
        "own cache": work.near_bytes / OWN_CACHE_BYTES,
        "latency": work.cached_bytes * LATENCY / in_flight,
    }
    if work.trips is not None or work.steps is not None:
        needs["instructions"] = sum(instructions.values()) * threads / ISSUED
        needs["special functions"] = instructions.get("MUFU", 0) * threads / SPECIAL
    if work.waits:
        needs["products and instructions"] = (needs["products"] + needs["instructions"]) / resident_programs(compiled)
    bound_by = max(needs, key=lambda name: needs[name])
    return Prediction(needs[bound_by], max(work.flops / rate, work.bytes / card.memory_bytes), bound_by, needs)


def _row(compiled: Compiled) -> list[str]:
    found = compiled.instructions()
    tensor = sum(count for name, count in found.items() if "MMA" in name)
    copies = sum(found[name] for name in ("LDGSTS", "UTMALDG", "UBLKCP"))
    programs, work = resident_programs(compiled), work_of(compiled)
    cells = [
        _name(compiled),
        _constants(compiled),
        f"sm_{compiled.arch}",
        str(compiled.registers),
        str(compiled.spills),
        f"{compiled.shared / 1024:.0f}K",
        str(programs * compiled.num_warps),
        str(tensor),
        str(copies),
    ]
    if work is None:
        return [*cells, "", "", "", "serial"]
    code = compiled.machine_code
    if work.steps is not None:
        run = executed_around_products(code, work.steps)
    else:
        run = executed(code, () if work.trips is None else (work.trips, *work.inner_trips))
    predicted = predict(compiled, work, run)
    seconds = predicted.cycles / CYCLES_PER_SECOND[compiled.arch]
    figures = [f"{work.flops / 1e3:.3g}", f"{work.bytes / 1e3:.3g}", f"{seconds * 1e6:.2g} us"]
    return [*cells, *figures, f"{predicted.of_limit:.2f} ({predicted.bound_by})"]


CYCLES_PER_SECOND = {80: 1.41e9, 90: 1.83e9, 100: 1.85e9}
_HEADER = ["kernel", "constants", "for", "registers", "spills", "shared", "warps", "tensor", "async copies"]
_HEADER += ["kFLOP", "kB", "time of a program", "of limit (bound by)"]


def _name(compiled: Compiled) -> str:
    function = compiled.kernel.fn
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def _constants(compiled: Compiled) -> str:
    """Block sizes and types; what is not given or False says little."""
    given = compiled.constexprs.items()
    shown = {name: value for name, value in given if value is True or value not in (None, False, "", 1)}
    types = sorted({kind.removeprefix("*") for kind in compiled.signature.values() if kind.startswith("*")})
    return " ".join([*types, *(f"{name}={value}" for name, value in shown.items() if not isinstance(value, float))])


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, and print the table as Markdown; the exit code."""
    import pytest

    parser = argparse.ArgumentParser(prog="python -m benchmarks.static_report", description=__doc__)
    parser.add_argument("-k", dest="keyword", default="", help="only tests that match, as in pytest")
    args = parser.parse_args(argv)
    found: list[Compiled] = []
    OBSERVERS.append(found.append)
    chosen = ["-k", args.keyword] if args.keyword else []
    with contextlib.redirect_stdout(sys.stderr):
        status = pytest.main(["tests/compile", "-q", "-p", "no:cacheprovider", *chosen])
    if status != pytest.ExitCode.OK:
        print(f"the tests of tests/compile did not pass: {status!r}", file=sys.stderr)
        return 1
    ours = [each for each in found if each.kernel.fn.__module__.startswith("fastvae_kernels") and each.arch in CARDS]
    rows = sorted({tuple(_row(compiled)) for compiled in ours})
    for cells in (_HEADER, ["---"] * len(_HEADER), *rows):
        print("| " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
