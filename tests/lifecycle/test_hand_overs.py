"""What one replica received is what another one has computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pawl.lifecycle.hand_overs import Side, matched, side_of
from pawl.lifecycle.records import Closed, Counts, Record, Started, Submitted, TierTold, Transition
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause, Event, State

PROMPT = list(range(10))
PAGE_SIZE = 4
ZERO = dict.fromkeys(("received", "finished", "aborted", "live", "prompt_tokens", "output_tokens", "retractions"), 0)
CLOSED = Closed("stopped", Counts(**ZERO))


def started(role: str) -> Started:
    config: dict[str, Any] = {"loop": {"role": role}}
    return Started(
        version="t", model="m", config=config, num_pages=8, page_size=PAGE_SIZE, num_slots=2, seed=0, time=0.0, wall=0.0
    )


def submitted(request: int, rid: str, tokens: list[int]) -> Submitted:
    return Submitted(
        request=request,
        row=0,
        rid=rid,
        tokens=np.array(tokens, np.int32),
        sampling=SamplingParameters(),
        priority=0,
        namespace="",
        deadline=None,
        time=0.0,
    )


def received(request: int) -> Transition:
    return Transition(request, 0, State.QUEUED_RECEIVING, Event.RECEIVE, State.QUEUED, Cause.NONE, 0, 0.0)


def decode(pages: int = 2, ticket: int = 3) -> list[Record]:
    told = TierTold("received", ticket, pages, b"", 0.0)
    return [started("decode"), submitted(7, "client", PROMPT), told, received(7)]


def prefill(tokens: list[int], ticket: int = 3) -> list[Record]:
    return [started("prefill"), submitted(1, f"scheduler.0/{ticket}", tokens), CLOSED]


def side(records: list[Record]) -> Side:
    found = side_of(records)
    assert found is not None
    return found


def test_a_hand_over_is_found_on_both_sides() -> None:
    found = matched([side(decode()), side(prefill(PROMPT[:9]))])
    assert (found.hand_overs, found.pages, found.faults) == (1, 2, ())


@pytest.mark.parametrize(
    ("came", "asked", "words"),
    [
        (decode(), prefill([9, *PROMPT[:8]]), "no prefill replica was asked for its prompt"),
        (decode(), prefill(PROMPT[:9], ticket=4), "no prefill replica was asked for its prompt"),
        (decode(pages=3), prefill(PROMPT[:9]), "has fewer"),
    ],
)
def test_pages_that_nobody_was_asked_for_are_named(came: list[Record], asked: list[Record], words: str) -> None:
    (fault,) = matched([side(came), side(asked)]).faults
    assert fault.startswith("request 7 received")
    assert words in fault


def test_a_prefill_that_brought_nothing_needs_nobody() -> None:
    assert matched([side(decode(pages=0)), side([started("prefill"), CLOSED])]).faults == ()


def test_a_replica_that_does_both_hands_nothing_over() -> None:
    assert side_of([started("unified")]) is None
    assert side_of([]) is None


def test_of_a_prefill_replica_that_was_killed_nothing_can_be_missed() -> None:
    assert matched([side(decode()), side([started("prefill")])]).faults == ()
    assert matched([side(decode()), side(prefill(PROMPT[:9])[:-1])]).faults == ()


def test_of_a_prefill_replica_whose_beginning_is_gone_nothing_can_be_missed() -> None:
    asked = side(prefill(PROMPT[:9]))._replace(whole=False, asked=[])
    assert matched([side(decode()), asked]).faults == ()
