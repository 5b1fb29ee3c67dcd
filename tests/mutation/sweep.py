"""A sweep: a sample of edits, each judged, and what came of it kept in a file."""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import Phase, settings

from tests.mutation.edits import ROOMS, Edit, edits_of, enums_of
from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.judging import NO_PROGRAM, SURVIVED, Explored, Judge, Verdict
from tests.mutation.processes import in_processes
from tests.mutation.reach import EXPLORE, IMPORT, Place, Reach, places_of

ROOT = Path(__file__).parents[2]
QUICK_S = 10.0
"""So many seconds of tests, the quickest, are asked before exploration, the others after it."""
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
    def name(self) -> str:
        """By which it is known in results and among the equivalent ones."""
        return _name(self.file, self.function, self.key)

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
    processes: int
    """That judge beside each other."""
    results: Path


def noticed(*verdicts: Verdict | None) -> bool:
    """Whether one of the judges noticed it."""
    return any(verdict is not None and verdict.noticed for verdict in verdicts)


def name_of(edit: Edit) -> str:
    """By which an edit is known in results and among the equivalent ones."""
    return _name(edit.file, edit.function, edit.key)


def _name(file: str, function: str, key: str) -> str:
    return f"{file} {function}: {key}"


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


def unreached(reach: Reach) -> Iterator[str]:
    """A line for each function with statements that no test reaches: whatever is edited there survives."""
    found: dict[tuple[str, str], set[int]] = {}
    for edit in (edit for room in ROOMS for edit in edits_in(room)):
        if reach.knows(edit) and not reach.of(edit, (ROOT / edit.file).read_bytes()):
            found.setdefault((edit.file, edit.function), set()).add(edit.line)
    for (file, function), lines in sorted(found.items()):
        yield f"{file} {function}: {', '.join(map(str, sorted(lines)))}"


def import_rooms() -> None:
    """Every module of the rooms."""
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        parts = ("pawl", *path.relative_to(ROOT).with_suffix("").parts)
        importlib.import_module(".".join(parts).removesuffix(".__init__"))


