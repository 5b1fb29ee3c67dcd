"""A toy with two edits that matter to its test and one that does not; and loops and waits without end."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from msgspec import structs

from tests.mutation import judging, sweep
from tests.mutation.edits import Edit, edits_of
from tests.mutation.judging import ENDLESS, KILLED, NO_PROGRAM, STUCK, SURVIVED, Explored, Judge, Verdict
from tests.mutation.planting import lay_over
from tests.mutation.processes import in_processes
from tests.mutation.reach import Measuring, Reach, places_of
from tests.mutation.sweep import Hurry, exploration, in_order

TOY = """\
class Pages:
    def __init__(self):
        assert True
        self.free = 3
        self.told = []

    def take(self, count):
        if count > self.free:
            return False
        self.free -= count
        self.told.append(count)
        return True


def unused(pages):
    pages.told.clear()
"""
TEST = """\
import pytest
from msgspec import structs

from pawl_toy import Pages


def test_what_is_taken_is_not_free():
    pages = Pages()
    assert pages.take(2)
    assert pages.free == 1


def test_no_more_is_taken_than_there_is():
    assert not Pages().take(4)
"""


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[ModuleType]:
    """A module that tests can import, of one file below `lifecycle`, as reach knows only files of rooms."""
    path = tmp_path / "lifecycle" / "pawl_toy.py"
    path.parent.mkdir()
    path.write_text(TOY)
    (tmp_path / "test_pawl_toy.py").write_text(TEST)
    spec = importlib.util.spec_from_file_location("pawl_toy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pawl_toy"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["pawl_toy"]
    sys.modules.pop("test_pawl_toy", None)


@pytest.fixture(scope="module", autouse=True)
def _frozen_as_before() -> Iterator[None]:
    """A judge freezes whatever is alive, and what has been frozen is never garbage."""
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def edit_named(key: str) -> Edit:
    return next(edit for edit in edits_of("lifecycle/pawl_toy.py", TOY.encode(), {}) if edit.key == key)


class Judging:
    """A plugin that judges edits with the tests of the toy."""

    def __init__(self, root: Path, *keys: str) -> None:
        self._root = root
        self._keys = keys
        self.verdicts: dict[str, Verdict] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        judge = Judge(self._root)
        for key in self._keys:
            self.verdicts[key] = judge.test(edit_named(key), session.items, {})
        return True


def run_pytest(root: Path, plugin: object) -> None:
    (root / "none.ini").write_text("[pytest]\n")
    options = ("-q", "-s", "-p", "no:cacheprovider", "-c", str(root / "none.ini"), "--import-mode=importlib")
    pytest.main([*options, str(root)], plugins=[plugin])


def test_tests_kill_what_matters_to_them_and_let_the_rest_survive(toy: ModuleType, tmp_path: Path) -> None:
    plugin = Judging(tmp_path, "self.free -= count => pass", "if count > self.free: => if count <= self.free:")
    run_pytest(tmp_path, plugin)
    assert [verdict.outcome for verdict in plugin.verdicts.values()] == [KILLED, KILLED]
    assert all(verdict.what.endswith("test_what_is_taken_is_not_free") for verdict in plugin.verdicts.values())
    plugin = Judging(tmp_path, "self.told.append(count) => pass")
    run_pytest(tmp_path, plugin)
    (verdict,) = plugin.verdicts.values()
    assert (verdict.outcome, verdict.count, verdict.noticed) == (SURVIVED, 2, False)


def explored(toy: ModuleType, root: Path, key: str, exploration: Callable[[], Iterator[Explored]]) -> Verdict:
    return Judge(root).explore(edit_named(key), exploration, limit_s=1)


@pytest.mark.slow
def test_an_edit_reaches_functions_whose_asserts_were_compiled_in_another_way(toy: ModuleType, tmp_path: Path) -> None:
    rewritten = TOY.replace("assert True", "assert 1 == 1")
    exec(compile(rewritten, str(tmp_path / "lifecycle" / "pawl_toy.py"), "exec"), vars(toy))

    def exploration() -> Iterator[Explored]:
        yield Explored(1, "" if toy.Pages().free == 3 else "another number")

    assert explored(toy, tmp_path, "self.free = 3 => self.free = 4", exploration).outcome == KILLED


@pytest.mark.slow
def test_an_exploration_kills_by_what_it_finds_or_raises_and_leaves_this_process_as_it_is(
    toy: ModuleType, tmp_path: Path
) -> None:
    def exploration() -> Iterator[Explored]:
        pages = toy.Pages()
        pages.take(1)
        yield Explored(7, "" if pages.told == [1] else "conservation: nobody was told\nmore")

    verdict = explored(toy, tmp_path, "self.told.append(count) => pass", exploration)
    assert (verdict.outcome, verdict.what, verdict.count) == (KILLED, "conservation: nobody was told", 7)
    assert explored(toy, tmp_path, "if count > self.free: => if count >= self.free:", exploration).outcome == SURVIVED
    assert explored(toy, tmp_path, "self.told = [] => pass", exploration).what.startswith("raised: AttributeError")
    assert toy.Pages().told == []


@pytest.mark.slow
def test_endless_loops_and_waits_without_end_are_told_apart(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loops() -> Iterator[Explored]:
        while True:
            pass
        yield Explored(0, "")

    def waits() -> Iterator[Explored]:
        reader, _ = judging.os.pipe()
        judging.os.read(reader, 1)
        yield Explored(0, "")

    key = "self.told.append(count) => pass"
    assert explored(toy, tmp_path, key, loops).outcome == ENDLESS
    monkeypatch.setattr(judging, "PATIENCE_S", 0.2)
    assert explored(toy, tmp_path, key, waits).outcome == STUCK


@pytest.mark.slow
def test_an_edit_of_what_is_not_in_the_file_any_more_is_no_program(toy: ModuleType, tmp_path: Path) -> None:
    edit = edit_named("self.free -= count => pass")
    broken = edit._replace(new="(")
    assert Judge(tmp_path).explore(broken, lambda: iter(()), 1).outcome == NO_PROGRAM


def test_reach_knows_which_test_reaches_which_line_also_after_lines_have_moved(toy: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("coverage")
    reach = Reach()
    run_pytest(tmp_path, Measuring(tmp_path, reach, iter(())))
    both = {name for name in reach.tests if "pawl_toy" in name}
    (first,) = (name for name in both if "is_not_free" in name)
    assert set(reach.of(edit_named("if count > self.free: => if count >= self.free:"), TOY.encode())) == both
    assert reach.of(edit_named("self.free -= count => pass"), TOY.encode()) == [first]
    assert reach.of(edit_named("pages.told.clear() => pass"), TOY.encode()) == []
    moved = "# One.\n# Two.\n" + TOY
    edits = edits_of("lifecycle/pawl_toy.py", moved.encode(), {})
    (edit,) = (edit for edit in edits if edit.key == "self.free -= count => pass")
    assert reach.of(edit, moved.encode()) == [first]
    changed = TOY.replace("        if count", "        count += 0\n        if count")
    edits = edits_of("lifecycle/pawl_toy.py", changed.encode(), {})
    (edit,) = (edit for edit in edits if edit.key == "self.free -= count => pass")
    assert set(reach.of(edit, changed.encode())) == both


def test_statements_that_no_test_reaches_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lifecycle").mkdir()
    (tmp_path / "lifecycle" / "pawl_toy.py").write_text(TOY)
    edits = edits_of("lifecycle/pawl_toy.py", TOY.encode(), {})
    reach = Reach(tests=["a test"], functions={"lifecycle/pawl_toy.py": places_of(TOY.encode())})
    reach.lines = {"lifecycle/pawl_toy.py": {line: [0] for line in range(1, 10)}}
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep, "edits_in", lambda room: edits if room == "lifecycle" else [])
    assert list(sweep.unreached(reach)) == [
        "lifecycle/pawl_toy.py Pages.take: 10, 11, 12",
        "lifecycle/pawl_toy.py unused: 16",
    ]


def test_random_examples_of_a_sweep_are_not_made_smaller() -> None:
    from hypothesis import Phase, settings

    before = settings.get_current_profile_name()
    try:
        Hurry().pytest_collection()
        assert Phase.shrink not in settings().phases
    finally:
        settings.load_profile(before)


def test_the_exploration_of_a_sweep_is_that_of_the_command() -> None:
    *_, last = exploration(1)
    assert last.schedules >= 1
    assert last.text == ""


def test_programs_that_a_process_starts_read_the_edited_file_and_nobody_else_does(tmp_path: Path) -> None:
    file = tmp_path / "toy.py"
    file.write_text("as it is")

    def read_by_a_child(content: bytes) -> bytes:
        if not lay_over(file, content):
            return b"not allowed"
        return subprocess.check_output(["cat", str(file)])

    (read,) = in_processes(1, [b"edited"], read_by_a_child)
    if read == b"not allowed":
        pytest.skip("this system gives no process a view of its own")
    assert read == b"edited"
    assert file.read_text() == "as it is"


def test_processes_share_the_work_and_one_that_ends_early_is_told() -> None:
    items = [b"1", b"2", b"3", b"4", b"5"]
    assert sorted(in_processes(2, items, lambda item: b"judged " + item)) == [b"judged " + item for item in items]
    with pytest.raises(EOFError):
        list(in_processes(2, items, lambda item: os._exit(1) if item == b"4" else item))


def test_quick_tests_are_asked_first_and_of_those_that_cost_the_same_the_near_ones() -> None:
    near, far, slow = "tests/memory/test_tiers.py::a", "tests/memory/test_ledger.py::b", "tests/memory/test_tiers.py::c"
    assert in_order([slow, far, near], {near: 0.02, far: 0.01, slow: 3.0}, "memory/tiers/keys.py") == [near, far, slow]


def test_a_statement_that_no_test_was_seen_to_reach_is_asked_of_those_that_are_about_its_file(tmp_path: Path) -> None:
    names = [
        "tests/lifecycle/test_pawl_toy.py::a",
        "tests/lifecycle/test_pawl_toy.py::b",
        "tests/lifecycle/test_far.py::c",
    ]
    reach = Reach(dict.fromkeys(names, 0.1), names, functions={"lifecycle/pawl_toy.py": places_of(TOY.encode())})
    reach.lines = {"lifecycle/pawl_toy.py": {10: [1, 2]}}
    request = sweep.Request(("lifecycle",), 1, 1, 0, 9.0, False, 1, tmp_path / "none.json")
    sweeping = sweep.Sweeping(request, reach)
    sweeping._items = dict.fromkeys(names)  # type: ignore[arg-type]

    def asked(key: str) -> list[str]:
        edit = edit_named(key)
        reaching = reach.of(edit, TOY.encode())
        return sweeping._quick_and_others(edit, reaching, unknown=not reaching)[0]

    assert asked("pages.told.clear() => pass") == names[:2]
    assert asked("self.free -= count => pass") == names[1:]
    sweeping._tell("lifecycle/pawl_toy.py", "unused", names[2])
    assert asked("self.free -= count => pass") == [names[2], names[1]], "it has noticed another edit of the file"
    sweeping._tell("lifecycle/pawl_toy.py", "Pages.take", names[1])
    assert asked("self.free -= count => pass") == names[1:], "this one has, of the function"


def test_a_function_is_as_it_was_judged_while_its_text_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    (tmp_path / "pawl_toy_of_results.py").write_text(TOY)
    digest = places_of(TOY.encode())["Pages.take"].digest
    row = sweep.Row("pawl_toy_of_results.py", 8, "Pages.take", "delete", "a => b", 1, digest, None, None, True)
    assert sweep._is_as_judged(row)
    for other in ({"digest": "another"}, {"function": "Pages.gone"}, {"file": "gone.py"}):
        assert not sweep._is_as_judged(structs.replace(row, **other))
