"""What the lower part of the screen lists: requests, sessions, adapters, actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pawl.top.facts import seconds
from pawl.top.reading import Json, Reading, at, number, objects
from pawl.top.text import Line, Span, Style, padded

MOST_NAME = 40


class Column(NamedTuple):
    """One column; those that come first stay where a screen is narrow."""

    title: str
    width: int
    cell: Callable[[Json], str]


class Table(NamedTuple):
    """One list. The first column is a name and takes what the others leave."""

    name: str
    rows: Callable[[Reading], list[Json]]
    key: Callable[[Json], str]
    """What tells a row from others, also in the next reading."""
    columns: Sequence[Column]
    orders: Sequence[tuple[str, Callable[[Json], Any]]]
    """How it can be sorted, by name."""


def _count(name: str) -> Callable[[Json], str]:
    return lambda row: f"{number(row, name):.0f}"


def _word(name: str) -> Callable[[Json], str]:
    return lambda row: str(at(row, name) or "")


def _yes(name: str) -> Callable[[Json], str]:
    return lambda row: "yes" if at(row, name) is True else ""


def _output(row: Json) -> str:
    limit = number(row, "max_new_tokens")
    return f"{number(row, 'output_tokens'):.0f}" + (f"/{limit:.0f}" if limit else "")


def _actors(reading: Reading) -> list[Json]:
    actors = at(reading.server, "actors")
    if not isinstance(actors, dict):
        return []
    return [{"name": name, **actor} for name, actor in actors.items() if isinstance(actor, dict)]


REQUESTS = Table(
    "requests",
    lambda reading: objects(reading.state, "live"),
    lambda row: f"{number(row, 'request'):.0f}",
    (
        Column("REQUEST", 0, _word("rid")),
        Column("STATE", 10, _word("state")),
        Column("OUTPUT", 11, _output),
        Column("AGE", 7, lambda row: seconds(number(row, "age_s"))),
        Column("PROMPT", 7, _count("prompt_tokens")),
        Column("CACHED", 7, _count("cached_tokens")),
        Column("RETRACTED", 9, _count("retractions")),
    ),
    (
        ("age", lambda row: -number(row, "age_s")),
        ("state", lambda row: str(at(row, "state"))),
        ("output", lambda row: -number(row, "output_tokens")),
        ("prompt", lambda row: -number(row, "prompt_tokens")),
        ("name", lambda row: str(at(row, "rid"))),
    ),
)
SESSIONS = Table(
    "sessions",
    lambda reading: objects(reading.state, "open_sessions"),
    lambda row: str(at(row, "session_id")),
    (
        Column("SESSION", 0, _word("session_id")),
        Column("STATE", 8, _word("state")),
        Column("TURNS", 6, _count("turns")),
        Column("LIVE", 5, _count("live_turns")),
        Column("TOKENS", 8, _count("tokens")),
    ),
    (
        ("name", lambda row: str(at(row, "session_id"))),
        ("turns", lambda row: -number(row, "turns")),
        ("tokens", lambda row: -number(row, "tokens")),
    ),
)
ADAPTERS = Table(
    "adapters",
    lambda reading: objects(reading.state, "loaded_adapters"),
    lambda row: str(at(row, "name")),
    (
        Column("ADAPTER", 0, _word("name")),
        Column("STATE", 9, _word("state")),
        Column("RESIDENT", 9, _yes("resident")),
        Column("PINNED", 7, _yes("pinned")),
    ),
    (("name", lambda row: str(at(row, "name"))), ("state", lambda row: str(at(row, "state")))),
)
ACTORS = Table(
    "actors",
    _actors,
    lambda row: str(at(row, "name")),
    (
        Column("ACTOR", 0, _word("name")),
        Column("WAITING", 8, _count("waiting_data")),
        Column("DELIVERED", 10, _count("delivered")),
        Column("REFUSED", 8, _count("rejected")),
        Column("DEAD", 6, _count("dead_letters")),
        Column("FAILED", 7, _count("contained")),
    ),
    (
        ("name", lambda row: str(at(row, "name"))),
        ("waiting", lambda row: -number(row, "waiting_data")),
        ("delivered", lambda row: -number(row, "delivered")),
    ),
)
TABLES = (REQUESTS, SESSIONS, ADAPTERS, ACTORS)


def ordered(table: Table, reading: Reading, order: int) -> list[Json]:
    """The rows, sorted in one of the table's orders; equals stay as the server lists them."""
    return sorted(table.rows(reading), key=table.orders[order % len(table.orders)][1])


def columns_in(table: Table, width: int) -> list[Column]:
    """The columns that fit, with the width that the first one gets."""
    name, *others = table.columns
    least = min(12, width)
    left, kept = width - 2 - least, list[Column]()
    for column in others:
        if left < column.width + 1:
            break
        left -= column.width + 1
        kept.append(column)
    return [name._replace(width=max(0, min(least + left, MOST_NAME))), *kept]


def title(columns: Sequence[Column]) -> Line:
    """The names of the columns."""
    return [Span("  " + _joined(columns, [column.title for column in columns]), Style.TITLE)]


def row(columns: Sequence[Column], cells: Json, *, chosen: bool) -> Line:
    """One row; the chosen one has a mark, so that it is seen without colours too."""
    text = _joined(columns, [column.cell(cells) for column in columns])
    return [Span(("> " if chosen else "  ") + text, Style.CHOSEN if chosen else Style.PLAIN)]


def _joined(columns: Sequence[Column], texts: Sequence[str]) -> str:
    first = padded(texts[0], columns[0].width)
    return " ".join(
        [first, *(padded(text, column.width, right=True) for column, text in zip(columns[1:], texts[1:], strict=True))]
    )