def exploration(schedules: int) -> Iterator[Explored]:
    """What `pawl explore` does by default, from a seed that is always the same."""
    from pawl.exploration.task import explore
    from tests.mutants.hunting import task_with

    flags = ["--shrink-seconds", "0", "--schedules", str(schedules), "--seconds", "1e9"]
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
        self._told: Counter[tuple[str, str, str]] = Counter()
        """File, function and test -> edits of the function that the test noticed; of the whole file where it is ""."""

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
            name: msgspec.structs.replace(row, gone=name not in everything)
            for name, row in results.rows.items()
            if name in everything or name in EQUIVALENTS or not _is_as_judged(row)
        }
        if request.again:
            chosen = [everything[name] for name, row in results.rows.items() if row.survives]
        else:
            chosen = sorted(everything.values(), key=lambda edit: edit.rank(request.seed))[: request.sample]
        chosen = [edit for edit in chosen if edit.file.startswith(request.rooms)]
        for row in results.rows.values():
            if row.tested is not None and row.tested.noticed:
                self._tell(row.file, row.function, row.tested.what)
        if not request.again:
            chosen = [edit for edit in chosen if not self._is_judged(edit)]
        judged = in_processes(request.processes, chosen, self._row)
        for number, row in enumerate(msgspec.json.decode(told, type=Row | None) for told in judged):
            if row is None:
                continue
            results.rows[row.name] = row
            results.date = time.strftime("%Y-%m-%d")
            results.save(request.results)
            _say(f"{number + 1}/{len(chosen)}", row)

    def _is_judged(self, edit: Edit) -> bool:
        before = self._results.rows.get(name_of(edit))
        return before is not None and before.digest == _digest(edit)

    def _row(self, edit: Edit) -> bytes:
        """The row of an edit, encoded; `null` where the edit is no program, or is of what runs only while modules are
        imported, which is over."""
        reaching = self._reach.of(edit, (ROOT / edit.file).read_bytes())
        if reaching == [IMPORT]:
            return b"null"
        # What only programs reach that a test starts, or a test that traces itself, no measurement has seen.
        unknown = not self._reach.knows(edit) or not reaching
        quick, others = self._quick_and_others(edit, reaching, unknown)
        tested, explored, schedules = self._test(edit, quick), None, self._request.schedules
        if schedules and (unknown or EXPLORE in reaching) and not noticed(tested):
            explored = self._judge.explore(edit, lambda: exploration(schedules), 20 + schedules * SPARE_S_OF_A_SCHEDULE)
        if not noticed(tested, explored):
            tested = _joined(tested, self._test(edit, others))
        if any(verdict is not None and verdict.outcome == NO_PROGRAM for verdict in (explored, tested)):
            return b"null"
        before, survives = self._results.rows.get(name_of(edit)), not noticed(tested, explored)
        seed, first = (self._request.seed, survives) if before is None else (before.seed, before.survived_first)
        place = edit.file, edit.line, edit.function, edit.kind, edit.key
        return msgspec.json.encode(Row(*place, seed, _digest(edit), tested, explored, first))

    def _quick_and_others(self, edit: Edit, reaching: Iterable[str], unknown: bool) -> tuple[list[str], list[str]]:
        """The tests to ask. What came since the measurement may reach it: tests of the room, of a function that is
        `unknown` those of its subject. The first are those that noticed other edits of this function, then of this
        file."""
        seconds, folder = self._reach.seconds, f"tests/{edit.file.partition('/')[0]}/"
        new = [
            test
            for test in self._items
            if (unknown and is_near(test, edit.file)) or (test not in seconds and test.startswith(folder))
        ]
        tests = in_order([test for test in {*reaching, *new} if test in self._items], seconds, edit.file)
        tests.sort(key=lambda test: (-self._told[edit.file, edit.function, test], -self._told[edit.file, "", test]))
        chosen = list(_within(tests, seconds, self._request.test_seconds))
        quick = list(_within(chosen, seconds, QUICK_S))
        return quick, chosen[len(quick) :]

    def _test(self, edit: Edit, tests: list[str]) -> Verdict | None:
        """What these tests say, None where there are none. One that fails without the edit, or alone does not fail with
        it, has noticed nothing."""
        said: list[Verdict] = []
        while tests:
            verdict = self._judge.test(edit, [self._items[test] for test in tests], self._reach.seconds)
            said.append(verdict)
            if not verdict.noticed:
                break
            was_alone = verdict.count == 1
            if self._is_sound(verdict.what) and (was_alone or self._alone(edit, verdict.what).noticed):
                self._tell(edit.file, edit.function, verdict.what)
                break
            tests = tests[verdict.count :]
            said[-1] = Verdict(SURVIVED, count=verdict.count, seconds=verdict.seconds)
        return _joined(*said)

    def _tell(self, file: str, function: str, test: str) -> None:
        """This test has noticed an edit of the function."""
        self._told[file, function, test] += 1
        self._told[file, "", test] += 1

    def _alone(self, edit: Edit | None, test: str) -> Verdict:
        return self._judge.test(edit, [self._items[test]], self._reach.seconds)

    def _is_sound(self, test: str) -> bool:
        """Whether a test that fails with an edit passes without."""
        if test in self._items and test not in self._sound:
            if self._alone(None, test).noticed:
                return False
            self._sound.add(test)
        return True


def _joined(*verdicts: Verdict | None) -> Verdict | None:
    """What tests said one after the other: the last word is the outcome."""
    told = [verdict for verdict in verdicts if verdict is not None]
    if not told:
        return None
    count, seconds = sum(verdict.count for verdict in told), sum(verdict.seconds for verdict in told)
    return msgspec.structs.replace(told[-1], count=count, seconds=round(seconds, 2))


def in_order(tests: Iterable[str], seconds: dict[str, float], file: str) -> list[str]:
    """The fastest first, by orders of magnitude; among these the test files of the edited file, and file by file, for
    the sake of fixtures."""

    def place(test: str) -> tuple[int, bool, str]:
        return round(math.log10(max(seconds.get(test, 0.0), 0.01))), not is_near(test, file), test

    return sorted(tests, key=place)


def is_near(test: str, file: str) -> bool:
    """Whether a test stands in a file whose name says that it is about this one, or its folder."""
    path = Path(test.partition("::")[0])
    words = set("_".join(Path(file).with_suffix("").parts[-2:]).split("_"))
    return path.parent.name == file.partition("/")[0] and bool(words & set(path.stem.split("_")))


def _within(tests: Iterable[str], seconds: dict[str, float], limit_s: float) -> Iterator[str]:
    """The first of these tests that take so long together; one at least."""
    taken = 0.0
    for test in tests:
        yield test
        taken += seconds.get(test, 0.0)
        if taken >= limit_s:
            return


def _digest(edit: Edit) -> str:
    """Of the function that it is in."""
    return _places(edit.file)[edit.function].digest


def _is_as_judged(row: Row) -> bool:
    """Whether its function is what it was: an edit of it that is not made any more is of those that changes nothing."""
    return (ROOT / row.file).exists() and getattr(_places(row.file).get(row.function), "digest", "") == row.digest


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
