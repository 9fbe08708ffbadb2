"""Compiles a kernel for an architecture that need not be present, and reads what the assembler made of it."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

__all__ = ["OBSERVERS", "SHARED_MEMORY", "Compiled", "compile_for"]

SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}  # bytes one program may use
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# told of every kernel that is compiled: benchmarks.static_report reads what the tests compile
OBSERVERS: list[Callable[["Compiled"], None]] = []


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture."""

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    arch: int
    num_warps: int
    num_stages: int
    registers: int  # per thread
    spills: int  # bytes of local memory per thread: 0 where everything fits into registers
    shared: int  # bytes per program, including what is allocated at launch
    ptx: str
    cubin: bytes

    @property
    def shared_limit(self) -> int:
        return SHARED_MEMORY[self.arch]

    def instructions(self) -> Counter[str]:
        """How often each instruction stands in the machine code, by its name up to the first dot."""
        line = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", re.MULTILINE)
        return Counter(line.findall(self.machine_code))

    @cached_property
    def machine_code(self) -> str:
        """What cuobjdump prints of it."""
        return _dump(self.cubin, "-sass")


def compile_for(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    arch: int,
    *,
    num_warps: int = 4,
    num_stages: int = 3,
    divisible: Sequence[str] = (),
    most_registers: int | None = None,
) -> Compiled:
    """Compile ``kernel`` for sm_``arch``.

    ``signature`` gives the types of the run-time arguments ("*fp32", "i32", ...), ``constexprs`` the values of the
    others (None for a pointer that is not given), ``divisible`` the names of those known to be divisible by 16: at a
    launch that is every aligned pointer and every integer that happens to be.
    """
    names = list(kernel.arg_names)
    unknown = (set(signature) | set(constexprs) | set(divisible)) - set(names)
    missing = set(names) - set(signature) - set(constexprs)
    if unknown or missing:
        raise ValueError(f"{kernel}: unknown arguments {sorted(unknown)}, missing arguments {sorted(missing)}")
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs=dict(constexprs),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if most_registers is not None:
        options["maxnreg"] = most_registers
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, local = _resources(compiled.asm["cubin"])
    result = Compiled(
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        arch=arch,
        num_warps=num_warps,
        num_stages=num_stages,
        registers=registers,
        spills=local,
        shared=compiled.metadata.shared,
        ptx=compiled.asm["ptx"],
        cubin=compiled.asm["cubin"],
    )
    if local and not {"LDL", "STL"} & set(result.instructions()):
        result = replace(result, spills=0)  # of what is reserved nothing is used
    for observe in OBSERVERS:
        observe(result)
    return result


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of one thread."""
    usage = _dump(cubin, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reported no resource usage:\n{usage}")
    return int(found[1]), int(found[2]) + int(found[3])


def _dump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
