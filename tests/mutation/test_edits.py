"""Which edits are made of a source, how they read, and which are known to change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation.edits import ROOMS, Edit, edits_of, enums_of
from tests.mutation.equivalents import EQUIVALENTS, read
from tests.mutation.sweep import edits_in, every_edit, name_of

ENUMS = {"State": ("NEW", "QUEUED", "DONE")}


def made(body: str, head: str = "def f(a, b, c):") -> dict[str, set[str]]:
    """Kind of edit -> the edited lines, for a function with this body."""
    source = head + "".join(f"\n    {line}" for line in body.splitlines()) + "\n"
    found: dict[str, set[str]] = {}
    for edit in edits_of("toy.py", source.encode(), ENUMS):
        compile(edit.applied(source.encode()), "toy.py", "exec")
        found.setdefault(edit.kind, set()).add(edit.after)
    return found


@pytest.mark.parametrize(
    ("kind", "body", "after"),
    [
        ("delete", "a.pages.release(b)", {"pass"}),
        ("delete", "if a:\n    raise b", {"pass"}),
        ("negate", "if not a.idle:\n    a.run()", {"if a.idle:"}),
        ("negate", "while a is None:\n    a.run()", {"while a is not None:"}),
        ("negate", "return [x for x in a if x in b]", {"return [x for x in a if x not in b]"}),
        ("boundary", "if a < b:\n    c.run()", {"if a <= b:"}),
        ("logic", "return a.x or b", {"return a.x and b", "return a.x", "return b"}),
        ("operator", "a.free -= len(b)", {"a.free += len(b)"}),
        ("operator", "return a - b", {"return a + b"}),
        ("constant", "return a[-1]", {"return a[-2]"}),
        ("constant", "a.draining = True", {"a.draining = False"}),
        ("off by one", "return a[b:c]", {"return a[b + 1:c]", "return a[b:c + 1]"}),
        ("swap arguments", "a.move(b, c.row)", {"a.move(c.row, b)"}),
        ("call", "return min(a, b)", {"return max(a, b)"}),
        ("enum member", "a.move(State.QUEUED)", {"a.move(State.DONE)"}),
        ("enum member", "a.move(State.DONE)", {"a.move(State.NEW)"}),
        ("wrong order", "a.record(b)\nb.free()", {"b.free() a.record(b)"}),
        ("return early", "for x in a:\n    x.run()", {"x.run() break"}),
    ],
)
def test_each_kind_of_edit_is_made(kind: str, body: str, after: set[str]) -> None:
    assert made(body)[kind] == after


def test_what_a_signature_promises_says_which_wrong_value_is_returned() -> None:
    assert made("return a.b", "def f(a) -> bool:")["negate"] == {"return not (a.b)"}
    assert made("return a.b", "def f(a) -> int:")["off by one"] == {"return (a.b) + 1"}
    assert made("return a.b", "def f(a) -> int | None:")["return early"] == {"return None"}
    assert made("a.x()\na.y()\na.z()", "def f(a) -> None:")["return early"] == {"return a.y()"}


@pytest.mark.parametrize(
    "body",
    [
        '"""What it does."""',
        "assert a is not None",
        "return zip(a, b, strict=True)",
        'log.info("it turns", step=1 + 2)',
        'if a > 1:\n    log.info("it turns")',
        "raise NotImplementedError",
        "if a != b:\n    raise AssertionError(a)",
        "x = a.b()",
        "x: int = a.b",
    ],
)
def test_what_decides_nothing_and_what_fails_at_once_is_left_alone(body: str) -> None:
    assert made(body) == {}


def test_an_error_message_is_left_alone_but_not_the_error() -> None:
    assert made("if a:\n    raise ValueError(f'{b + 1} of {c}', 1, 2)") == {
        "delete": {"pass"},
        "negate": {"if not (a):"},
    }


def test_statements_are_swapped_only_where_each_can_stand_first() -> None:
    assert "wrong order" not in made("x = a.take(b)\na.give(x)")
    assert "wrong order" not in made("a.x = b\na.y = c")
    assert "wrong order" not in made("a.x['b'] += 1\na.x['c'] += len(b)")
    assert "wrong order" in made("a.x['b'] += 1\na.y['c'] += len(a.x)")
    assert "wrong order" in made("a.x[b] += 1\na.y['c'] += a.x['b']")
    assert "wrong order" in made("a.x = b\na.y['c'] += a.x['b']")
    assert "wrong order" in made("a.take(b)\na.y = c")
    assert "wrong order" not in made("a.free -= len(b)\na.digest += total(a.keys[b])")
    assert "wrong order" in made("a.free -= len(b)\na.digest += total(a.stack[a.free :])")
    assert "wrong order" in made("a.stack[b] = c\na.digest += total(a.stack)")
    assert "wrong order" not in made("a.take(b)\nx = {'b': b, 'c': (c, 1)}")
    assert "wrong order" in made("a.take(b)\nx = [*b]")
    assert "wrong order" in made("a.take(b)\nx = a.y")
    assert "wrong order" not in made("a.append(b)\nc -= len(b)")
    assert "wrong order" in made("a.append(b)\nc -= len(a)")
    assert "wrong order" in made("a.append(b.x)\nb.x -= len(c)")


def test_two_containers_may_be_filled_and_emptied_in_any_order() -> None:
    assert "wrong order" not in made("self.a.pop(b, None)\nself.c.remove(b)")
    assert "wrong order" not in made("self.a.clear()\nc.update(b.d)")
    assert "wrong order" in made("self.a.append(b)\nself.a.remove(c)")
    assert "wrong order" in made("self.a.append(b)\nself.c.extend(self.a)")
    assert "wrong order" in made("a.append(b)\nc.append(a)")
    assert "wrong order" in made("self.a.append(b)\nself.c.append(self)")
    assert "wrong order" in made("self.a.append(b)\nself.c.append(d(b))")
    assert "wrong order" in made("self.a.append(b)\nself.take(b)")
    assert "wrong order" in made("self.a.append(b)\nself.remove(b)")


def test_parts_of_a_new_object_may_come_in_any_order_that_neither_needs() -> None:
    def orders(body: str) -> list[str]:
        lines = "".join(f"        {line}\n" for line in body.splitlines())
        edits = edits_of("a.py", f"class A:\n    def __init__(self, b):\n{lines}".encode(), {})
        return [edit.key for edit in edits if edit.kind == "wrong order"]

    assert orders("self.x = B(b)\nself.y = C(b.z)") == []
    assert orders("self.x = B(b)\nself.y = C(self.x)") != []
    assert orders("self.x = B(self)\nself.y = C(b)") != []
    assert orders("self.x = self.made(b)\nself.y = C(b)") != []


def test_functions_are_named_by_their_classes_and_equal_edits_by_their_number() -> None:
    source = b"class A:\n    def f(self):\n        self.x()\n        self.y()\n        self.x()\n"
    deleted = [edit for edit in edits_of("a.py", source, {}) if edit.kind == "delete"]
    assert {edit.function for edit in deleted} == {"A.f"}
    assert [edit.key for edit in deleted] == ["self.x() => pass", "self.y() => pass", "self.x() => pass (2)"]
    assert [edit.place for edit in deleted] == ["a.py:3", "a.py:4", "a.py:5"]


def test_an_edit_keeps_its_name_and_its_rank_when_lines_come_above_it() -> None:
    source = b"def f(a):\n    a.x()\n"
    (before,) = edits_of("a.py", source, {})
    (after,) = edits_of("a.py", b"# A line more.\n" + source, {})
    assert (name_of(before), before.rank(7)) == (name_of(after), after.rank(7))
    assert before.rank(7) != before.rank(8)


def test_enums_are_found_with_their_members_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "class Cause(StrEnum):\n    NONE = 'none'\n    EOS = 'eos'\n\nclass Other:\n    X = 1\n"
    )
    assert enums_of([tmp_path]) == {"Cause": ("NONE", "EOS")}


def test_reasons_are_read_by_function_and_edit() -> None:
    text = '["a.py A.f"]\n"self.x() => pass" = "it does nothing."\n'
    assert read(text) == {"a.py A.f: self.x() => pass": "it does nothing."}


@pytest.fixture(scope="module")
def everything() -> dict[str, Edit]:
    """All edits, the equivalent ones as well, by name."""
    return {name_of(edit): edit for room in ROOMS for edit in every_edit(room)}


def test_every_edit_that_is_called_equivalent_still_exists_and_has_a_reason(everything: dict[str, Edit]) -> None:
    assert sorted(EQUIVALENTS.keys() - everything.keys()) == []
    assert all(len(reason) > 10 for reason in EQUIVALENTS.values())


def test_every_room_has_edits_and_the_equivalent_ones_are_struck_out(everything: dict[str, Edit]) -> None:
    for room in ROOMS:
        names = {name_of(edit) for edit in edits_in(room)}
        assert len(names) > 1000
        assert not names & EQUIVALENTS.keys()
