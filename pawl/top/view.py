"""The screen: what a server says and what its watcher has chosen, as lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pawl.top.facts import facts
from pawl.top.keys import ALL_KEYS, Ui, rows_of
from pawl.top.reading import Watched, at
from pawl.top.table import columns_in, row, title
from pawl.top.text import Line, Span, Style, fitted

LEAST_ROWS = 4
"""Of the list, with its two headings, as far as there are so many."""
KEYS = "q quit  j/k choose  a abort  A abort all  p pause  c continue  f flush  s sort  v view  h help"


def screen(watched: Watched, ui: Ui, width: int, height: int, clock: str) -> list[list[Span]]:
    """At most `height` lines of at most `width` cells each; the last one says which keys there are, or what was asked.
    `clock`: the time of day."""
    head, foot = [*_head(watched, clock)], _foot(ui)
    if ui.help:
        middle: list[Line] = [[Span(keys.ljust(6), Style.TITLE), Span(does)] for keys, does in ALL_KEYS]
    else:
        room = max(height - len(head) - 1, 0)
        listed = _list(watched, ui, width, room)
        told = facts(watched, width)[: room - min(len(listed), LEAST_ROWS)]
        middle = [*told, *_list(watched, ui, width, room - len(told))]
    lines = [*[*head, *middle][: max(height - 1, 0)], foot]
    return _fit(lines[:height], width)


def snapshot(watched: Watched, width: int, clock: str) -> list[list[Span]]:
    """All there is to say, once, however long."""
    everything = len(rows_of(Ui(), watched)) + 2
    return _fit([*_head(watched, clock), *facts(watched, width), *_list(watched, Ui(), width, everything)], width)


def _fit(lines: Iterable[Line], width: int) -> list[list[Span]]:
    return [fitted(line, width) for line in lines]


def _head(watched: Watched, clock: str) -> Iterable[Line]:
    reading = watched.last
    status = "unreachable" if watched.lost is not None else "connecting"
    about: Sequence[str] = ()
    if reading is not None:
        status = status if watched.lost is not None else str(at(reading.server, "status") or "unknown")
        model, weights = at(reading.server, "served_model_name"), at(reading.state, "weights", "version")
        about = (*([str(model)] if model else []), *([f"weights {weights}"] if weights else []))
    style = Style.GOOD if status == "ready" else Style.WARN if status in ("paused", "connecting") else Style.BAD
    yield [Span("pawl top", Style.TITLE), *_spaced([Span(status, style), *map(Span, (*about, watched.url, clock))])]
    if watched.lost is not None:
        yield [Span(f"unreachable since {watched.lost.clock}: {watched.why}", Style.BAD)]
        if reading is not None:
            yield [Span(f"what follows is of {reading.clock}", Style.QUIET)]


def _spaced(spans: Iterable[Span]) -> Iterable[Span]:
    for span in spans:
        yield Span("  ")
        yield span


def _list(watched: Watched, ui: Ui, width: int, room: int) -> list[Line]:
    """At most `room` lines; the chosen row is among them."""
    table, reading, rows = ui.listing, watched.last, rows_of(ui, watched)
    if reading is None:
        return []
    order = table.orders[ui.order % len(table.orders)][0]
    heading = f"{len(rows)} {table.name} by {order}"
    if not reading.listed and table.name != "actors":
        heading = f"to list {table.name} takes the admin key (--admin-api-key)"
    lines: list[Line] = [[Span(heading, Style.QUIET)]]
    if rows:
        columns = columns_in(table, width)
        lines.append(title(columns))
        fitting = max(room - len(lines), 0)
        keys = [table.key(each) for each in rows]
        at_row = keys.index(ui.chosen) if ui.chosen in keys else min(ui.index, len(rows) - 1)
        first = max(0, min(at_row - fitting // 2, len(rows) - fitting))
        shown = range(first, min(first + fitting, len(rows)))
        lines += [row(columns, rows[index], chosen=keys[index] == ui.chosen) for index in shown]
    return lines[: max(room, 0)]


def _foot(ui: Ui) -> Line:
    if ui.asking is not None:
        return [Span(ui.asking.text, Style.WARN)]
    return [Span(ui.message, Style.WARN) if ui.message else Span(KEYS, Style.QUIET)]
