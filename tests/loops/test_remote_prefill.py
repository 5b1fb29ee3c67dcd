"""Prompts that are computed elsewhere: which, when, by whom, and what becomes of who waits."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from pawl.lifecycle.records import Transition
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.orders.limits import SetState
from pawl.loops.remote_prefill import RemotePrefill
from pawl.loops.select import LoopConfig, Role, make_loop
from pawl.loops.tiers import PageFetch, RemoteConfig, TierConfig
from pawl.memory.tiers.keys import page_keys, root_key
from tests.loops.driver import Driver

PROMPT = list(range(1, 15))
"""Three whole pages and two tokens."""


class Decoder(Driver):
    """The loop of a decode replica; a test is its prefill replicas."""

    def __init__(self, prefillers: int = 1, **remote: Any) -> None:
        config = RemoteConfig(**({"max_pages": 8} | remote))
        super().__init__(tiers=TierConfig(layout="ghost"), role=Role.DECODE, remote=config)
        self.remote = self.loop.companion(RemotePrefill)
        self.fetches: list[PageFetch] = []
        for number in range(prefillers):
            self.remote.prefiller_up(number, self.now)

    def turn(self) -> None:
        self.intake.turn(self.now)
        self.loop.check_all()

    def fetch(self, order: PageFetch) -> None:
        self.fetches.append(order)

    def fetched(self) -> None:
        """What is to be fetched comes."""
        for order in self.fetches:
            self.remote.tiers.fetching.filled(order.ticket, len(order.keys), self.now)
        self.fetches.clear()

    def admitted(self, request: int) -> int:
        """Where its first segment starts."""
        (move,) = [each for each in self.records if isinstance(each, Transition) and each.event is Event.ADMIT]
        assert (move.request, move.num_cached is not None) == (request, True)
        return move.num_cached or 0

    def cached(self, request: int) -> int:
        """What its client is told."""
        return self.loop.table.info(self.loop.table.row_of[request]).num_cached

    def state(self, request: int) -> State:
        return State(int(self.loop.table.state[self.loop.table.row_of[request]]))


def test_a_prompt_goes_to_a_prefill_replica_with_the_keys_of_its_whole_pages() -> None:
    decoder = Decoder()
    request = decoder.submit(PROMPT)
    decoder.turn()
    (order,) = decoder.prefills
    assert decoder.state(request) == State.QUEUED_RECEIVING
    assert order.tokens.tolist() == PROMPT[:13], "three pages, and one token that is never computed"
    assert list(order.keys) == page_keys(root_key("ghost", ""), np.array(PROMPT[:12], np.int32), 4)


def test_a_prompt_without_a_whole_page_before_its_last_token_stays_here() -> None:
    decoder = Decoder()
    request = decoder.submit(PROMPT[:4])
    decoder.turn()
    assert decoder.prefills == []
    assert decoder.state(request) == State.PREFILLING


@pytest.mark.parametrize("fields", [{"prompt_logprobs": True, "top_logprobs": 0}, {"embed": True}])
def test_a_prompt_of_which_every_position_is_wanted_stays_here(fields: dict[str, Any]) -> None:
    decoder = Decoder()
    decoder.submit(PROMPT, 0 if "embed" in fields else 4, **fields)
    decoder.turn()
    assert decoder.prefills == []


def test_a_request_with_an_adapter_stays_here() -> None:
    decoder = Decoder()
    decoder.submit(PROMPT, namespace="adapter=1.abc")
    decoder.turn()
    assert decoder.prefills == []


def test_without_a_prefill_replica_all_is_computed_here() -> None:
    decoder = Decoder(prefillers=0)
    request = decoder.submit(PROMPT)
    decoder.run()
    assert decoder.prefills == []
    assert decoder.cause(request) is Cause.LENGTH


def test_what_the_tiers_have_is_not_asked_for() -> None:
    decoder = Decoder()
    keys = page_keys(root_key("ghost", ""), np.array(PROMPT[:12], np.int32), 4)
    decoder.remote.tiers.kept(keys[:2], decoder.now)
    decoder.submit(PROMPT)
    decoder.turn()
    assert list(decoder.prefills[0].keys) == keys[2:]


def test_no_more_pages_are_on_their_way_than_there_is_room_for() -> None:
    decoder = Decoder(max_pages=6)
    requests = [decoder.submit([first, *PROMPT[1:]]) for first in (50, 51, 52)]
    decoder.turn()
    assert [decoder.state(each) for each in requests] == [State.QUEUED_RECEIVING] * 2 + [State.QUEUED_RESERVING]
    decoder.remote.received(decoder.prefills[0].ticket, 0, 0, decoder.now)
    decoder.turn()
    assert [order.tokens[0] for order in decoder.prefills] == [50, 51, 52]


@pytest.mark.parametrize("count", [0, 2, 3])
def test_pages_that_came_are_counted_and_not_those_that_were_asked_for(count: int) -> None:
    decoder = Decoder()
    decoder.submit(PROMPT)
    decoder.turn()
    decoder.remote.received(decoder.prefills[0].ticket, count, 0, decoder.now)
    counts = decoder.remote.counts
    assert (counts.received, counts.pages, counts.short) == (1, count, int(count < 3))


def test_a_prompt_larger_than_all_the_room_is_computed_here() -> None:
    decoder = Decoder(max_pages=2)
    request = decoder.submit(PROMPT)
    decoder.turn()
    assert decoder.state(request) == State.PREFILLING


def test_the_prefill_replica_with_the_fewest_pages_to_compute_is_asked() -> None:
    decoder = Decoder(prefillers=2, max_pages=30)
    for first, length in ((50, 14), (51, 6), (52, 6), (53, 6)):
        decoder.submit([first, *PROMPT[1:length]])
    decoder.turn()
    assert [order.prefiller for order in decoder.prefills] == [0, 1, 1, 1]


def test_who_waits_goes_on_when_its_prefill_replica_dies_and_the_others_wait_on() -> None:
    decoder = Decoder(prefillers=2, max_pages=30)
    requests = [decoder.submit([first, *PROMPT[1:]]) for first in (50, 51)]
    decoder.turn()
    decoder.remote.prefiller_down(0, decoder.now)
    assert [decoder.state(each) for each in requests] == [State.QUEUED, State.QUEUED_RECEIVING]
    decoder.turn()
    assert decoder.state(requests[0]) == State.PREFILLING


def test_nobody_waits_for_room_when_no_prefill_replica_is_left() -> None:
    decoder = Decoder(max_pages=3)
    requests = [decoder.submit([first, *PROMPT[1:]]) for first in (50, 51)]
    decoder.turn()
    decoder.remote.prefiller_down(0, decoder.now)
    assert [decoder.state(each) for each in requests] == [State.QUEUED, State.QUEUED]


@pytest.mark.parametrize("end", ["received", "overdue"])
def test_what_has_come_is_fetched_even_by_who_looked_for_it_in_vain_before(end: str) -> None:
    decoder = Decoder(prefillers=0)
    decoder.intake.deliver(SetState(max_running=1), decoder.now)
    decoder.submit([50], 40)  # so that the next one waits
    decoder.turn()
    decoder.remote.tiers.kept([bytes(16)], decoder.now)
    request = decoder.submit(PROMPT)
    wishes, row = decoder.remote.tiers.fetching._wishes, decoder.loop.table.row_of[request]
    while row not in wishes:
        decoder.step()
    assert wishes[row].settled
    decoder.remote.prefiller_up(0, decoder.now)
    while decoder.state(request) == State.QUEUED:
        decoder.step()
    (order,) = decoder.prefills
    decoder.remote.tiers.kept(order.keys[:2], decoder.now)
    if end == "received":
        decoder.remote.received(order.ticket, 2, 0, decoder.now)
    else:
        decoder.remote.overdue(order.ticket, decoder.now)
    while request in decoder.loop.table.row_of and not decoder.fetches:
        decoder.step()
    assert decoder.fetches[0].keys == order.keys[:2]


@pytest.mark.parametrize(
    ("here", "there", "came", "cached"),
    [(0, 0, 3, 0), (1, 0, 2, 4), (0, 8, 3, 8), (1, 8, 2, 8), (2, 4, 1, 8), (0, 12, 3, 12), (0, 12, 1, 4), (0, 0, 0, 0)],
)
def test_what_was_computed_elsewhere_for_the_request_is_not_called_cached(
    here: int, there: int, came: int, cached: int
) -> None:
    """Pages that the tiers have here, tokens that the prefill replica's cache had, and pages that it has sent."""
    decoder = Decoder()
    keys = page_keys(root_key("ghost", ""), np.array(PROMPT[:12], np.int32), 4)
    decoder.remote.tiers.kept(keys[:here], decoder.now)
    request = decoder.submit(PROMPT)
    decoder.turn()
    (order,) = decoder.prefills
    decoder.remote.tiers.kept(order.keys[:came], decoder.now)
    decoder.remote.received(order.ticket, came, there, decoder.now)
    decoder.turn()
    decoder.fetched()
    decoder.turn()
    assert decoder.admitted(request) == 4 * (here + came), "it begins behind all that is there"
    assert decoder.cached(request) == decoder.loop.counters.cached_tokens == cached


