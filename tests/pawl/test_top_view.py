"""What `pawl top` shows, to the letter; and that nothing a server says can do anything to a terminal."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.top.facts import seconds
from pawl.top.keys import ABORT_ALL, Ui
from pawl.top.reading import Lost, Reading, Watched
from pawl.top.text import Span, Style, clean, fitted, padded, paint, width_of
from pawl.top.view import screen, snapshot
from tests.pawl.watching import URL, live, reading, scheduler, watched

CLOCK = "12:00:01"


def shown(seen: Watched, width: int = 80, height: int = 24, ui: Ui = Ui()) -> str:  # noqa: B008
    return "\n".join(paint(line, colour=False) for line in screen(seen, ui, width, height, CLOCK))


def grown() -> dict[str, Any]:
    """The scheduler ten steps later."""
    state = scheduler()
    state["counters"] |= {"steps": 110, "generated_tokens": 240, "cached_tokens": 50}
    state["steps"] = {
        "phase_seconds": {"receive": 0.11, "plan": 0.22, "launch": 0.101, "commit": 0.2},
        "duration_seconds": {"total": 3.3},
        "prefill_tokens": 90,
    }
    return state


def test_a_server_at_work() -> None:
    seen = watched(reading(1.0), reading(3.0, grown()))
    assert shown(seen, 80, 16, Ui(chosen="2")) == (
        """\
pawl top  ready  ghost  weights v7  http://127.0.0.1:30000  12:00:01
health    ok  trace ok
requests  running 2  waiting 1  open 3  decoding 2  queued 1
ended     eos 3  length 4
tokens/s  computed 0.0  cached 10.0  generated 20.0  hit rate 36%
steps     5.0/s  in flight 1  each 30 ms  receive 1.0 ms  plan 2.0 ms
          launch 100 us  commit 0 us
