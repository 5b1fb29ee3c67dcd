"""Put an edit into the running process: the code of the functions of its file is exchanged in place.

Whoever has imported a function meets the edit. There is no way back: it is done in a process forked for it. What ran
while modules were imported has run without it.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from pathlib import Path
from types import CodeType, FunctionType

from tests.mutation.edits import Edit


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
        """Make the edit. Raises EditFails."""
        path = self._root / edit.file
        source = path.read_bytes()
        functions = self._functions[path.resolve()]
        name = functions[0].__code__.co_filename if functions else edit.file
        try:
            new = _codes(compile(edit.applied(source), name, "exec", dont_inherit=True))
        except SyntaxError as error:
            raise EditFails(str(error)) from error
        old = {code: key for key, code in _codes(compile(source, name, "exec", dont_inherit=True)).items()}
        changed = 0
        for function in functions:
            key = old.get(function.__code__)
            code = new.get(key) if key is not None else None
            if code is not None and code != function.__code__:
                try:
                    function.__code__ = code
                except ValueError as error:
                    raise EditFails(str(error)) from error
                changed += 1
        if not changed:
            raise EditFails("no function that is alive has this text")


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
