"""A sweep: a sample of edits, each judged, and what came of it kept in a file."""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import Phase, settings

from tests.mutation.edits import ROOMS, Edit, edits_of, enums_of
from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.judging import NO_PROGRAM, Explored, Judge, Verdict
from tests.mutation.reach import EXPLORE, IMPORT, Place, Reach, places_of

ROOT = Path(__file__).parents[2]
SPARE_S_OF_A_SCHEDULE = 0.2
"""Processor time that exploring one may take: ten times what it does."""


class Row(msgspec.Struct, frozen=True):
    """One edit and what noticed it."""

    file: str
    line: int
    function: str
    kind: str
    key: str
    seed: int
    """Of the sample that it came with."""
    digest: str
    """Of the function, as it was judged."""
    tested: Verdict | None
    """None: no test reaches the line."""
    explored: Verdict | None
    """None: exploration never reaches the line, or the tests notice it."""
    survived_first: bool
    """Whether nothing noticed it when it was judged for the first time."""
    gone: bool = False
    """Whether the text that it changes is not there any more."""

    @property
    def survives(self) -> bool:
        """Whether nothing notices it."""
        return not self.gone and not noticed(self.tested, self.explored)


class Results(msgspec.Struct):
    """What is known."""

    edits: dict[str, int] = {}
    """Of each room, without the equivalent ones."""
    schedules: int = 0
    """Explored for each."""
    test_seconds: float = 0.0
    """Of tests, run for each at the most."""
    date: str = ""
    rows: dict[str, Row] = {}
    """By file, function and key."""

    @classmethod
    def load(cls, path: Path) -> Results:
        """What `save` wrote; nothing, if nothing was judged yet."""
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Write it."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)))


class Request(msgspec.Struct, frozen=True):
    """What to judge."""

    rooms: tuple[str, ...]
    sample: int
    """Edits of the four rooms together, of which those of `rooms` are judged."""
    seed: int
    schedules: int
    test_seconds: float
    """Tests of so many seconds, as measured, are run for each."""
    again: bool
    """Judge what survived so far once more, of all samples."""
    results: Path


def noticed(*verdicts: Verdict | None) -> bool:
    """Whether one of the judges noticed it."""
    return any(verdict is not None and verdict.noticed for verdict in verdicts)


def name_of(edit: Edit) -> str:
    """By which an edit is known in results and among the equivalent ones."""
    return f"{edit.file} {edit.function}: {edit.key}"


@cache
def every_edit(room: str) -> tuple[Edit, ...]:
    """All edits of a room."""
    paths = sorted((ROOT / room).rglob("*.py"))
    return tuple(
        edit for path in paths for edit in edits_of(path.relative_to(ROOT).as_posix(), path.read_bytes(), _enums())
    )


@cache
def _enums() -> dict[str, tuple[str, ...]]:
    return enums_of([ROOT / room for room in ROOMS])


def edits_in(room: str) -> list[Edit]:
    """All edits of a room, but those that change nothing."""
    return [edit for edit in every_edit(room) if name_of(edit) not in EQUIVALENTS]


def import_rooms() -> None:
    """Every module of the rooms."""
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        parts = ("pawl", *path.relative_to(ROOT).with_suffix("").parts)
        importlib.import_module(".".join(parts).removesuffix(".__init__"))


def exploration(schedules: int) -> Iterator[Explored]:
    """What `pawl explore` does by default, from a seed that is always the same."""
    from pawl.exploration.task import explore
    from tests.mutants.hunting import task_with

    flags = ["--shrink-seconds", "0", "--schedules", str(schedules), "--ends", "inf"]
    for report in explore(task_with(flags, 1, 0.0)):
        yield Explored(report.totals.schedules, report.text)


class Hurry:
    """A pytest plugin: random examples that fail are not made smaller."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Tests are imported after this."""
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutation", settings.get_profile("ci"), phases=phases)
        settings.load_profile("mutation")


