"""A sweep: the sample of a room, each edit judged, and what came of it kept in a file."""

from __future__ import annotations

import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import Phase, settings

from tests.mutation.edits import ROOMS, Edit, edits_of, enums_of
from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.judging import NO_PROGRAM, Explored, Judge, Verdict
from tests.mutation.reach import EXPLORE, IMPORT, Reach

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
    explored: Verdict | None
    """None: exploration never reaches the line."""
    tested: Verdict | None
    """None: no test reaches the line."""

    @property
    def survives(self) -> bool:
        """Whether nothing noticed it."""
        return not any(verdict is not None and verdict.noticed for verdict in (self.explored, self.tested))


class Sweep(msgspec.Struct):
    """What is known of a room."""

    sample: int
    seed: int
    date: str
    edits: int
    """Of the room, without the equivalent ones."""
    schedules: int
    """Explored for each."""
    test_seconds: float
    """Of tests, run for each at the most."""
    rows: dict[str, Row] = {}
    """By file, function and key."""


class Request(msgspec.Struct, frozen=True):
    """What to judge."""

    rooms: tuple[str, ...]
    sample: int
    seed: int
    schedules: int
    test_seconds: float
    """Tests of so many seconds, as measured, are run for each."""
    again: bool
    """Judge what survived so far once more."""
    results: Path


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
        self._sound: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge."""
        import_rooms()
        for _ in exploration(20):
            pass  # what is imported late is imported now
        self._items = {item.nodeid: item for item in session.items}
        self._judge = Judge(ROOT)
        for room in self._request.rooms:
            self._sweep(room)
        return True

    def _sweep(self, room: str) -> None:
        request = self._request
        everything = load(request.results)
        edits = sorted(edits_in(room), key=lambda edit: edit.rank(request.seed))
        known = everything.get(room)
        names = {name_of(edit) for edit in edits}
        rows = {name: row for name, row in known.rows.items() if name in names} if known else {}
        sweep = Sweep(request.sample, request.seed, "", len(edits), request.schedules, request.test_seconds, rows)
        everything[room] = sweep
        chosen = edits[: request.sample]
        if request.again:
            chosen = [edit for edit in edits if name_of(edit) in sweep.rows and sweep.rows[name_of(edit)].survives]
        for number, edit in enumerate(chosen, 1):
            if name_of(edit) in sweep.rows and not request.again:
                continue
            row = self._row(edit, sweep.rows.get(name_of(edit)))
            if row is None:
                continue
            sweep.rows[name_of(edit)] = row
            sweep.date = time.strftime("%Y-%m-%d")
            request.results.write_bytes(msgspec.json.format(msgspec.json.encode(everything)))
            _say(f"{room} {number}/{len(chosen)}", row)

    def _row(self, edit: Edit, before: Row | None) -> Row | None:
        """None: the edit is no program, or is of what runs only while modules are imported, which is over. What
        survived `before` is explored again only where the tests still do not notice it."""
        tests = self._reach.of(edit, (ROOT / edit.file).read_bytes())
        if tests == [IMPORT]:
            return None
        tested = self._test(edit, [test for test in tests if test in self._items])
        explored = before.explored if before is not None else None
        if EXPLORE in tests and (before is None or tested is None or not tested.noticed):
            schedules = self._request.schedules
            explored = self._judge.explore(edit, lambda: exploration(schedules), 20 + schedules * SPARE_S_OF_A_SCHEDULE)
        if any(verdict is not None and verdict.outcome == NO_PROGRAM for verdict in (explored, tested)):
            return None
        return Row(edit.file, edit.line, edit.function, edit.kind, edit.key, explored, tested)

    def _test(self, edit: Edit, reaching: list[str]) -> Verdict | None:
        """What the tests say that reach it, None where there are none; those that fail without it are left out."""
        while reaching:
            items = in_order([self._items[test] for test in reaching], self._reach.seconds, edit.file)
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
    """Test files of the edited file first, then the fastest; within a file as they stand, for the sake of fixtures."""
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        groups[item.nodeid.partition("::")[0]].append(item)
    words = set(Path(file).with_suffix("").parts[-2:])

    def place(name: str) -> tuple[bool, float]:
        near = Path(name).parent.name == file.partition("/")[0] and words & set(Path(name).stem.split("_"))
        return not near, sum(seconds.get(item.nodeid, 0.0) for item in groups[name])

    return [item for name in sorted(groups, key=place) for item in groups[name]]


def _within(items: Iterable[pytest.Item], seconds: dict[str, float], limit_s: float) -> Iterator[pytest.Item]:
    """The first of these tests that take so long together; one at least."""
    taken = 0.0
    for item in items:
        yield item
        taken += seconds.get(item.nodeid, 0.0)
        if taken >= limit_s:
            return


def load(results: Path) -> dict[str, Sweep]:
    """What was found so far, by room."""
    if not results.exists():
        return {}
    return msgspec.json.decode(results.read_bytes(), type=dict[str, Sweep])


def _say(how_far: str, row: Row) -> None:
    words = [
        "-" if verdict is None else f"{verdict.outcome} {verdict.count} {verdict.seconds:.1f}s {verdict.what[-60:]}"
        for verdict in (row.explored, row.tested)
    ]
    mark = "SURVIVES" if row.survives else "noticed"
    print(
        f"{how_far} {mark} {row.file}:{row.line} {row.kind}: {row.key[:160]}\n    {words}", file=sys.stderr, flush=True
    )
