"""The table of requests: what a row says of its request, and nothing of whoever had the row before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.lifecycle import requests
from pawl.lifecycle.request import MAX_STOP_TOKENS, SamplingParameters
from pawl.lifecycle.requests import FIRST_DRAFT, RequestInfo, RequestTable, _untouched
from pawl.lifecycle.states import Event, State

INF = float("inf")
PAGE = requests._PAGE


def info(request: int, **sampling: object) -> RequestInfo:
    return RequestInfo(request, f"r{request}", SamplingParameters(**sampling), "", 0.0)  # type: ignore[arg-type]


def tokens(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.int32)


def columns(table: RequestTable, row: int) -> dict[str, list[int] | int | float]:
    """All that a row says, but for `attempt`, which rises, and for places of tokens that are free."""
    arrays = {name: value for name, value in vars(table).items() if isinstance(value, np.ndarray)}
    own = {
        name: value[row].tolist() for name, value in arrays.items() if name not in ("attempt", "tokens", "_all_tokens")
    }
    return own | {"tokens": table.known(row).tolist()}


@pytest.mark.parametrize("ended", ["closed and freed", "withdrawn"])
def test_a_row_that_is_used_again_carries_nothing_of_its_former_request(ended: str) -> None:
    table, fresh = RequestTable(1, 64), RequestTable(1, 64)
    former = info(1, max_new_tokens=9, stop_token_ids=tuple(range(10, 10 + MAX_STOP_TOKENS)))
    row = table.open(former, tokens(20), 7, 3.5)
    if ended == "withdrawn":
        table.withdraw(1)
    else:
        table.move(row, Event.SUBMIT)
        table.order[row], table.num_computed[row] = 4, 16
        table.drafting[row] = 9, 8, 7, 6, 5
        table.append(np.array([row]), np.array([5], np.int32))
        table.close(row)
        table.free(row)
    for each in (table, fresh):
        assert each.open(info(2, max_new_tokens=3, stop_token_ids=(6,)), tokens(4), -1, INF) == row
    assert columns(table, row) == columns(fresh, row)


def test_what_a_step_has_changed_that_could_not_be_committed_is_put_back() -> None:
    table = RequestTable(3, 64)
    rows = np.array([table.open(info(request), tokens(4), 0, INF) for request in (1, 2, 3)][1:])
    before = [columns(table, row) for row in range(3)]
    kept = table.state[rows], table.num_tokens[rows], table.drafting[rows]
    table.move(1, Event.SUBMIT)
    table.num_tokens[rows] += 1
    table.drafting[rows] = 9, 8, 7, 6, 5
    table.undo_rows(rows, *kept)
    assert [columns(table, row) for row in range(3)] == before


def test_a_row_says_what_was_asked_for() -> None:
    table = RequestTable(2, 64)
    asked = info(5, max_new_tokens=3, stop_token_ids=(6, 8))
    asked.namespace = "adapter=3.f"
    row = table.open(asked, tokens(4), -1, 9.5)
    assert columns(table, row) == {
        "state": State.NEW,
        "slot": 0,
        "num_prompt": 4,
        "num_tokens": 4,
        "max_tokens": 7,
        "max_length": 6,
        "num_computed": 0,
        "order": np.iinfo(np.int64).max,
        "adapter": 3,
        "priority": -1,
        "deadline": 9.5,
        "drafting": [FIRST_DRAFT, 0, 0, 0, 0],
        "draft_length": FIRST_DRAFT,
        "draft_pause": 0,
        "draft_from": 0,
        "num_drafted": 0,
        "num_accepted": 0,
        "stop_tokens": [6, 8] + [-1] * (MAX_STOP_TOKENS - 2),
        "tokens": [1, 2, 3, 4],
    }


@pytest.mark.parametrize(
    ("penalties", "penalised"),
    [
        ({}, False),
        ({"repetition_penalty": 1.5}, True),
        ({"presence_penalty": -1.0}, True),
        ({"frequency_penalty": 0.5}, True),
    ],
)
def test_a_request_is_penalised_that_asks_for_any_penalty(penalties: dict[str, float], penalised: bool) -> None:
    assert SamplingParameters(**penalties).penalised == penalised


@pytest.mark.parametrize(("wanted", "length"), [(0, 4), (1, 4), (2, 5)])
def test_the_last_output_token_needs_no_position(wanted: int, length: int) -> None:
    table = RequestTable(1, 64)
    row = table.open(info(5, max_new_tokens=wanted), tokens(4), 0, INF)
    assert (table.max_tokens[row], table.max_length[row]) == (4 + wanted, length)


def test_a_prompt_that_is_wider_than_the_table_is_cut_and_keeps_its_length() -> None:
    table = RequestTable(2, 8)
    row = table.open(info(5, max_new_tokens=1), tokens(30), 0, INF)
    assert (table.num_prompt[row], table.known(row).tolist()) == (30, list(range(1, 10)))
    assert table.num_prompt[1 - row] == 0


def test_rows_are_taken_until_there_is_none_and_live_ones_come_in_order_of_arrival() -> None:
    table = RequestTable(3, 8)
    rows = [table.open(info(request), tokens(1), 0, INF) for request in (7, 5, 6)]
    assert (table.full, len(table), sorted(rows)) == (True, 3, [0, 1, 2])
    table.close(rows[1])
    assert (table.full, len(table), table.live_rows().tolist()) == (True, 2, [rows[0], rows[2]])
    table.free(rows[1])
    assert not table.full
    with pytest.raises(KeyError, match="is free"):
        table.info(rows[1])
    assert table.open(info(8), tokens(1), 0, INF) == rows[1]
    assert table.live_rows().tolist() == [rows[0], rows[2], rows[1]]


def test_a_row_that_was_withdrawn_is_free_once() -> None:
    table = RequestTable(2, 8)
    table.open(info(1), tokens(1), 0, INF)
    table.withdraw(1)
    table.withdraw(1)
    assert {table.open(info(request), tokens(1), 0, INF) for request in (2, 3)} == {0, 1}
    assert table.full


def test_after_free_rest_every_row_without_a_live_request_is_free() -> None:
    table = RequestTable(3, 8)
    rows = [table.open(info(request), tokens(1), 0, INF) for request in (1, 2, 3)]
    table.close(rows[0])
    table.free_rest()
    assert table.infos[rows[0]] is None
    assert table.open(info(4), tokens(1), 0, INF) == rows[0]
    assert table.full
    assert table.info(rows[1]).request == 2


def test_tokens_are_appended_to_distinct_rows_and_the_output_begins_after_the_prompt() -> None:
    table = RequestTable(3, 8)
    rows = [table.open(info(request), tokens(request), 0, INF) for request in (1, 2, 3)]
    for row in rows:
        table.place(row)
    for drawn in ([50, 60], [51, 61]):
        table.append(np.array([rows[2], rows[0]]), np.array(drawn, np.int32))
    assert [table.output(row).tolist() for row in rows] == [[60, 61], [], [50, 51]]
    assert table.tokens[rows[2], :5].tolist() == [1, 2, 3, 50, 51]


def test_a_late_result_is_told_from_a_live_one_by_its_attempt() -> None:
    table = RequestTable(1, 8)
    row = table.open(info(1), tokens(1), 0, INF)
    attempt = int(table.attempt[row])
    table.close(row)
    table.free(row)
    table.open(info(2), tokens(1), 0, INF)
    assert table.attempt[row] > attempt


def test_a_request_that_waits_touches_no_row_of_the_tokens_until_it_goes_to_work() -> None:
    table = RequestTable(2, 8)
    prompt = np.array([4, 5, 6], np.int32)
    row = table.open(RequestInfo(1, "r1", SamplingParameters(), "", 0.0), prompt, 0, float("inf"))
    prompt.flags.writeable = False  # it is kept as it is, and read only
    assert (table.known(row).tolist(), table.tokens[row].any()) == ([4, 5, 6], False)
    assert np.shares_memory(table.known(row), prompt)
    for _ in range(2):
        table.place(row)
        assert table.known(row).tolist() == table.tokens[row, :3].tolist() == [4, 5, 6]
    table.append(np.array([row]), np.array([7], np.int32))
    assert table.known(row).tolist() == [4, 5, 6, 7]


def test_tokens_that_lie_in_a_message_are_taken_out_of_it() -> None:
    table = RequestTable(2, 8)
    message = bytes(3) + np.array([4, 5, 6], np.int32).tobytes()
    row = table.open(info(1), np.frombuffer(message, np.int32, offset=3), 0, INF)
    known = table.known(row)
    assert known.tolist() == [4, 5, 6]
    assert known.flags.aligned
    assert not np.shares_memory(known, np.frombuffer(message, np.uint8))


@pytest.mark.parametrize(
    ("rows", "width", "length"),
    [
        (1, 0, 0),
        (3, 5, 5),
        (1023, 1025, 1025),  # the last before pages are mapped for it
        (1 << 20, 1, 1),
        ((1 << 20) // PAGE, PAGE, PAGE),
        (1 << 9, 2 * PAGE, 2 * PAGE),
        (1 << 9, 2 * PAGE + 1, 3 * PAGE),  # longer than a page: each row begins with one
        (1, 1 << 20, 1 << 20),
    ],
)
def test_a_table_of_any_size_is_of_zeros_and_of_nobody_else(rows: int, width: int, length: int) -> None:
    one, other = _untouched(rows, width), _untouched(rows, width)
    assert one.shape == other.shape == (rows, length)
    one[...] = np.arange(one.size, dtype=np.int32).reshape(one.shape)
    assert one.ravel().tolist() == list(range(one.size))
    assert not other.any()


def test_a_table_for_which_there_is_no_room_says_so() -> None:
    with pytest.raises(MemoryError, match=r"16777216 requests of \d+ tokens"):
        _untouched(1 << 24, 1 << 22)


def test_output_of_a_lost_replica_is_in_the_table_before_the_request_goes_to_work() -> None:
    table = RequestTable(2, 8)
    tokens = np.array([4, 5, 6], np.int32)
    row = table.open(RequestInfo(1, "r1", SamplingParameters(), "", 0.0), tokens, 0, float("inf"), num_output=1)
    assert (table.output(row).tolist(), table.known(row).tolist()) == ([6], [4, 5, 6])


@pytest.mark.parametrize("way", ["freed", "freed with all", "withdrawn"])
def test_a_row_that_is_free_again_keeps_no_prompt(way: str) -> None:
    table = RequestTable(2, 64)
    row = table.open(info(1, max_new_tokens=9), tokens(20), 7, 3.5)
    if way == "withdrawn":
        table.withdraw(1)
    else:
        table.close(row)
        table.free(row) if way == "freed" else table.free_rest()
    assert (vars(table)["_prompts"], table.infos) == ({}, [None] * 2)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.booleans()), min_size=1, max_size=8),
    st.lists(st.integers(20, 24), min_size=8, max_size=8),
)
def test_few_rows_and_many_get_their_tokens_alike_and_end_alike(
    asked: list[tuple[int, int, bool]], drawn: list[int]
) -> None:
    tables = []
    for few in (0, len(asked)):
        table, rows = RequestTable(len(asked), 16), []
        for request, (wanted, prompt, stops) in enumerate(asked):
            stop_token_ids = (21, 23) if stops else ()
            rows.append(
                table.open(
                    info(request, max_new_tokens=wanted, stop_token_ids=stop_token_ids), tokens(prompt), request, INF
                )
            )
            table.place(rows[-1])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(requests, "FEW", few)
            ended = []
            for turn in range(2):
                last = np.array(drawn[turn:] + drawn[:turn], np.int32)[: len(rows)]
                table.append(np.array(rows), last)
                ended.append(list(table.complete(np.array(rows), last)))
        tables.append(([columns(table, row) for row in rows], ended))
    assert tables[0] == tables[1]