def test_what_a_prefill_replica_has_not_said_in_time_is_not_called_cached() -> None:
    decoder = Decoder()
    request = decoder.submit(PROMPT)
    decoder.turn()
    (order,) = decoder.prefills
    decoder.remote.tiers.kept(order.keys, decoder.now)
    decoder.remote.overdue(order.ticket, decoder.now)
    decoder.turn()
    decoder.fetched()
    decoder.turn()
    assert (decoder.admitted(request), decoder.cached(request)) == (12, 0)


def test_a_late_answer_says_nothing() -> None:
    decoder = Decoder()
    request = decoder.submit(PROMPT)
    decoder.turn()
    (order,) = decoder.prefills
    decoder.remote.overdue(order.ticket, decoder.now)
    decoder.remote.received(order.ticket, 3, 0, decoder.now)
    assert decoder.state(request) == State.QUEUED
    assert (decoder.remote.counts.overdue, decoder.remote.counts.received) == (1, 0)


def test_a_snapshot_goes_on_as_the_original() -> None:
    decoder = Decoder(max_pages=3)
    for first in (50, 51):
        decoder.submit([first, *PROMPT[1:]])
    decoder.turn()
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(decoder.remote.snapshot()))
    other = Decoder(prefillers=0, max_pages=3).remote
    other.restore(plain)
    assert other.snapshot() == decoder.remote.snapshot()


WRONG = [
    {"role": Role.DECODE},
    {"role": Role.PREFILL},
    {"remote": RemoteConfig(max_pages=1)},
    {"role": Role.DECODE, "remote": RemoteConfig(max_pages=1)},
]


@pytest.mark.parametrize("settings", WRONG)
def test_a_role_without_what_it_needs_is_refused(settings: dict[str, Any]) -> None:
    driver: Any = Driver()
    with pytest.raises(ValueError, match="replica"):
        make_loop(LoopConfig(num_pages=8, page_size=4, max_context=32, **settings), driver, driver.loop.journal)
