"""Sessions by themselves: what turns go on from, what replaces what, what is refused, and what a checkpoint keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pawl.lifecycle.machines.session import SessionPhase
from pawl.loops.sessions import Begun, Session, Sessions, Wish

NAME = "s"
OUTPUT = [8, 9]


class Desk:
    """One session; requests that end when a test says so."""

    def __init__(self, capacity: int = 0, **fields: Any) -> None:
        self.sessions = Sessions()
        self.waits: list[int] = []
        self.sessions.expire_in = lambda session: self.waits.append(session.num_uses)
        session = Session(NAME, capacity, 1.0, fields.pop("streaming", False))
        assert self.sessions.open(session) == ""
        self.known: dict[int, list[int]] = {}
        self._number = 0

    @property
    def session(self) -> Session:
        return self.sessions.by_name[NAME]

    def begin(self, rid: str, *tokens: int, **fields: Any) -> Begun:
        self._number += 1
        wish = Wish(
            self._number,
            rid,
            NAME,
            fields.get("parent"),
            fields.get("offset", 0),
            fields.get("replace", False),
            fields.get("drop", False),
            np.array(tokens, np.int32),
            fields.get("most", 2),
            fields.get("scored_from", 0),
        )
        begun = self.sessions.begin(wish, lambda request: np.array(self.known[request], np.int32))
        for request in begun.ends:
            self.sessions.ended(request, None)
        if begun.turn is not None:
            self.known[self._number] = begun.turn.tokens.tolist()
            self.sessions.went_live(begun)
        return begun

    def end(self, begun: Begun, *, finished: bool = True) -> None:
        self.sessions.ended(begun.request, np.array(OUTPUT, np.int32) if finished else None)

    def turn(self, rid: str, *tokens: int, **fields: Any) -> list[int]:
        """The prompt of a turn that finishes."""
        begun = self.begin(rid, *tokens, **fields)
        assert begun.turn is not None, begun.refusal
        prompt: list[int] = begun.turn.tokens.tolist()
        self.end(begun)
        return prompt


def test_a_turn_begins_with_prompt_and_output_of_the_one_it_goes_on_from() -> None:
    desk = Desk()
    assert desk.turn("a", 1, 2) == [1, 2]
    assert desk.turn("b", 3, parent="a") == [1, 2, *OUTPUT, 3]
    assert desk.turn("c", 4, parent="b") == [1, 2, *OUTPUT, 3, *OUTPUT, 4]


@pytest.mark.parametrize(
    ("offset", "drop", "kept"),
    [
        (1, False, [1]),
        (-1, False, [1, 2, 8]),
        (-9, False, []),
        (9, False, [1, 2, 8, 9]),
        (0, True, [1, 2]),
        (-1, True, [1]),
    ],
)
def test_an_offset_counts_tokens_that_stay_or_from_the_end_those_that_do_not(
    offset: int, drop: bool, kept: list[int]
) -> None:
    desk = Desk()
    desk.turn("a", 1, 2)
    assert desk.turn("b", 3, parent="a", offset=offset, drop=drop) == [*kept, 3]
    assert desk.turn("c", 4, parent="b") == [*kept, 3, *OUTPUT, 4]


def test_a_turn_that_does_not_finish_leaves_the_session_as_it_was() -> None:
    desk = Desk()
    desk.turn("a", 1)
    desk.turn("b", 2, parent="a")
    desk.end(desk.begin("c", 3, parent="a", replace=True), finished=False)
    assert set(desk.session.turns) == {"a", "b"}
    assert "is not there" in desk.begin("d", 4, parent="c").refusal


def test_what_is_replaced_leaves_when_the_new_turn_has_finished_with_all_that_went_on_from_it() -> None:
    desk = Desk()
    for rid, parent in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
        desk.turn(rid, 1, parent=parent)
    begun = desk.begin("e", 5, parent="a", replace=True)
    assert set(desk.session.turns) == {"a", "b", "c", "d"}
    assert "is being replaced" in desk.begin("f", 6, parent="c").refusal
    desk.end(begun)
    assert set(desk.session.turns) == {"a", "e"}
    desk.turn("g", 7, replace=True)
    assert set(desk.session.turns) == {"g"}


def test_a_turn_takes_the_place_of_a_live_one_and_of_what_that_was_to_replace() -> None:
    desk = Desk()
    desk.turn("a", 1)
    desk.turn("b", 2, parent="a")
    live = desk.begin("c", 3, parent="a", replace=True)
    desk.known[live.request] += [7]
    assert "has not ended" in desk.begin("d", 4, parent="c").refusal
    begun = desk.begin("d", 4, parent="c", replace=True)
    assert (begun.ends, begun.turn is not None and begun.turn.tokens.tolist()) == (
        (live.request,),
        [1, *OUTPUT, 3, 7, 4],
    )
    desk.end(begun)
    assert set(desk.session.turns) == {"a", "d"}
    assert desk.turn("e", 5, parent="d")[:5] == [1, *OUTPUT, 3, 7]


def test_replacing_a_branch_ends_who_is_live_on_it_and_nobody_else() -> None:
    desk = Desk()
    desk.turn("a", 1)
    desk.turn("b", 1, parent="a")
    other = desk.begin("other", 2)
    below = desk.begin("below", 3, parent="b")
    assert desk.begin("c", 4, parent="a", replace=True).ends == (below.request,)
    assert other.request in desk.session.live


def test_capacity_counts_what_turns_share_once_and_what_live_ones_may_come_to() -> None:
    desk = Desk(capacity=10)
    desk.turn("a", 1, 2)
    desk.turn("b", 3, parent="a")
    assert desk.session.size == 7
    desk.begin("c", 4, parent="b", most=2)
    assert "has room for 0 tokens, and the turn may need 2" in desk.begin("d", 4, parent="b", most=1).refusal


def test_a_streaming_session_keeps_its_last_turn_alone() -> None:
    desk = Desk(streaming=True)
    desk.turn("a", 1)
    assert desk.turn("b", 2) == [1, *OUTPUT, 2]
    assert list(desk.session.turns) == ["b"]
    live = desk.begin("c", 3)
    assert "has not ended" in desk.begin("d", 4).refusal
    assert "only goes on" in desk.begin("d", 4, replace=True).refusal
    desk.end(live)
    assert desk.turn("d", 4) == [1, *OUTPUT, 2, *OUTPUT, 3, *OUTPUT, 4]


def test_a_session_that_is_closed_waits_for_its_live_turns_and_takes_none() -> None:
    desk = Desk()
    live = desk.begin("a", 1)
    assert desk.sessions.close(NAME)
    assert desk.session.phase is SessionPhase.CLOSING
    assert "is closing" in desk.begin("b", 2).refusal
    desk.end(live)
    assert desk.sessions.by_name == {}
    assert not desk.sessions.close(NAME)


def test_a_session_expires_only_if_nobody_has_used_it_since() -> None:
    desk = Desk()
    live = desk.begin("a", 1)
    desk.sessions.expire(NAME, 1)
    desk.end(live)
    desk.sessions.expire(NAME, 1)
    assert NAME in desk.sessions.by_name
    assert desk.waits == [1, 2]
    desk.sessions.expire(NAME, 2)
    assert desk.sessions.by_name == {}


def test_names_are_used_once() -> None:
    desk = Desk()
    desk.turn("a", 1)
    assert "name another rid" in desk.begin("a", 2).refusal
    assert "is open already" in desk.sessions.open(Session(NAME, 0, 0.0, False))


def test_a_checkpoint_keeps_turns_finished_and_live_and_what_they_replace() -> None:
    desk, other = Desk(), Sessions()
    desk.turn("a", 1, 2)
    desk.turn("b", 3, parent="a", offset=-1)
    live = desk.begin("c", 4, parent="a", replace=True)
    other.restore(desk.sessions.snapshot())
    assert other.snapshot() == desk.sessions.snapshot()
    other.ended(live.request, np.array(OUTPUT, np.int32))
    desk.end(live)
    assert other.snapshot() == desk.sessions.snapshot()
    assert set(other.by_name[NAME].turns) == {"a", "c"}
