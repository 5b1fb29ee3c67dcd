"""What keys do to `pawl top`: what is chosen, what is asked, what is sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.top.keys import ABORT_ALL, CONTINUE, ESCAPE, FLUSH, PAUSE, Command, Do, Quit, Ui, decoded, press
from pawl.top.reading import Lost, Watched
from tests.pawl.watching import URL, live, reading, scheduler, watched


def pressed(*keys: str, seen: Watched | None = None) -> tuple[Ui, list[Command]]:
    """What is shown after these keys, and what they had done."""
    seen, ui, done = watched() if seen is None else seen, Ui(), list[Command]()
    for key in keys:
        ui, command = press(ui, key, seen)
        done += [] if command is None else [command]
    return ui, done


def requests(*rids: str) -> Watched:
    return watched(reading(1.0, scheduler(live=[live(number, rid) for number, rid in enumerate(rids, 1)])))


def test_the_chosen_request_and_no_other_is_aborted_by_its_exact_name() -> None:
    seen = requests("one", "two\x1b[2J", "three")
    assert pressed("j", "j", "a", seen=seen)[1] == [Do("abort two\x1b[2J", "/abort_request", {"rid": "two\x1b[2J"})]


def test_nothing_is_chosen_before_somebody_chooses() -> None:
    ui, done = pressed("a")
    assert (ui.message, done) == ("choose a request first (j, k)", [])


def test_when_the_chosen_request_has_ended_the_key_that_aborts_takes_no_other() -> None:
    ui, _ = pressed("j", "j", seen=requests("one", "two", "three"))
    left = watched(reading(1.0, scheduler(live=[live(1, "one"), live(3, "three")])))
    told, command = press(ui, "a", left)
    assert (told.message, command) == ("choose a request first (j, k)", None)
    assert press(ui, "j", left)[0].chosen == "3"  # what stands where it was


def test_the_choice_stays_with_its_request_when_the_order_changes() -> None:
    state = scheduler(live=[live(1, "one", output_tokens=1), live(2, "two", output_tokens=9)])
    ui, _ = pressed("j", "s", "s", seen=watched(reading(1.0, state)))
    assert (ui.chosen, ui.listing.orders[ui.order][0]) == ("1", "output")


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ("j", "1"), ("jj", "2"), ("jjjjj", "3"), ("k", "1"), ("jjk", "1"), ("G", "3"), ("Gg", "1"), ("Gjj", "3"),
        (["page down"], "1"), (["j", "page down"], "3"), (["end", "page up"], "1"), (["down", "down", "up"], "1"),
    ],
)  # fmt: skip
def test_keys_choose_and_stop_at_the_ends(keys: Any, chosen: str) -> None:
    assert pressed(*keys)[0].chosen == chosen


def test_all_are_aborted_only_after_a_yes() -> None:
    every = Do("abort all", "/abort_request", {"abort_all": True})
    assert pressed("A")[0].asking == ABORT_ALL
    assert pressed("A", "y")[1] == [every]
    for no in ("n", "A", "a", "q", ESCAPE):
        ui, done = pressed("A", no)
        assert (ui.asking, ui.message, done) == (None, "not done", [])


def test_a_pause_asks_which_one() -> None:
    assert pressed("p")[0].asking == PAUSE
    for key, mode in (("i", "in_place"), ("r", "retract"), ("a", "abort")):
        assert pressed("p", key)[1] == [Do(f"pause ({mode})", "/pause_generation", {"mode": mode})]
    assert pressed("p", "x")[1] == []


def test_the_other_keys_of_an_operator() -> None:
    assert pressed("c", "f", "q")[1] == [CONTINUE, FLUSH, Quit()]
    assert pressed("A", "\x03")[1] == [Quit()]


def test_a_server_that_is_gone_is_sent_nothing() -> None:
    seen = watched()
    seen.add(Lost(2.0, "12:00:05", "Connection refused"))
    for key in "aApcf":
        for there in (seen, Watched(URL)):
            ui, done = pressed("j", key, "y", seen=there)
            assert done == []
            assert pressed("j", key, seen=there)[0].message == "the server does not answer"
            assert ui.asking is None


def test_lists_come_in_turn_and_only_requests_can_be_aborted() -> None:
    names = [pressed(*"v" * count)[0].listing.name for count in range(5)]
    assert names == ["requests", "sessions", "adapters", "actors", "requests"]
    state = scheduler(open_sessions=[{"session_id": "mine"}])
    ui, done = pressed("v", "j", "a", seen=watched(reading(1.0, state)))
    assert (ui.chosen, done) == ("mine", [])


def test_help_comes_and_goes_and_a_key_without_meaning_does_nothing() -> None:
    assert pressed("h")[0].help
    assert not pressed("h", "?")[0].help
    assert pressed("x", "é", "1") == (Ui(), [])


def test_keys_are_told_from_what_a_terminal_sends() -> None:
    assert decoded("ja\x1b[A\x1b[B\x1bOA\x1b[5~\x1b[6~\tq") == (
        ["j", "a", "up", "down", "up", "page up", "page down", "v", "q"],
        "",
    )
    assert decoded("\x1b[31;4M\x1b[200~x\x1bfy") == (["x", "y"], "")  # keys that mean nothing here
    assert decoded("j\x1b") == (["j"], "\x1b")
    assert decoded("\x1b[") == ([], "\x1b[")
    assert decoded("\x1b\x1b[A") == ([ESCAPE, "up"], "")


@given(st.text(st.sampled_from("\x1b[O~A56;jq\x03 \x7fé")), st.data())
def test_where_a_read_ends_changes_no_key(typed: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(typed)))
    before, rest = decoded(typed[:cut])
    after, left = decoded(rest + typed[cut:])
    assert (before + after, left) == decoded(typed)
