"""Stop strings are found however the text arrives, and no part of one is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pawl.actors.text.stop import StopMatcher
from tests.actors.vocabularies import untimed

Stops = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)
Pieces = st.lists(st.text(alphabet="ab\n", max_size=5), max_size=8)


def run(stops: tuple[str, ...], pieces: list[str], include_stop: bool = False) -> tuple[str, str | None]:
    """All text shown, and what matched, pushing `pieces` until something does."""
    matcher = StopMatcher(stops, include_stop)
    shown = ""
    for piece in pieces:
        found = matcher.push(piece)
        shown += found.text
        if found.matched is not None:
            return shown, found.matched
    return shown + matcher.flush(), None


def by_definition(stops: tuple[str, ...], text: str) -> tuple[str, str | None]:
    """The shortest beginning of the text that ends with a stop string; the longest stop string that it ends with."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@untimed
@given(Stops, Pieces)
@example(("abab", "ba"), ["a", "b", "ab"])
def test_the_match_follows_the_definition_however_the_text_is_cut(stops: tuple[str, ...], pieces: list[str]) -> None:
    text = "".join(pieces)
    expected = by_definition(stops, text)
    assert run(stops, pieces) == expected
    assert run(stops, list(text)) == expected
    assert run(stops, [text]) == expected


@untimed
@given(Stops, Pieces)
def test_shown_text_holds_no_stop_string(stops: tuple[str, ...], pieces: list[str]) -> None:
    shown, _ = run(stops, pieces)
    assert not any(stop in shown for stop in stops)


@untimed
@given(Stops, Pieces)
def test_what_is_held_back_could_still_become_a_stop_string_and_nothing_else_is(
    stops: tuple[str, ...], pieces: list[str]
) -> None:
    matcher, text, shown = StopMatcher(stops), "", ""
    for piece in pieces:
        found = matcher.push(piece)
        if found.matched is not None:
            return
        text, shown = text + piece, shown + found.text
        assert text.startswith(shown)
        held = text[len(shown) :]
        tails = [text[i:] for i in range(len(text)) if any(stop.startswith(text[i:]) for stop in stops)]
        assert held == max(tails, key=len, default="")


@untimed
@given(Stops, Pieces)
def test_included_stops_end_the_text(stops: tuple[str, ...], pieces: list[str]) -> None:
    without, matched = run(stops, pieces)
    assert run(stops, pieces, include_stop=True) == (without + (matched or ""), matched)


def test_the_stop_that_is_complete_first_wins_and_the_longest_of_those() -> None:
    assert run(("abcd", "bc"), ["xabcd"]) == ("xa", "bc")
    assert run(("c", "abc"), ["xabc"]) == ("x", "abc")


@pytest.mark.parametrize("stops", [(), ("a", "")])
def test_empty_stop_strings_are_refused(stops: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(stops)
