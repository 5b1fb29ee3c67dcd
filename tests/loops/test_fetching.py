"""Fetches of waiting requests: who fetches, what it takes, and that everything it took comes back whatever happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pawl.gpu.ghost.oracle import expected, expected_pages
from pawl.lifecycle.records import Transition
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.fetching import MAX_FETCHES, PAUSE_LEASES
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.saving import Saving, WritePolicy
from pawl.loops.tiers import PageFetch, TierConfig
from pawl.memory.arrays import Int32s
from pawl.memory.prefix.events import Cleared, Removed, Stored
from pawl.memory.tiers.index import TierIndex
from pawl.memory.tiers.keys import DeviceKeys, page_keys, root_key
from tests.loops.driver import Driver

PAGE = 4
PROMPT = list(range(100, 141))
"""Ten whole pages and the one token that is always computed."""


class TierDriver(Driver):
    """A loop whose lower tiers are the test: it sees what is asked of them and answers by hand."""

    def __init__(self, **overrides: object) -> None:
        super().__init__(**{"tiers": TierConfig(layout="ghost", max_fetch_pages=64)} | overrides)
        self.tiers = self.loop.companion(LowerTiers)
        self.fetches: list[PageFetch] = []
        self.fences: list[int] = []
        self.eras: list[int] = []
        self.saved: list[tuple[int, list[int], tuple[bytes, ...]]] = []

    # ---- effects ----

    def save(self, number: int, pages: Int32s, keys: tuple[bytes, ...]) -> None:
        self.saved.append((number, pages.tolist(), keys))

    def fetch(self, order: PageFetch) -> None:
        self.fetches.append(order)

    def fence(self, ticket: int) -> None:
        self.fences.append(ticket)

    def empty_host(self, era: int) -> None:
        self.eras.append(era)

    # ---- the test's side ----

    def know(self, prompt: list[int], namespace: str = "") -> None:
        """The tiers have every whole page of `prompt`."""
        keys = page_keys(root_key("ghost", namespace), np.array(prompt, np.int32), PAGE)
        self.tiers.kept(keys, self.now)

    def bring(self, order: PageFetch, prompt: list[int], count: int | None = None) -> None:
        """Write the first `count` pages of a fetch of the beginning of `prompt`, and answer."""
        count = len(order.pages) if count is None else count
        self.ghost.write_pages(order.pages[:count], expected_pages(prompt, PAGE)[:count])
        self.tiers.fetching.filled(order.ticket, count, self.now)

    def state(self, request: int) -> State:
        return State(int(self.loop.table.state[self.loop.table.row_of[request]]))

    def moves(self, request: int) -> list[tuple[Event, Cause]]:
        return [
            (record.event, record.cause)
            for record in self.records
            if isinstance(record, Transition) and record.request == request
        ]

    @property
    def quarantined(self) -> int:
        return self.loop.memory.pages.quarantined


def fetching(**overrides: object) -> tuple[TierDriver, int, PageFetch]:
    """A driver with one request that waits for its fetch."""
    driver = TierDriver(**overrides)
    driver.know(PROMPT)
    request = driver.submit(PROMPT, 4)
    assert not driver.step()
    (order,) = driver.fetches
    assert driver.state(request) == State.QUEUED_FETCHING
    assert driver.quarantined == 10
    return driver, request, order


# ---- the good way ----


def test_a_prefix_that_a_tier_has_is_fetched_and_not_computed() -> None:
    driver, request, order = fetching()
    driver.bring(order, PROMPT)
    driver.run()
    assert driver.output_of[request] == expected(PROMPT, 4)
    assert driver.ending_of[request].info.num_cached == 40
    assert driver.moves(request)[1:4] == [
        (Event.FETCH, Cause.NONE),
        (Event.FETCHED, Cause.NONE),
        (Event.ADMIT, Cause.NONE),
    ]
    assert driver.quarantined == 0


def test_only_what_the_device_lacks_is_fetched() -> None:
    driver = TierDriver()
    first = driver.submit(PROMPT[:20], 1)
    driver.run()
    driver.know(PROMPT)
    request = driver.submit(PROMPT, 4)
    driver.step()
    (order,) = driver.fetches
    assert len(order.keys) == 5
    driver.ghost.write_pages(order.pages, expected_pages(PROMPT, PAGE)[5:])
    driver.tiers.fetching.filled(order.ticket, 5, driver.now)
    driver.run()
    assert driver.output_of[request] == expected(PROMPT, 4)
    assert driver.ending_of[request].info.num_cached == 40
    assert driver.cause(first) == Cause.LENGTH


@pytest.mark.parametrize("count", [11, -1])
def test_more_pages_than_were_asked_for_cannot_have_come(count: int) -> None:
    driver, _, order = fetching()
    with pytest.raises(ValueError, match="pages came of a fetch of 10"):
        driver.tiers.fetching.filled(order.ticket, count, driver.now)


def test_a_fetch_that_comes_short_brings_what_there_was_and_is_not_tried_again() -> None:
    driver, request, order = fetching()
    driver.bring(order, PROMPT, 3)
    driver.run()
    assert driver.output_of[request] == expected(PROMPT, 4)
    assert driver.ending_of[request].info.num_cached == 12
    assert driver.fetches == [order]


def test_a_page_that_is_gone_after_all_costs_a_miss() -> None:
    driver, request, order = fetching()
    driver.tiers.dropped(order.keys, driver.now)
    driver.bring(order, PROMPT, 0)
    assert driver.quarantined == 0
    driver.run()
    assert driver.output_of[request] == expected(PROMPT, 4)
    assert driver.ending_of[request].info.num_cached == 0


def test_requests_that_wait_for_the_same_page_share_one_fetch() -> None:
    driver, request, order = fetching()
    longer = [*PROMPT, 7, 8, 9]
    other = driver.submit(longer, 4)
    driver.step()
    assert driver.fetches == [order]
    assert driver.state(other) == State.QUEUED_FETCHING
    driver.bring(order, PROMPT)
    driver.run()
    assert driver.output_of[request] == expected(PROMPT, 4)
    assert driver.output_of[other] == expected(longer, 4)
    assert driver.ending_of[other].info.num_cached == 40


def test_others_go_on_meanwhile_and_the_fetching_request_keeps_its_place() -> None:
    driver, request, order = fetching(max_running=1, pacing="lockstep")
    overtaking = driver.submit([1, 2, 3], 6)
    driver.step()
    assert driver.state(overtaking) == State.DECODING
    behind = driver.submit([4, 5, 6], 2)
    driver.bring(order, PROMPT)
    driver.run()
    assert list(driver.ending_of) == [overtaking, request, behind]


def test_a_long_prefix_comes_in_parts() -> None:
    driver = TierDriver(tiers=TierConfig(layout="ghost", max_fetch_pages=4))
    driver.know(PROMPT)
    request = driver.submit(PROMPT, 4)
    for part in range(3):
        assert not driver.step()
        order = driver.fetches[part]
        driver.ghost.write_pages(order.pages, expected_pages(PROMPT, PAGE)[4 * part : 4 * part + len(order.pages)])
        driver.tiers.fetching.filled(order.ticket, len(order.pages), driver.now)
    driver.run()
    assert [len(order.pages) for order in driver.fetches] == [4, 4, 2]
    assert driver.ending_of[request].info.num_cached == 40
    assert driver.output_of[request] == expected(PROMPT, 4)


def test_pages_that_leave_again_and_again_are_not_fetched_for_ever() -> None:
    driver = TierDriver()
    driver.know(PROMPT)
    request = driver.submit(PROMPT, 4)
    memory = driver.loop.memory
    for _ in range(MAX_FETCHES):
        assert not driver.step()
        driver.bring(driver.fetches[-1], PROMPT)
        eviction = memory.cache.evict(memory.cache.evictable)
        memory.pages.evict(eviction.pages, eviction.fence)
    assert len(driver.fetches) == MAX_FETCHES
    driver.run()
    assert len(driver.fetches) == MAX_FETCHES
    assert driver.output_of[request] == expected(PROMPT, 4)


# ---- who does not fetch ----


def test_nothing_is_fetched_of_another_namespace_or_of_a_prompt_that_is_scored() -> None:
    driver = TierDriver()
    driver.know(PROMPT, namespace="a")
    driver.submit(PROMPT, 2, namespace="b")
    scored = SamplingParameters(temperature=0.0, max_new_tokens=2, prompt_logprobs=True)
    driver.loop.requests.submit(
        RequestInfo(9, "r9", scored, "a", 0.0), np.array(PROMPT, np.int32), 0, float("inf"), 0.0
    )
    driver.run()
    assert driver.fetches == []


def test_a_fetch_takes_only_pages_that_are_promised_to_nobody() -> None:
    driver = TierDriver(num_pages=16, max_context=64, pacing="lockstep")
    running = driver.submit([1, 2, 3], 40)
    driver.step()
    memory = driver.loop.memory
    assert memory.unpromised < 10
    driver.know(PROMPT)
    waiting = driver.submit(PROMPT, 4)
    while running not in driver.ending_of:
        driver.step()
        assert driver.fetches == []
    driver.step()
    (order,) = driver.fetches
    driver.bring(order, PROMPT)
    driver.run()
    assert driver.output_of[running] == expected([1, 2, 3], 40)
    assert driver.output_of[waiting] == expected(PROMPT, 4)


def test_the_running_go_on_to_their_ends_while_fetches_hold_pages() -> None:
    driver, request, _ = fetching(num_pages=24, max_context=64, lookahead=4)
    others = [driver.submit([number], 30) for number in range(3)]
    for _ in range(400):
        if not driver.step():
            break
    assert all(driver.output_of[other] == expected([number], 30) for number, other in enumerate(others))
    assert driver.state(request) == State.QUEUED_FETCHING


# ---- the bad ways ----


def end_lease(driver: TierDriver, request: int, order: PageFetch) -> None:
    driver.tiers.fetching.expired(order.ticket, driver.now)


def abort(driver: TierDriver, request: int, order: PageFetch) -> None:
    driver.loop.requests.abort(request, Cause.CLIENT, driver.now)


def time_out(driver: TierDriver, request: int, order: PageFetch) -> None:
    driver.loop.table.deadline[driver.loop.table.row_of[request]] = driver.now
    driver.loop.requests.expire(driver.now)


def drain(driver: TierDriver, request: int, order: PageFetch) -> None:
    driver.loop.requests.drain(Cause.DRAINED, driver.now)


def lose_the_worker(driver: TierDriver, request: int, order: PageFetch) -> None:
    other = driver.submit([1], 1)
    driver.ghost.fail_at = {driver.loop.counters.steps + 1}
    driver.step()
    driver.loop.requests.abort(other, Cause.CLIENT, driver.now)


WAYS_OUT = [end_lease, abort, time_out, drain, lose_the_worker]


@pytest.mark.parametrize("way_out", WAYS_OUT, ids=lambda way: way.__name__)
@pytest.mark.parametrize("answers", ["fenced", "filled", "filled, fenced", "fenced, filled"])
def test_pages_of_an_abandoned_fetch_stay_in_quarantine_until_its_writer_has_answered(
    way_out: Any, answers: str
) -> None:
    driver, request, order = fetching()
    way_out(driver, request, order)
    assert driver.fences == [order.ticket]
    assert driver.quarantined == 10
    driver.loop.check_all()
    for answer in answers.split(", "):
        if answer == "fenced":
            driver.tiers.fetching.fenced(order.ticket, driver.now)
        else:
            driver.tiers.fetching.filled(order.ticket, 10, driver.now)
        assert driver.quarantined == 0
    driver.run()
    assert driver.loop.memory.pages.free + driver.loop.memory.pages.cached == 64
    if driver.cause(request) == Cause.LENGTH:
        assert driver.output_of[request] == expected(PROMPT, 4)
        assert driver.ending_of[request].info.num_cached == 0


def test_the_end_of_a_lease_and_the_loss_of_the_worker_are_told_as_they_are() -> None:
    for way_out, cause in ((end_lease, Cause.TIMEOUT), (lose_the_worker, Cause.WORKER_LOST)):
        driver, request, order = fetching()
        way_out(driver, request, order)
        assert (Event.RESTORE, cause) in driver.moves(request)


def test_a_fetch_goes_on_for_those_who_still_wait_for_it() -> None:
    driver, request, order = fetching()
    other = driver.submit([*PROMPT, 7], 4)
    driver.step()
    driver.loop.requests.abort(request, Cause.CLIENT, driver.now)
    assert driver.fences == []
    driver.bring(order, PROMPT)
    driver.run()
    assert driver.ending_of[other].info.num_cached == 40
    assert driver.cause(request) == Cause.CLIENT


def test_after_a_lease_has_ended_nothing_is_fetched_until_the_tiers_answer_or_had_time() -> None:
    for recovers in ("answer", "time"):
        driver, _, order = fetching()
        driver.tiers.fetching.expired(order.ticket, driver.now)
        driver.tiers.fetching.fenced(order.ticket, driver.now)
        driver.run()
        other = [200 + number for number in range(41)]
        driver.know(other)
        driver.submit(other, 1)
        driver.run()
        assert driver.fetches == [order]
        if recovers == "answer":
            driver.tiers.fetching.filled(order.ticket, 0, driver.now)
        else:
            driver.now += PAUSE_LEASES * driver.tiers.config.lease_s
        again = [300 + number for number in range(41)]
        driver.know(again)
        driver.submit(again, 1)
        driver.step()
        assert len(driver.fetches) == 2


def test_answers_that_nobody_waits_for_change_nothing() -> None:
    driver, request, order = fetching()
    driver.bring(order, PROMPT)
    driver.run()
    before = driver.loop.memory.digest()
    for ticket in (order.ticket, 99):
        driver.tiers.fetching.filled(ticket, 10, driver.now)
        driver.tiers.fetching.fenced(ticket, driver.now)
        driver.tiers.fetching.expired(ticket, driver.now)
    assert driver.loop.memory.digest() == before
    driver.loop.check_all()
    assert driver.cause(request) == Cause.LENGTH


def test_a_flush_waits_for_fetches_and_makes_what_was_before_it_unknown() -> None:
    driver, _, order = fetching()
    assert not driver.loop.flush(driver.now)
    driver.bring(order, PROMPT)
    driver.run()
    number, _, keys = driver.saved[-1]
    assert driver.loop.flush(driver.now)
    assert driver.eras == [1]
    driver.tiers.saved(number, keys, driver.now)
    driver.tiers.found(0, order.keys, driver.now)
    assert len(driver.tiers.index) == 0
    driver.tiers.found(1, order.keys, driver.now)
    assert len(driver.tiers.index) == 10


# ---- what goes down ----


class SavingBench:
    def __init__(self, policy: WritePolicy, limit: int = 100, at_once: int = 100) -> None:
        self.sent: list[tuple[int, list[int], tuple[bytes, ...]]] = []
        self.index = TierIndex()
        self.saving = Saving(DeviceKeys("ghost", PAGE), self.index, policy, self._send, at_once=at_once, limit=limit)

    def _send(self, number: int, pages: Int32s, keys: tuple[bytes, ...]) -> None:
        self.sent.append((number, pages.tolist(), keys))

    def store(self, *pages: int, first: int = 0) -> None:
        tokens = np.arange(first, first + PAGE * len(pages), dtype=np.int32)
        self.saving.follow([Stored("", None, tokens, np.array(pages, np.int32))])
        self.saving.flush()

    def remove(self, *pages: int) -> None:
        self.saving.follow([Removed(np.array(pages, np.int32))])
        self.saving.flush()

    @property
    def pages(self) -> list[int]:
        return [page for _, pages, _ in self.sent for page in pages]

    def answer(self, keep: bool = True) -> None:
        """Answer everything sent so far, and forget that it was sent."""
        for number, _, keys in self.sent:
            self.index.kept(self.saving.done(number, keys if keep else ()))
        self.sent.clear()


def test_write_through_saves_what_is_stored_once() -> None:
    bench = SavingBench(WritePolicy.WRITE_THROUGH)
    bench.store(5, 6, 7)
    assert bench.pages == [5, 6, 7]
    bench.remove(7)
    assert bench.pages == [5, 6, 7]
    bench.answer()
    bench.remove(5, 6)
    bench.store(1, 2, 3)
    assert bench.pages == []


def test_write_through_saves_what_no_tier_kept_when_it_leaves() -> None:
    bench = SavingBench(WritePolicy.WRITE_THROUGH)
    bench.store(5, 6)
    bench.answer(keep=False)
    bench.remove(6)
    assert bench.pages == [6]


def test_write_back_saves_what_leaves() -> None:
    bench = SavingBench(WritePolicy.WRITE_BACK)
    bench.store(5, 6, 7)
    assert bench.pages == []
    bench.remove(7, 6)
    assert bench.pages == [7, 6]


def test_selective_saves_what_is_hit_and_lets_the_rest_go() -> None:
    bench = SavingBench(WritePolicy.SELECTIVE)
    bench.store(5, 6, 7)
    bench.saving.hit(np.array([5, 6], np.int32))
    bench.saving.flush()
    assert bench.pages == [5, 6]
    bench.saving.hit(np.array([5, 6], np.int32))
    bench.remove(7)
    assert bench.pages == [5, 6]


@pytest.mark.parametrize("policy", list(WritePolicy))
def test_at_the_stop_what_only_the_device_has_goes_down_unless_only_hits_are_kept(policy: WritePolicy) -> None:
    bench = SavingBench(policy)
    bench.store(5, 6)
    bench.answer()
    bench.saving.save_rest()
    assert bench.pages == ([5, 6] if policy == WritePolicy.WRITE_BACK else [])


def test_messages_are_small_and_what_is_under_way_is_bounded() -> None:
    bench = SavingBench(WritePolicy.WRITE_THROUGH, limit=5, at_once=2)
    bench.store(*range(8))
    assert [pages for _, pages, _ in bench.sent] == [[0, 1], [2, 3], [4]]
    assert bench.saving.counts.skipped == 3
    assert bench.saving.num_under_way == 5
    bench.store(9, first=100)
    assert len(bench.sent) == 3
    bench.answer()
    assert bench.saving.num_under_way == 0
    bench.remove(7, 6, 5, 4)
    assert bench.pages == [7, 6, 5]


def test_pages_that_a_tier_kept_and_those_that_none_did_are_counted_apart() -> None:
    bench = SavingBench(WritePolicy.WRITE_THROUGH)
    bench.store(5, 6, 7)
    number, _, keys = bench.sent[0]
    bench.saving.done(number, keys[:1])
    assert (bench.saving.counts.saved, bench.saving.counts.refused) == (1, 2)


def test_what_was_lost_or_is_not_wanted_any_more_is_not_saved() -> None:
    bench = SavingBench(WritePolicy.WRITE_BACK)
    bench.store(5, 6)
    bench.saving.lost()
    bench.remove(5)
    bench.store(8, first=100)
    bench.saving.follow([Removed(np.array([8], np.int32)), Cleared()], intact=False)
    bench.saving.flush()
    assert (bench.pages, bench.saving.number) == ([], 1), "the number of the loss is left out"


def test_answers_that_come_twice_or_after_a_flush_are_no_news() -> None:
    bench = SavingBench(WritePolicy.WRITE_THROUGH)
    bench.store(5)
    number, _, keys = bench.sent[0]
    bench.saving.forget()
    assert bench.saving.done(number, keys) == ()
    bench.store(6, first=100)
    number, _, keys = bench.sent[1]
    assert bench.saving.done(number, keys) == keys
    assert bench.saving.done(number, keys) == ()