pages     [#####=======........]  # owned 25  = cached 35  . free 40
          of 100 x 16 tokens  slots 2 of 8
sessions  open 1  closing 0
weights   state serving  version v7
3 requests by age
  REQUEST                    STATE      OUTPUT     AGE  PROMPT  CACHED RETRACTED
  one                     decoding       5/100   9.0 s      10       0         0
> two                     decoding      90/100   8.0 s      20       0         0
q quit  j/k choose  a abort  A abort all  p pause  c continue  f flush  s sort ~"""
    )


def test_forty_columns_wrap_the_facts_and_keep_the_first_columns() -> None:
    assert shown(watched(), 40, 22) == (
        """\
pawl top  ready  ghost  weights v7  htt~
health    ok  trace ok
requests  running 2  waiting 1  open 3
          decoding 2  queued 1
ended     eos 3  length 4
tokens/s  computed -  cached -
          generated -  hit rate 25%
steps     -/s  in flight 1
pages     [#####=======........]
          # owned 25  = cached 35
          . free 40  of 100 x 16 tokens
          slots 2 of 8
sessions  open 1  closing 0
weights   state serving  version v7
3 requests by age
  REQUEST              STATE      OUTPUT
  one               decoding       5/100
  two               decoding      90/100
  three               queued       0/100
q quit  j/k choose  a abort  A abort al~"""
    )


def test_a_low_screen_keeps_the_head_some_rows_and_the_keys() -> None:
    text = shown(watched(), 60, 7, Ui(chosen="3"))
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        *("pawl top", "health", "3 requests by age", "", "", "> three", "q quit"),
    ]


@pytest.mark.parametrize("height", range(4))
def test_the_lowest_screens_show_what_fits(height: int) -> None:
    assert len(shown(watched(), 40, height).splitlines()) == height


def test_a_server_that_is_gone_is_said_to_be_since_when_with_what_was_known() -> None:
    seen = watched()
    seen.add(Lost(2.0, "12:00:05", "Connection refused"))
    seen.add(Lost(3.0, "12:00:06", "timed out"))
    assert shown(seen).splitlines()[:4] == [
        "pawl top  unreachable  ghost  weights v7  http://127.0.0.1:30000  12:00:01",
        "unreachable since 12:00:05: timed out",
        "what follows is of 12:00:00",
        "health    ok  trace ok",
    ]
    never = Watched(URL)
    never.add(Lost(2.0, "12:00:05", "Connection refused"))
    assert shown(never).splitlines()[:2] == [
        "pawl top  unreachable  http://127.0.0.1:30000  12:00:01",
        "unreachable since 12:00:05: Connection refused",
    ]


def test_what_should_never_be_stands_out() -> None:
    actors = {
        "worker": {"alive": False, "contained": 2},
        "tokenizer": {"alive": True, "waiting_data": 3, "rejected": 4},
    }
    state = scheduler(violations={"conservation": 2}, trace_gaps=9)
    lines = screen(watched(reading(1.0, state, actors=actors)), Ui(), 100, 30, CLOCK)
    trouble = next(line for line in lines if line[0].text.startswith("trouble"))
    assert [span.text for span in trouble if span.style is Style.BAD] == [
        *("violated conservation 2", "trace lost 9", "worker is gone"),
    ]
    assert paint(trouble, colour=False).endswith("worker failed 2")
    assert "mailboxes tokenizer 3 refused 4" in [paint(line, colour=False) for line in lines]


def test_steps_that_somebody_has_slowed_down_are_said_to_be() -> None:
    assert "each delayed by 250 ms" in shown(watched(reading(1.0, scheduler(forward_sleep_time=0.25))))
    assert "delayed" not in shown(watched(reading(1.0, scheduler(forward_sleep_time=None))))


def test_a_silent_scheduler_is_told_and_nothing_of_it_is_made_up() -> None:
    text = shown(watched(reading(1.0, {"error": "no answer within 2 s"})))
    assert "scheduler does not answer: no answer within 2 s" in text
    assert "pages" not in text


def test_a_question_takes_the_place_of_the_keys_and_so_does_a_message() -> None:
    assert shown(watched(), ui=Ui(asking=ABORT_ALL)).splitlines()[-1] == ABORT_ALL.text
    assert shown(watched(), ui=Ui(message="flush: done")).splitlines()[-1] == "flush: done"


def test_lists_that_take_the_admin_key_say_so_and_the_actors_do_not() -> None:
    seen = watched(msgspec.structs.replace(reading(actors={"worker": {"alive": True}}), listed=False))
    assert "to list requests takes the admin key (--admin-api-key)" in shown(seen)
    assert "1 actors by name" in shown(seen, ui=Ui(table=3))


def test_whatever_a_server_says_of_adapters_is_shown() -> None:
    state = scheduler(adapters=[{"name": "poet", "state": "ready", "requests": 3}, {"name": "clerk"}])
    assert "adapters  poet ready 3  clerk" in shown(watched(reading(1.0, state)))
    state = scheduler(adapters={"ready": 2, "loading": 1, "names": ["poet"]})
    assert "adapters  ready 2  loading 1" in shown(watched(reading(1.0, state)))
    assert "adapters  " not in shown(watched(reading(1.0, scheduler(adapters={"ready": 0, "loading": 0}))))
    loaded = [{"name": "poet", "state": "ready", "resident": True, "pinned": False}]
    lines = shown(watched(reading(1.0, scheduler(loaded_adapters=loaded))), 60, 24, Ui(table=2)).splitlines()
    assert lines[-3:-1] == [
        "  ADAPTER                            STATE  RESIDENT  PINNED",
        "  poet                               ready       yes",
    ]


def test_help_names_every_key() -> None:
    text = shown(watched(), ui=Ui(help=True))
    assert all(f"\n{key} " in text for key in "aApcfsvhq")


def test_of_many_rows_those_around_the_chosen_one_are_shown() -> None:
    state = scheduler(live=[live(number, f"r{number}") for number in range(1, 101)])
    text = shown(watched(reading(1.0, state)), 60, 30, Ui(chosen="70"))
    assert "> r70 " in text
    assert "r1 " not in text
    assert "  r100 " in shown(watched(reading(1.0, state)), 60, 30, Ui(chosen="99"))


def test_a_snapshot_has_every_row() -> None:
    state = scheduler(live=[live(number, f"r{number}") for number in range(1, 101)])
    lines = [paint(line, colour=False) for line in snapshot(watched(reading(1.0, state)), 80, CLOCK)]
    assert [line.split()[0] for line in lines[-100:]] == [f"r{number}" for number in range(1, 101)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 us"),
        (0.00042, "420 us"),
        (0.0042, "4.2 ms"),
        (0.42, "420 ms"),
        (42.0, "42.0 s"),
        (4200, "70 min"),
        (42000, "12 h"),
    ],
)
def test_times_are_told_in_the_unit_in_which_they_are_small(value: float, text: str) -> None:
    assert seconds(value) == text


# ---- whatever comes ----

HOSTILE = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("\x1b\x9b\x07\r\n\t\b\x7f\x90\x9d\u202e\u200d\u0301\ufe0f\ufeff\u2028漢😀"),
    ),
    max_size=30,
) | st.sampled_from(["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x1b[?1049l", "a\rb", "e\u0301" * 9])
NUMBERS = st.integers() | st.floats() | st.just(10**400)
ANYTHING = st.recursive(
    HOSTILE | NUMBERS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HOSTILE, inner, max_size=4),
    max_leaves=12,
)
ORDERS = re.compile(r"\x1b\[[0-9]+m")


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    """What a scheduler says, with some of it replaced by anything."""
    state = scheduler(live=[live(number, draw(HOSTILE)) for number in range(draw(st.integers(0, 8)))])
    for name in draw(
        st.lists(st.sampled_from([*state, "error", "adapters", "open_sessions", "violations"]), max_size=4)
    ):
        state[name] = draw(ANYTHING)
    for inner in draw(st.lists(st.sampled_from(["pages", "counters", "steps", "slots"]), max_size=2)):
        if isinstance(state[inner], dict):
            state[inner] |= draw(st.dictionaries(st.sampled_from(["total", "steps", "owned", "free"]), ANYTHING))
    return state


@given(
    st.lists(states(), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["served_model_name", "status", "actors", "open_requests"]), ANYTHING),
    st.integers(1, 130),
    st.integers(0, 60),
    st.builds(Ui, table=st.integers(0, 5), order=st.integers(0, 9), chosen=st.none() | HOSTILE, message=HOSTILE),
    st.booleans(),
)
def test_no_line_is_too_long_none_too_many_and_none_moves_the_terminal(
    looks: list[dict[str, Any]], server: dict[str, Any], width: int, height: int, ui: Ui, lost: bool
) -> None:
    seen = watched(*(Reading(float(at), "12:00:00", server, state, server) for at, state in enumerate(looks)))
    if lost:
        seen.add(Lost(9.0, "12:00:09", str(server)))
    lines = screen(seen, ui, width, height, CLOCK)
    assert len(lines) <= height
    for line in (*lines, *snapshot(seen, width, CLOCK)):
        plain = paint(line, colour=False)
        assert plain.isprintable()
        assert width_of(plain) <= width
        assert ORDERS.sub("", paint(line, colour=True)).rstrip() == plain


@given(HOSTILE)
def test_a_clean_text_is_one_that_stays_as_it_is(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    assert clean(text).isprintable()


@given(HOSTILE, st.integers(0, 20), st.booleans())
def test_a_cell_has_its_width_whatever_stands_in_it(text: str, width: int, right: bool) -> None:
    assert width_of(padded(text, width, right=right)) == width


def test_a_wide_character_is_not_cut_in_half() -> None:
    assert [span.text for span in fitted([Span("漢漢漢")], 4)] == ["漢~"]
    assert padded("漢漢漢", 4) == "漢~ "


def test_letters_with_marks_that_have_one_form_keep_them() -> None:
    assert clean("Cafe\u0301") == "Café"
