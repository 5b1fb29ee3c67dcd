"""Every wish for a turn, in sessions of every kind: what the loop makes of it is what its judge expects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pawl.lifecycle.properties.sessions import SessionAtomicity
from pawl.lifecycle.records import Delivered
from pawl.loops.sessions import Wish
from tests.loops.test_sessions import NAME, Desk

NEW = (1, 2)
HAD = 3
"""The token that the live turn has had."""


def desk(kind: str) -> Desk:
    """A session with a root, two turns that go on from it, and a live one; or a streaming one with one turn."""
    made = Desk(capacity=24, streaming=kind.startswith("streaming"))
    if kind.startswith("streaming"):
        made.end(made.begin("a", 5, 6))
        if kind == "streaming, live":
            made.begin("c", 7)
        return made
    made.end(made.begin("a", 5, 6))
    made.end(made.begin("b", 7, parent="a", offset=3))
    made.end(made.begin("d", 4, parent="a"))
    live = made.begin("c", 7, parent="b" if kind == "deep" else "a", replace=kind == "replacing")
    made.known[live.request].append(HAD)
    if kind == "closing":
        made.sessions.close(NAME)
    return made


def wishes() -> Iterator[dict[str, Any]]:
    """Whatever a client may ask for."""
    names = ("n", "b", "c"), (None, "a", "b", "c", "z")
    for rid, parent, offset, replace, drop, scored_from, most in product(
        *names, (0, 1, 3, -2, 99), (False, True), (False, True), (0, 4), (2, 9)
    ):
        yield {
            "request": 50,
            "rid": rid,
            "session": NAME,
            "parent": parent,
            "offset": offset,
            "replace": replace,
            "drop_previous_output": drop,
            "tokens": NEW,
            "max_new_tokens": most,
            "scored_from": scored_from,
        }


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("plain", "574a2600"),
        ("deep", "00fa8ad7"),
        ("replacing", "3ecb9649"),
        ("closing", "afdc623f"),
        ("streaming", "104e0bcf"),
        ("streaming, live", "ac7f7ead"),
    ],
)
def test_what_becomes_of_every_wish_is_what_its_judge_expects_and_stays_as_it_is(kind: str, kept: str) -> None:
    loop, judge, said = desk(kind), SessionAtomicity(), []
    history: Any = SimpleNamespace(output=lambda row: np.array([HAD], np.int32), open={4: 0, 2: 0})
    beginning: Any = SimpleNamespace(sessions=loop.sessions.snapshot())
    judge.begin(beginning, history)
    for fields in wishes():
        wish = Wish(**fields | {"tokens": np.array(NEW, np.int32)})
        begun = loop.sessions.begin(wish, lambda request: np.array(loop.known[request], np.int32))
        judge._ordered(Delivered("begin_turn", fields, 0, 1.0), history)
        coming, session = judge._coming, judge._sessions[NAME]
        assert coming is not None
        live, session.live = session.live, {n: turn for n, turn in session.live.items() if n not in begun.ends}
        why_not = coming.turn.why_not or judge._why_not(session, coming)
        session.live = live
        assert bool(why_not) == bool(begun.refusal), (fields, why_not, begun.refusal)
        said.append(f"{begun.refusal} / {why_not} / {begun.ends}")
        if begun.turn is not None:
            mine, theirs = begun.turn, coming.turn
            assert mine.tokens.tolist() == theirs.tokens.tolist(), fields
            assert {each.rid for each in mine.replaces} == theirs.replaces, fields
            said.append(
                f"{mine.tokens.tolist()} {mine.kept} {mine.most} {mine.parent and mine.parent.rid} {theirs.kept}"
            )
    assert hashlib.blake2b("\n".join(said).encode(), digest_size=4).hexdigest() == kept, "\n".join(said[:9])
