"""What is drafted from a request's own text, and how long: as its earlier drafts fared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import FIRST_DRAFT, RequestInfo, RequestTable
from pawl.loops.batch import ScheduledBatch
from pawl.loops.pacing import PACINGS
from pawl.loops.speculation import LONGEST_PAUSE, Drafter, SpeculationConfig
from pawl.memory.arrays import Indices, Int32s
from tests.loops.driver import Driver

CONFIG = SpeculationConfig(num_speculative_tokens=6, prompt_lookup_min=2, prompt_lookup_max=4, max_positions=64)
ROOM = 200


def table_of(*texts: list[int], wanted: int = 64) -> RequestTable:
    table = RequestTable(len(texts), ROOM)
    for number, text in enumerate(texts):
        sampling = SamplingParameters(temperature=0.0, max_new_tokens=wanted)
        row = table.open(RequestInfo(number, "", sampling, "", 0.0), np.array(text, np.int32), 0, np.inf)
        table.place(row)
    return table


def rows_of(table: RequestTable) -> Indices:
    return table.live_rows()


def drafted(
    table: RequestTable, *, in_flight: int = 0, most: int = 64, config: SpeculationConfig = CONFIG
) -> list[int]:
    """The draft of the only row, when it may be as long as any."""
    table.draft_length[:] = config.num_speculative_tokens
    starts = (table.num_tokens[rows_of(table)] - 1 + in_flight).astype(np.int32)
    drafts = Drafter(table, config, most=most).draft(rows_of(table), starts)
    return [] if drafts is None else drafts.tokens.tolist()


def int32(*values: int) -> Int32s:
    return np.array(values, np.int32)


def test_the_draft_is_what_followed_the_last_tokens_before() -> None:
    assert drafted(table_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])) == [3, 4, 5, 6, 7, 8]


def test_of_several_places_the_one_that_agrees_the_most_counts_and_then_the_latest() -> None:
    assert drafted(table_of([7, 1, 2, 30, 8, 1, 2, 40, 9, 7, 1, 2]))[:1] == [30]
    assert drafted(table_of([7, 1, 2, 30, 7, 1, 2, 40, 9, 7, 1, 2]))[:1] == [40]
    # More than four are not compared.
    assert drafted(table_of([5, 4, 3, 2, 1, 30, 9, 4, 3, 2, 1, 40, 5, 4, 3, 2, 1]))[:1] == [40]


def test_fewer_tokens_than_the_least_are_no_place() -> None:
    assert drafted(table_of([1, 5, 2, 1])) == []
    assert drafted(table_of([1])) == []


def test_a_text_that_repeats_itself_is_drafted_to_go_on_so() -> None:
    assert drafted(table_of([9, 1, 2, 1, 2])) == [1, 2, 1, 2, 1, 2]
    assert drafted(table_of([3, 3, 3])) == [3] * 6


def test_a_token_in_flight_is_guessed_and_is_no_part_of_the_draft() -> None:
    assert drafted(table_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]), in_flight=1) == [4, 5, 6, 7, 8, 9]


def test_drafts_end_before_the_last_token_that_is_wanted_and_where_the_step_has_no_more_room() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]
    assert drafted(table_of(text, wanted=4)) == [3, 4, 5]
    assert drafted(table_of(text, wanted=1)) == []
    assert drafted(table_of(text), most=3) == [3, 4]
    assert drafted(table_of(text), most=1) == []
    # Rows that come first have what room there is.
    assert drafted(table_of(text, text), most=5) == [3, 4, 5]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(0, 1))
def test_a_draft_is_the_continuation_that_a_search_by_hand_finds(text: list[int], in_flight: int) -> None:
    known = list(text)
    places = [
        (size, end)
        for end in range(1, len(text))
        for size in range(CONFIG.prompt_lookup_min, CONFIG.prompt_lookup_max + 1)
        if end - size >= 0 and text[end - size : end] == text[len(text) - size :] and len(text) >= size
    ]
    if not places:
        assert drafted(table_of(text), in_flight=in_flight) == []
        return
    _, end = max(places)
    for ahead in range(6 + in_flight):
        known.append(known[end + ahead])
    assert drafted(table_of(text), in_flight=in_flight) == known[len(text) + in_flight :]


# ---- how long a draft is ----


def test_drafts_grow_while_they_are_right_and_shrink_to_what_was() -> None:
    table = table_of([1] * 20)
    drafter, rows = Drafter(table, CONFIG, most=64), rows_of(table)
    assert table.draft_length.tolist() == [FIRST_DRAFT]
    for tried, good, then in ((2, 2, 4), (4, 4, 8), (6, 3, 3), (3, 3, 6), (6, 1, 1)):
        drafter.judge(rows, int32(tried), int32(good))
        assert table.draft_length.tolist() == [then]
    assert table.num_drafted.tolist() == [21]
    assert table.num_accepted.tolist() == [13]


def test_a_draft_that_the_end_of_the_room_cut_short_makes_the_next_no_shorter() -> None:
    table = table_of([1] * 20)
    table.draft_length[:] = 6
    Drafter(table, CONFIG, most=64).judge(rows_of(table), int32(1), int32(1))
    assert table.draft_length.tolist() == [6]


def test_after_drafts_of_which_nothing_was_right_a_request_pauses_longer_each_time() -> None:
    table = table_of([1] * 20, wanted=170)
    drafter, rows = Drafter(table, CONFIG, most=64), rows_of(table)
    for pause in (4, 16, LONGEST_PAUSE, LONGEST_PAUSE):
        drafter.judge(rows, int32(1), int32(0))
        assert table.draft_from[rows[0]] == table.num_tokens[rows[0]] + pause
        for count in range(pause):
            assert drafter.draft(rows, table.num_tokens[rows] - 1) is None, count
            table.append(rows, int32(1))
        drafts = drafter.draft(rows, table.num_tokens[rows] - 1)
        assert drafts is not None
        assert drafts.tokens.tolist() == [1]
    drafter.judge(rows, int32(1), int32(1))
    drafter.judge(rows, int32(2), int32(0))
    assert table.draft_from[rows[0]] == table.num_tokens[rows[0]] + 4


# ---- in the loop ----


@pytest.mark.parametrize("pacing", PACINGS)
def test_a_ghost_that_repeats_itself_needs_fewer_steps_and_says_the_same(pacing: str) -> None:
    said = {}
    for speculation in (None, CONFIG):
        driver = Driver(pacing=pacing, speculation=speculation)
        request = driver.submit([3, 1, 4], 40, logit_bias={65: 100.0})
        said[speculation] = driver.run(), driver.output_of[request]
    assert said[None][1] == said[CONFIG][1] == [65] * 40
    assert said[CONFIG][0] < 15 < 40 <= said[None][0]


def test_a_step_with_drafts_that_cannot_be_recorded_has_judged_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(speculation=CONFIG, pacing="lockstep")
    driver.submit([3, 1, 4], 40, logit_bias={65: 100.0})
    table, journal, loop = driver.loop.table, driver.loop.journal, driver.loop
    tried = 0
    while not loop.idle:
        driver.intake.turn(driver.now)
        scheduled = driver.launched.popleft()
        result = driver.ghost.launch(scheduled.batch)
        columns = table.drafting, table.state, table.num_tokens
        before = [column.tolist() for column in columns], loop.counters.of_output()
        with monkeypatch.context() as fails:
            fails.setattr(journal, "committed", None)
            with pytest.raises(TypeError):
                loop.executed(result, driver.now)
        assert ([column.tolist() for column in columns], loop.counters.of_output()) == before
        drafted = table.drafting.tolist()
        driver.output_of[1] = driver.output_of[1][: int(table.num_tokens[0]) - 3]
        loop.executed(result, driver.now)
        tried += table.drafting.tolist() != drafted
    assert tried > 2


def test_where_somebody_waits_or_a_prompt_is_under_way_there_are_no_drafts() -> None:
    driver = Driver(speculation=CONFIG, max_running=1)
    driver.submit([3, 1, 4], 12, logit_bias={65: 100.0})
    driver.submit([3, 1, 4], 12, logit_bias={65: 100.0})
    while len(driver.ending_of) < 1:
        driver.step()
        assert driver.loop.counters.draft_tokens == 0
    driver.run()
    assert driver.loop.counters.draft_tokens > 0
    assert driver.loop.counters.accepted_tokens > 0


def test_a_step_with_drafts_has_as_many_positions_as_a_chunk_at_the_most() -> None:
    driver = Driver(speculation=CONFIG, prefill_chunk=8)
    for _ in range(6):
        driver.submit([3, 1, 4], 12, logit_bias={65: 100.0})
    most = 0
    while driver.step():
        for scheduled in driver.launched:
            if scheduled.runs:
                most = max(most, int(scheduled.batch.lengths.sum()))
    assert most == 8


class Watching(Driver):
    """Notes how many steps are in flight behind each launched one, and whether there are drafts in those."""

    def launch(self, scheduled: ScheduledBatch) -> None:
        self.ahead = getattr(self, "ahead", [])
        self.ahead.append((scheduled.runs, [step.runs for step in self.launched]))
        super().launch(scheduled)


def test_nothing_is_planned_behind_a_step_with_drafts_and_they_may_come_behind_one_without() -> None:
    driver = Watching(speculation=CONFIG, pacing="overlap")
    driver.submit([3, 1, 4], 30, logit_bias={65: 100.0})
    driver.run()
    assert not any(True in ahead for _, ahead in driver.ahead)
    assert (True, [False]) in driver.ahead
    assert (False, [False]) in driver.ahead
