"""Compile the C++ kernels with the system's compiler, once for each machine and version of the sources.

The library lies in the cache under a hash of everything that shapes it: sources, flags, compiler, processor. It appears
by an atomic rename, so that two processes that start together cannot see half of one.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import structlog

from pawl.gpu.backend import BackendUnavailable
from pawl.gpu.children import OwnFolder
from pawl.gpu.folders import cache_folder

SOURCES = Path(__file__).parent
FLAGS = (
    "-std=c++17",
    "-O3",
    # Elements must not depend on their neighbours: nothing is fused or reordered but what the sources say.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fPIC",
    "-pthread",
)
_COMPILE_TIMEOUT_S = 300
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""Linux on x86-64: a system call, and what it is asked for."""

Sums = Literal["pairs", "blocks"]
"""How products of bfloat16 are summed: one after the other, or in blocks, as AMX does it (`block_tile.h`)."""
_IN_BLOCKS = ", sums in blocks"

log = structlog.get_logger()


class NativeUnavailable(BackendUnavailable):
    """The compiled kernels cannot be had on this machine."""

    def __init__(self, reason: str) -> None:
        super().__init__("native", reason)


def find_compiler() -> str:
    """The C++ compiler: `$CXX`, or the first of c++, g++, clang++ on the path. Raises NativeUnavailable."""
    given = os.environ.get("CXX")
    candidates = (given,) if given else ("c++", "g++", "clang++")
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    raise NativeUnavailable(f"no C++ compiler found (looked for {', '.join(candidates)})")


def _processor() -> str:
    """What compilers see of the processor, as text."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "model name", "cpu family", "model\t")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def sums_of(target: str) -> Sums:
    """Those of kernels that call themselves so (`NativeBackend.target`)."""
    return "blocks" if target.endswith(_IN_BLOCKS) else "pairs"


def _tiles_granted() -> bool:
    """Ask the system for the tile registers (AMX) of this processor, as each process must; whether it grants them."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0


def has_tiles() -> bool:
    """Whether this machine's kernels multiply bfloat16 in tile registers."""
    has = set(_processor().split()) >= {"amx_tile", "amx_bf16", "amx_int8"}
    return has and _tiles_granted()


def flags_for(
    processor: str = "native", machine: str = platform.machine(), sums: Sums | None = None
) -> tuple[str, ...]:
    """For GCC and clang, which know the processor by this name among those of `machine`'s kind. `sums`: not as is the
    fastest there."""
    chosen = () if sums is None else (f"-DPAWL_BLOCK_SUMS={int(sums == 'blocks')}",)
    if machine in ("x86_64", "AMD64"):
        tiles = () if _tiles_granted() else ("-DPAWL_NO_TILES",)
        # They halve their vectors on some processors unless told.
        return (*FLAGS, f"-march={processor}", "-mprefer-vector-width=512", *tiles, *chosen)
    return (*FLAGS, f"-mcpu={processor}", *chosen)


def _run(command: Sequence[str]) -> str:
    """Standard output of `command`. Raises NativeUnavailable with what it printed when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{command[0]} could not be run: {error}") from error
    if done.returncode != 0:
        raise NativeUnavailable(f"{Path(command[0]).name} exited with {done.returncode}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def compiled_path(compiler: str, directory: Path | None = None, flags: Sequence[str] | None = None) -> Path:
    """Where the library that `compiler` makes of the present sources would be, with `flags` (those of this machine)."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    digest.update(repr((_run([compiler, "--version"]), tuple(flags or flags_for()), _processor())).encode())
    return (directory or cache_folder()) / "native" / f"pawl-{digest.hexdigest()[:24]}.so"


def build(directory: Path | None = None, flags: Sequence[str] | None = None) -> Path:
    """The compiled library, made now if the cache (`directory`, or the user's) has none. Without `flags`, with those of
    this machine.

    Where the user's cache cannot be written, the library lies in a temporary folder and is gone with this process.
    Raises NativeUnavailable with the reason when there is no compiler, it fails, or `directory` cannot be written.
    """
    compiler = find_compiler()
    flags = flags or flags_for()
    path = compiled_path(compiler, directory, flags)
    try:
        return path if path.exists() else _made(compiler, path, flags)
    except OSError as error:
        if directory is not None:
            raise NativeUnavailable(f"the cache folder {path.parent} cannot be written: {error}") from error
        advice = "set PAWL_CACHE to a folder that can be written"
        log.warning("kernels are compiled at every start", folder=str(path.parent), error=str(error), advice=advice)
    return _made_for_now(compiler, flags)


def _made_for_now(compiler: str, flags: Sequence[str]) -> Path:
    """The library in a temporary folder, which goes when this process ends. Raises NativeUnavailable."""
    try:
        folder = OwnFolder("kernels")
        atexit.register(folder.close)
        return _made(compiler, compiled_path(compiler, folder.path, flags), flags)
    except OSError as error:
        raise NativeUnavailable(f"no folder can be written (set PAWL_CACHE to one): {error}") from error


def _made(compiler: str, path: Path, flags: Sequence[str]) -> Path:
    """`path`, with the library that `compiler` makes. Raises OSError, or NativeUnavailable when compiling fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        log.info("compiling the CPU kernels (once for each machine)", compiler=compiler, path=str(path))
        made = _compile(compiler, Path(folder), flags)
        os.replace(made, path)
    return path


def _compile(compiler: str, folder: Path, flags: Sequence[str]) -> Path:
    """Compile every source to an object, side by side, and link them. Raises NativeUnavailable."""
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [folder / f"{source.stem}.o" for source in sources]
    commands = [
        [compiler, *flags, "-c", str(source), "-o", str(made)] for source, made in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for _ in executor.map(_run, commands):
            pass
    library = folder / "pawl.so"
    _run([compiler, "-shared", "-pthread", *map(str, objects), "-o", str(library)])
    return library


if __name__ == "__main__":
    # Part of the set-up, so that the first start of a server does not wait for the compiler.
    try:
        print(f"CPU kernels: {build()}")
    except NativeUnavailable as missing:
        print(f"{missing}; plain torch will compute, slower")
