"""Which tests reach which lines, and how long each takes: measured once, kept in a file."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.mutation.edits import ROOMS, Edit, FunctionNode

if TYPE_CHECKING:
    from coverage import Coverage

EXPLORE = "pawl explore"
"""Stands among the tests for what exploration reaches."""
IMPORT = "import"
"""Stands among the tests for what runs while modules are imported."""


class Place(msgspec.Struct):
    """Where a function was when it was measured."""

    digest: str
    first: int
    last: int


class Reach(msgspec.Struct):
    """What was measured."""

    seconds: dict[str, float] = {}
    """Test -> how long it took."""
    tests: list[str] = []
    lines: dict[str, dict[int, list[int]]] = {}
    """File -> line -> places of tests in `tests`."""
    functions: dict[str, dict[str, Place]] = {}
    """File -> function -> where it was."""

    @classmethod
    def load(cls, path: Path) -> Reach:
        """What `save` wrote; nothing, if nothing was measured yet."""
        return msgspec.msgpack.decode(path.read_bytes(), type=cls) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Write it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.msgpack.encode(self))

    def knows(self, edit: Edit) -> bool:
        """Whether the function was there when it was measured."""
        return edit.function in self.functions.get(edit.file, {})

    def of(self, edit: Edit, source: bytes) -> list[str]:
        """Tests that reach the edited line; where the function has changed since, those that reach the function."""
        place = self.functions.get(edit.file, {}).get(edit.function)
        lines = self.lines.get(edit.file, {})
        if place is None:
            chosen: Iterable[int] = lines
        else:
            now = places_of(source).get(edit.function)
            same = now is not None and now.digest == place.digest
            down = place.first - now.first if now else 0
            chosen = range(edit.line + down, edit.last + down + 1) if same else range(place.first, place.last + 1)
        return [self.tests[number] for number in sorted({test for line in chosen for test in lines.get(line, ())})]


@cache
def places_of(source: bytes) -> dict[str, Place]:
    """Every function of a file, by its qualified name; of several with one name (a property's) the whole span."""
    found: dict[str, Place] = {}
    text = source.decode().splitlines()

    def walk(nodes: Iterable[ast.AST], scope: tuple[str, ...]) -> None:
        for node in nodes:
            if isinstance(node, FunctionNode | ast.ClassDef):
                inner = (*scope, node.name)
                if isinstance(node, FunctionNode):
                    add(".".join(inner), node.lineno, node.end_lineno or node.lineno)
                walk(node.body, inner)
            else:
                walk(ast.iter_child_nodes(node), scope)

    def add(name: str, first: int, last: int) -> None:
        if name in found:
            first, last = min(first, found[name].first), max(last, found[name].last)
        digest = hashlib.sha256("\n".join(text[first - 1 : last]).encode()).hexdigest()[:16]
        found[name] = Place(digest, first, last)

    walk(ast.parse(source).body, ())
    return found


class Measuring:
    """A pytest plugin: runs the tests with every line of the rooms watched, then a piece of exploration."""

    def __init__(
        self, root: Path, reach: Reach, explore: Iterable[object] | None, load: Callable[[], None] = lambda: None
    ) -> None:
        """`load` imports what is to be measured; `explore` is gone through unless it is None."""
        from coverage import Coverage

        self._root = root
        self._reach = reach
        self._explore = explore
        self._coverage: Coverage = Coverage(
            data_file=None, config_file=False, include=[str(root / room / "*") for room in ROOMS]
        )
        self._seconds: dict[str, float] = {IMPORT: 0.0}
        with self._coverage.collect():
            self._coverage.switch_context(IMPORT)
            load()
        self._failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        """Watch."""
        with self._coverage.collect():
            result = yield
            if self._explore is not None:
                self._coverage.switch_context(EXPLORE)
                self._seconds[EXPLORE] = 0.0
                for _ in self._explore:
                    pass
        self._merge()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """What is reached from here on is reached by this test."""
        self._coverage.switch_context(item.nodeid)
        self._seconds[item.nodeid] = 0.0
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Each part of a test takes its time. One that fails as things are cannot judge."""
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self._failed.append(report.nodeid)

    def _merge(self) -> None:
        """What is new takes the place of what was known of the same test files."""
        reach, data = self._reach, self._coverage.get_data()
        files = {test.partition("::")[0] for test in self._seconds}
        for test in self._failed:
            self._seconds.pop(test, None)
        dropped = {number for number, test in enumerate(reach.tests) if test.partition("::")[0] in files}
        new = {number: place for place, number in enumerate(n for n in range(len(reach.tests)) if n not in dropped)}
        tests = [test for number, test in enumerate(reach.tests) if number in new]
        for lines in reach.lines.values():
            for line, known in lines.items():
                lines[line] = [new[number] for number in known if number in new]
        reach.seconds = {test: seconds for test, seconds in reach.seconds.items() if test in set(tests)}
        reach.seconds |= self._seconds
        reach.tests = [*tests, *self._seconds]
        numbers = {test: number for number, test in enumerate(reach.tests)}
        for measured in data.measured_files():
            path = Path(measured).resolve()
            file = path.relative_to(self._root).as_posix()
            places = places_of(path.read_bytes())
            lines = _moved(reach.lines.get(file, {}), reach.functions.get(file, {}), places)
            reach.lines[file], reach.functions[file] = lines, places
            for line, contexts in data.contexts_by_lineno(measured).items():
                lines.setdefault(line, []).extend(numbers[test] for test in contexts if test in numbers)


def _moved(lines: dict[int, list[int]], before: dict[str, Place], now: dict[str, Place]) -> dict[int, list[int]]:
    """What reached which line, after the text has changed: in a changed function, what reached any line of it."""
    if before == now:
        return lines
    moved: dict[int, list[int]] = {}
    for name, place in now.items():
        old = before.get(name)
        if old is None:
            continue
        if old.digest == place.digest:
            for line in range(old.first, old.last + 1):
                moved[line - old.first + place.first] = lines.get(line, [])
        else:
            tests = sorted({test for line in range(old.first, old.last + 1) for test in lines.get(line, ())})
            moved.update((line, list(tests)) for line in range(place.first, place.last + 1))
    return moved