class Sweeping:
    """A pytest plugin: judges edits with the tests that were collected, in place of running these."""

    def __init__(self, request: Request, reach: Reach) -> None:
        self._request = request
        self._reach = reach
        self._results = Results.load(request.results)
        self._sound: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge."""
        import_rooms()
        for _ in exploration(20):
            pass  # what is imported late is imported now
        self._items = {item.nodeid: item for item in session.items}
        self._judge = Judge(ROOT)
        self._sweep()
        return True

    def _sweep(self) -> None:
        request, results = self._request, self._results
        everything = {name_of(edit): edit for room in ROOMS for edit in edits_in(room)}
        results.edits = {room: len(edits_in(room)) for room in ROOMS}
        results.schedules, results.test_seconds = request.schedules, request.test_seconds
        results.rows = {
            name: msgspec.structs.replace(row, gone=name not in everything) for name, row in results.rows.items()
        }
        if request.again:
            chosen = [everything[name] for name, row in results.rows.items() if row.survives]
        else:
            chosen = sorted(everything.values(), key=lambda edit: edit.rank(request.seed))[: request.sample]
        chosen = [edit for edit in chosen if edit.file.startswith(request.rooms)]
        for number, edit in enumerate(chosen, 1):
            before, digest = results.rows.get(name_of(edit)), _digest(edit)
            if before is not None and before.digest == digest and not request.again:
                continue
            row = self._row(edit, before, digest)
            if row is None:
                continue
            results.rows[name_of(edit)] = row
            results.date = time.strftime("%Y-%m-%d")
            results.save(request.results)
            _say(f"{number}/{len(chosen)}", row)

    def _row(self, edit: Edit, before: Row | None, digest: str) -> Row | None:
        """None: the edit is no program, or is of what runs only while modules are imported, which is over."""
        tests = self._reach.of(edit, (ROOT / edit.file).read_bytes())
        if tests == [IMPORT]:
            return None
        # What came since the measurement may reach it: tests of the room, and of a new function those of its subject.
        unknown, folder = not self._reach.knows(edit), f"tests/{edit.file.partition('/')[0]}/"
        new = [
            test
            for test in self._items
            if (unknown and is_near(test, edit.file)) or (test not in self._reach.seconds and test.startswith(folder))
        ]
        tested = self._test(edit, [test for test in dict.fromkeys((*tests, *new)) if test in self._items])
        explored = None
        if (unknown or EXPLORE in tests) and not noticed(tested):
            schedules = self._request.schedules
            explored = self._judge.explore(edit, lambda: exploration(schedules), 20 + schedules * SPARE_S_OF_A_SCHEDULE)
        if any(verdict is not None and verdict.outcome == NO_PROGRAM for verdict in (explored, tested)):
            return None
        survives = not noticed(tested, explored)
        seed, first = (self._request.seed, survives) if before is None else (before.seed, before.survived_first)
        return Row(edit.file, edit.line, edit.function, edit.kind, edit.key, seed, digest, tested, explored, first)

    def _test(self, edit: Edit, reaching: list[str]) -> Verdict | None:
        """What the tests say that reach it, None where there are none; those that fail without it are left out. The
        first are those that noticed other edits of this function."""
        told = Counter(
            row.tested.what
            for row in self._results.rows.values()
            if row.tested is not None and (row.file, row.function) == (edit.file, edit.function)
        )
        while reaching:
            items = in_order([self._items[test] for test in reaching], self._reach.seconds, edit.file)
            items.sort(key=lambda item: -told[item.nodeid])
            items = list(_within(items, self._reach.seconds, self._request.test_seconds))
            verdict = self._judge.test(edit, items, self._reach.seconds)
            if not verdict.noticed or self._is_sound(verdict.what):
                return verdict
            reaching.remove(verdict.what)
            del self._items[verdict.what]
        return None

    def _is_sound(self, test: str) -> bool:
        """Whether a test that fails with an edit passes without."""
        if test in self._items and test not in self._sound:
            if self._judge.test(None, [self._items[test]], self._reach.seconds).noticed:
                return False
            self._sound.add(test)
        return True


def in_order(items: Sequence[pytest.Item], seconds: dict[str, float], file: str) -> list[pytest.Item]:
    """The fastest first, by orders of magnitude; among these the test files of the edited file, and as they stand, for
    the sake of fixtures."""

    def place(item: pytest.Item) -> tuple[int, bool]:
        return round(math.log10(max(seconds.get(item.nodeid, 0.0), 0.01))), not is_near(item.nodeid, file)

    return sorted(items, key=place)


def is_near(test: str, file: str) -> bool:
    """Whether a test stands in a file whose name says that it is about this one, or its folder."""
    path = Path(test.partition("::")[0])
    words = set("_".join(Path(file).with_suffix("").parts[-2:]).split("_"))
    return path.parent.name == file.partition("/")[0] and bool(words & set(path.stem.split("_")))


def _within(items: Iterable[pytest.Item], seconds: dict[str, float], limit_s: float) -> Iterator[pytest.Item]:
    """The first of these tests that take so long together; one at least."""
    taken = 0.0
    for item in items:
        yield item
        taken += seconds.get(item.nodeid, 0.0)
        if taken >= limit_s:
            return


def _digest(edit: Edit) -> str:
    """Of the function that it is in."""
    return _places(edit.file)[edit.function].digest


@cache
def _places(file: str) -> dict[str, Place]:
    return places_of((ROOT / file).read_bytes())


def _say(how_far: str, row: Row) -> None:
    words = [
        "-" if verdict is None else f"{verdict.outcome} {verdict.count} {verdict.seconds:.1f}s {verdict.what[-60:]}"
        for verdict in (row.tested, row.explored)
    ]
    mark = "SURVIVES" if row.survives else "noticed"
    print(
        f"{how_far} {mark} {row.file}:{row.line} {row.kind}: {row.key[:160]}\n    {words}", file=sys.stderr, flush=True
    )
