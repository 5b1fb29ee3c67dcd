"""Put an edit into the running process: the code of the functions of its file is exchanged in place.

Whoever has imported a function meets the edit. There is no way back: it is done in a process forked for it. What ran
while modules were imported has run without it. Programs that the process starts meet the edit in the file.
"""

from __future__ import annotations

import ctypes
import gc
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from types import CodeType, FunctionType

from tests.mutation.edits import Edit

CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


class EditFails(Exception):
    """The edited text is no program, or a function of it needs other variables of its surroundings than before."""


class Planter:
    """Knows every function that is alive, by file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._functions: dict[Path, list[FunctionType]] = defaultdict(list)
        real: dict[str, Path] = {}
        for function in gc.get_objects():
            if type(function) is FunctionType:
                name = function.__code__.co_filename
                if name not in real:
                    real[name] = Path(name).resolve()
                self._functions[real[name]].append(function)

    def plant(self, edit: Edit) -> None:
        """Make the edit, in this process and for what it starts. Raises EditFails."""
        path = self._root / edit.file
        source = path.read_bytes()
        functions = self._functions[path.resolve()]
        name = functions[0].__code__.co_filename if functions else edit.file
        try:
            new = _codes(compile(edit.applied(source), name, "exec", dont_inherit=True))
        except SyntaxError as error:
            raise EditFails(str(error)) from error
        # By place and not by content: pytest may have compiled the asserts of a file in its own way.
        old = _codes(compile(source, name, "exec", dont_inherit=True))
        key_of = {(key[0], code.co_firstlineno): key for key, code in old.items()}
        planted = False
        for function in functions:
            key = key_of.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
            if key is None or key not in new:
                continue
            try:
                function.__code__ = new[key]
            except ValueError as error:
                raise EditFails(str(error)) from error
            planted |= f"{edit.function}.".startswith(key[0].replace(".<locals>", "") + ".")
        if not planted:
            raise EditFails("the function is not alive")
        lay_over(path, edit.applied(source))


def lay_over(path: Path, content: bytes) -> bool:
    """Let this process, and those that it starts, find other content in a file, and nobody else: it is laid over the
    file in a view of the file system of their own. False, and nothing done, where the system does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare") or libc.unshare(CLONE_NEWNS):
        return False
    mount = libc.mount
    mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # compiled files are everybody's
        return not (
            mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
            or mount(file.name.encode(), bytes(path.resolve()), None, MS_BIND, None)
        )


def _codes(module: CodeType) -> dict[tuple[str, int], CodeType]:
    """The code of every function in a module: by its qualified name and its place among those of that name."""
    found: dict[tuple[str, int], CodeType] = {}
    counts: dict[str, int] = defaultdict(int)

    def walk(code: CodeType) -> None:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                counts[constant.co_qualname] += 1
                found[constant.co_qualname, counts[constant.co_qualname]] = constant
                walk(constant)

    walk(module)
    return found
