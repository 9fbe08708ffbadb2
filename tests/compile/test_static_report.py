"""The model behind the static report knows every kernel, and its arithmetic is what can be done by hand."""

import importlib
import pkgutil

import fastvae_kernels
import pytest
import triton

from benchmarks.cross_compile import Compiled
from benchmarks.static_code import executed, executed_around_products, loops_of
from benchmarks.static_report import own_cache, predict, resident_programs
from benchmarks.static_work import Work, work_of


def compiled(registers: int = 64, shared: int = 0, **constexprs: object) -> Compiled:
    return Compiled(
        kernel=None,
        signature={},
        constexprs=constexprs,
        arch=90,
        num_warps=4,
        num_stages=3,
        registers=registers,
        spills=0,
        shared=shared,
        ptx="",
        cubin=b"",
    )


def test_every_kernel_has_a_model() -> None:
    unknown = []
    for module in pkgutil.iter_modules(fastvae_kernels.__path__):
        members = vars(importlib.import_module(f"fastvae_kernels.{module.name}"))
        for name, member in members.items():
            if not (isinstance(member, triton.JITFunction) and name.endswith("kernel")):
                continue
            try:
                work_of(compiled_of(member))
            except LookupError as error:
                if error.args == ((member.fn.__module__.rpartition(".")[2], name.strip("_")),):
                    unknown.append(f"{module.name}.{name}")
    assert not unknown, "benchmarks/static_work.py has no model of these"


def compiled_of(kernel: object) -> Compiled:
    return Compiled(**vars(compiled()) | {"kernel": kernel})


@pytest.mark.parametrize(("registers", "shared", "programs"), [(64, 0, 8), (65, 0, 7), (32, 100_000, 2), (255, 0, 2)])
def test_resident_programs_are_those_that_registers_and_shared_memory_allow(
    registers: int, shared: int, programs: int
) -> None:
    assert resident_programs(compiled(registers, shared)) == programs


def test_the_slowest_ceiling_binds() -> None:
    # 4.8 TB/s over 132 multiprocessors of 1.83 GHz: 19.87 bytes in a cycle
    memory = predict(compiled(), Work(flops=0, bytes=1e6, cached_bytes=1e6, in_flight=1e6), {})
    assert memory.bound_by == "memory"
    assert memory.cycles == pytest.approx(1e6 / 19.87, rel=1e-3)
    assert memory.of_limit == 1
    # eight programs of 4 warps wait for 1 KiB each, 700 cycles at a time
    latency = predict(compiled(), Work(flops=0, bytes=1e6, cached_bytes=1e6, in_flight=1024), {})
    assert latency.bound_by == "latency"
    assert latency.cycles == pytest.approx(1e6 * 700 / 8192)
    # 989 TFLOP/s are 4094 in a cycle; warp-level instructions reach 0.62 of that
    products = Work(flops=1e9, bytes=0, cached_bytes=0, in_flight=1)
    half = compiled(PRECISION="ieee")
    assert predict(half, products, {"HGMMA": 1}).cycles == pytest.approx(1e9 / 4094, rel=1e-3)
    assert predict(half, products, {"HMMA": 1}).of_limit == pytest.approx(0.62)
    # 2000 instructions of 128 threads at 128 in a cycle
    code = Work(flops=0, bytes=1, cached_bytes=1, in_flight=1e6, trips=2)
    assert predict(compiled(), code, {"FFMA": 2000}).cycles == pytest.approx(2000)


def test_what_a_program_loads_again_comes_from_the_own_cache_if_there_is_room() -> None:
    # eight programs leave 256 KiB, or 28 where Triton asks for all the shared memory there is
    assert own_cache(compiled()) == (256 - 8) << 10
    assert own_cache(compiled(shared=50_000)) == 28 << 10
    work = Work(flops=0, bytes=1, cached_bytes=1e6, in_flight=1e9, near_bytes=1e5, repeated_bytes=9e5, held_bytes=20e3)
    assert predict(compiled(), work, {}).cycles == pytest.approx(1e5 / (5120 / 132))
    crowded = predict(compiled(), Work(**vars(work) | {"held_bytes": 40e3}), {})
    assert crowded.cycles == pytest.approx(1e6 / (5120 / 132))
    # a copy reads one memory and writes the same
    assert predict(compiled(), Work(**vars(work) | {"near_bytes": 1e6}), {}).bound_by == "own cache"


def test_what_waits_for_products_runs_beside_those_of_other_programs_only() -> None:
    work = Work(flops=4094e3, bytes=0, cached_bytes=0, in_flight=1, trips=1, waits=True)
    instructions = {"HGMMA": 1, "FFMA": 1499}
    assert predict(compiled(registers=255, PRECISION="ieee"), work, instructions).cycles == pytest.approx(
        1500, rel=1e-3
    )
    alone = predict(compiled(shared=200_000, PRECISION="ieee"), work, instructions)
    assert alone.cycles == pytest.approx(2500, rel=1e-3)
    assert alone.bound_by == "products and instructions"


def test_instructions_count_as_often_as_their_loops_run() -> None:
    code = """
        /*0000*/                   FADD R0, R0, R0 ;
        /*0010*/                   FMUL R0, R0, R0 ;
        /*0020*/              @!P0 MUFU.EX2 R0, R0 ;
        /*0030*/               @P1 BRA 0x20 ;
        /*0040*/               @P0 BRA 0x10 ;
        /*0050*/                   EXIT ;
        /*0060*/                   BRA 0x10 ;
        /*0070*/                   NOP ;
    """
    assert loops_of(code) == [(0x10, 0x40), (0x20, 0x30)]  # the jump behind the end is no loop
    found = executed(code, (3, 5))
    assert (found["FADD"], found["FMUL"], found["MUFU"], found["NOP"]) == (1, 3, 15, 0)
    assert executed(code, (3,))["MUFU"] == 3
    around = executed_around_products(code.replace("FMUL", "HMMA"), 7)
    assert (around["FADD"], around["HMMA"], around["MUFU"]) == (1, 7, 7)
    assert executed_around_products(code, 7)["FMUL"] == 1
