"""What one replica received is what another one has computed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pawl.lifecycle.hand_overs import Side, matched, side_of
from pawl.lifecycle.records import (
    Closed,
    Counts,
    Gap,
    PageCounts,
    Record,
    StepCommitted,
    Submitted,
    TierTold,
    Transition,
)
from pawl.lifecycle.states import Cause, Event, State
from tests.lifecycle.story import Segment, planned, started, submitted

PROMPT = list(range(10))
ZERO = dict.fromkeys(("received", "finished", "aborted", "live", "prompt_tokens", "output_tokens", "retractions"), 0)
CLOSED = Closed("stopped", Counts(**ZERO))


def received(request: int) -> Transition:
    return Transition(request, 0, State.QUEUED_RECEIVING, Event.RECEIVE, State.QUEUED, Cause.NONE, 0, 0.0)


def decode(pages: int = 2, ticket: int = 3, num_cached: int = 0) -> list[Record]:
    told = TierTold("received", ticket, pages, b"", 0.0, num_cached)
    return [started("decode"), submitted(7, "client", PROMPT), told, received(7)]


def prefill(tokens: list[int], ticket: int = 3) -> list[Record]:
    return [started("prefill"), submitted(1, f"scheduler.0/{ticket}", tokens), CLOSED]


def admitted(num_cached: int) -> Transition:
    return Transition(1, 0, State.QUEUED, Event.ADMIT, State.PREFILLING, Cause.NONE, 0, 0.0, num_cached)


RETRACTED = Transition(1, 0, State.PREFILLING, Event.RETRACT, State.QUEUED, Cause.MEMORY, 0, 0.0)


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
        (decode(), prefill([9, *PROMPT[:8]]), "no prefill replica was asked for its tokens"),
        (decode(), prefill(PROMPT[:9], ticket=4), "no prefill replica was asked for its tokens"),
        (decode(pages=3), prefill(PROMPT[:9]), "has fewer"),
    ],
)
def test_pages_that_nobody_was_asked_for_are_named(came: list[Record], asked: list[Record], words: str) -> None:
    (fault,) = matched([side(came), side(asked)]).faults
    assert fault.startswith("request 7 received")
    assert words in fault


@pytest.mark.parametrize(
    "moves",
    [[admitted(4)], [admitted(0), admitted(4)], [admitted(4), RETRACTED, admitted(8)]],
    ids=["admitted", "admitted anew, as the step was lost", "retracted, whose own pages are in the cache"],
)
def test_what_was_told_of_the_other_cache_is_what_it_had_at_the_first_admission(moves: list[Record]) -> None:
    *begun, closed = prefill(PROMPT[:9])
    had = side([*begun, *moves, closed])
    assert matched([side(decode(num_cached=4)), had]).faults == ()
    (fault,) = matched([side(decode(num_cached=8)), had]).faults
    assert fault.endswith("was told that 8 of its tokens were cached there, where 4 were")


def retracted_with_output(*tokens: int) -> list[Record]:
    """A request draws a token in each step and is retracted; then pages come for it."""
    begun: list[Record] = [started("decode"), submitted(7, "client", PROMPT)]
    begun.append(Transition(7, 0, State.QUEUED, Event.ADMIT, State.PREFILLING, Cause.NONE, 0, 0.0, 0))
    for step, token in enumerate(tokens, start=1):
        length = len(PROMPT) if step == 1 else 1
        event = Event.FIRST_TOKEN if step == 1 else Event.TOKEN
        begun.append(planned(step, 0.0, Segment(0, len(PROMPT) - 2 + step if step > 1 else 0, length)))
        drawn = np.array([token], np.int32)
        begun.append(StepCommitted(step, 0.0, np.array([event], np.uint8), drawn, PageCounts(5, 3, 0, 0, 0)))
    begun.append(Transition(7, 0, State.DECODING, Event.RETRACT, State.QUEUED, Cause.MEMORY, len(tokens), 0.0))
    return [*begun, TierTold("received", 3, 3, b"", 0.0, 0), received(7)]


GOES_ON: list[Record] = [
    started("decode"),
    submitted(7, "client", PROMPT, output=[5, 6, 7]),
    TierTold("received", 3, 3, b"", 0.0, 0),
    received(7),
]


@pytest.mark.parametrize(
    "came", [GOES_ON, retracted_with_output(5, 6, 7)], ids=["its replica was lost", "it was retracted"]
)
def test_the_prefill_of_a_request_with_output_is_that_of_its_prompt_and_output(came: list[Record]) -> None:
    assert matched([side(came), side(prefill([*PROMPT, 5, 6, 7]))]).faults == ()
    (fault,) = matched([side(came), side(prefill([*PROMPT, 5, 9, 7]))]).faults
    assert "no prefill replica was asked for its tokens" in fault


@pytest.mark.parametrize("gap", [Gap(0, 1), submitted(1, "client", PROMPT)], ids=["lost", "nonsense"])
def test_what_came_after_records_that_say_nothing_is_not_compared(gap: Record) -> None:
    if isinstance(gap, Submitted):
        gap = msgspec.structs.replace(gap, tokens=b"abc")
    assert side([started("decode"), gap, *decode()[1:]]).came == []
    assert not side([started("prefill"), gap, CLOSED]).whole


@pytest.mark.parametrize("pages", [0, 2])
def test_a_prompt_that_was_computed_under_another_salt_is_named(pages: int) -> None:
    begun, asked, closed = prefill(PROMPT[:9])
    salted = msgspec.structs.replace(asked, namespace="salt=a&weights=w")
    (fault,) = matched([side(decode(pages)), side([begun, salted, closed])]).faults
    assert fault.endswith("was asked for its tokens under another salt")
    came = [msgspec.structs.replace(r, namespace="salt=a") if isinstance(r, Submitted) else r for r in decode(pages)]
    assert matched([side(came), side([begun, salted, closed])]).faults == ()
    # Where no page came, that may have been for a request of another decode replica under the same ticket.
    beside = matched([side(decode(pages)), side(came), side([begun, salted, closed])]).faults
    assert bool(beside) == (pages > 0)


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
