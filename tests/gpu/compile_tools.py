"""Compiles kernels as they are launched, for a device that need not be there.

The wrappers of `gpu/kernels` are called with tensors that have no memory; what they would launch is compiled for
compute capability 9.0 and looked at, not run. In a process of its own, because Triton decides once, when it is first
imported, whether it compiles or interprets.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
CAPABILITY = 90


@dataclass(frozen=True)
class Compiled:
    """One kernel as it would run."""

    case: str
    kernel: str
    ptx_target: str
    ptx_lines: int
    products: tuple[str, ...]
    """The instructions that multiply matrices, each once."""
    shared_bytes: int
    """Shared memory of one program."""
    num_warps: int
    registers: int
    """Of one thread."""
    stack_bytes: int
    """Of one thread, in local memory: what did not fit in registers is here, and arrays that are indexed."""


def compile_cases(*tables: str) -> dict[str, list[Compiled]]:
    """What the calls in tables of `tests.gpu.compile_cases` would launch."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = f"from tests.gpu.compile_tools import child; child({tables!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return {
        table: [Compiled(**fields | {"products": tuple(fields["products"])}) for fields in found]
        for table, found in json.loads(done.stdout).items()
    }


# ---- in the other process ----


def child(tables: tuple[str, ...]) -> None:
    """Compile the cases of these tables and write what came of them to standard output."""
    import triton

    from tests.gpu import compile_cases

    triton.runtime.driver.set_active(AbsentDevice())
    run = triton.runtime.jit.JITFunction.run
    found: dict[str, list[Compiled]] = {table: [] for table in tables}
    table = case = ""

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert all(0 < extent < limit for extent, limit in zip(grid, (2**31, 2**16, 2**16), strict=False)), grid
        found[table].append(looked_at(case, run(self, *args, grid=grid, warmup=True, **options)))

    triton.runtime.jit.JITFunction.run = compile_only
    for table in tables:
        for name, call in getattr(compile_cases, table).items():
            case = name
            call()
    json.dump({table: [asdict(one) for one in of_table] for table, of_table in found.items()}, sys.stdout)


class AbsentDevice:
    """What Triton asks of a device before it compiles for it."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        assert device == 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(CAPABILITY, 10)


def looked_at(case: str, kernel: Any) -> Compiled:
    """The facts about one compiled kernel."""
    import triton

    ptx = kernel.asm["ptx"]
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tools / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    used = {name: int(count) for name, count in re.findall(r"(REG|STACK):(\d+)", usage)}
    return Compiled(
        case=case,
        kernel=kernel.metadata.name,
        ptx_target=target[1],
        ptx_lines=ptx.count("\n"),
        products=tuple(sorted(set(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)[.\w]+", ptx)))),
        shared_bytes=kernel.metadata.shared,
        num_warps=kernel.metadata.num_warps,
        registers=used["REG"],
        stack_bytes=used["STACK"],
    )
