"""What a key does: pure functions from what is shown and a key to what is shown next, and what is to be done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from pawl.top.reading import Json, Watched, at
from pawl.top.table import REQUESTS, TABLES, Table, ordered

PAGE = 10
ESCAPE = "escape"
NAMED = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
    "\t": "v",
}
"""What terminals send for keys that are no characters."""
WHOLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO[\x20-\x7e]|\x1b[^\[O\x1b]|[^\x1b]")
"""One key."""
MOVES = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -PAGE, "page down": PAGE}
ENDS = {"home": 0, "g": 0, "end": -1, "G": -1}
ALL_KEYS = (
    ("j k", "choose, also with arrows, page up and page down, home (g) and end (G)"),
    ("a", "abort the chosen request"),
    ("A", "abort all requests, once more asked"),
    ("p", "pause: in place, retract, or abort"),
    ("c", "continue"),
    ("f", "flush the prefix cache"),
    ("s", "sort by another column"),
    ("v", "list requests, sessions, adapters, actors in turn; tab does the same"),
    ("h", "this"),
    ("q", "quit; ctrl-c does the same"),
)


class Do(msgspec.Struct, frozen=True):
    """A control message to send."""

    what: str
    """In words."""
    path: str
    body: Json


class Quit(msgspec.Struct, frozen=True):
    """Leave."""


Command: TypeAlias = Do | Quit


class Asking(msgspec.Struct, frozen=True):
    """A question; a key that is no answer takes it back."""

    text: str
    answers: Mapping[str, Do]


class Ui(msgspec.Struct, frozen=True):
    """What is shown, but for what the server says."""

    table: int = 0
    order: int = 0
    chosen: str | None = None
    """The key of a row. When the row has gone nothing is chosen: no other one takes its place under a finger."""
    index: int = 0
    """Where that row was last."""
    asking: Asking | None = None
    message: str = ""
    help: bool = False

    @property
    def listing(self) -> Table:
        return TABLES[self.table % len(TABLES)]


CONTINUE = Do("continue", "/continue_generation", {})
FLUSH = Do("flush", "/flush_cache", {})
ABORT_ALL = Asking(
    "abort all requests? y: yes, any other key: no", {"y": Do("abort all", "/abort_request", {"abort_all": True})}
)
PAUSE = Asking(
    "pause: i in place, r retract, a abort all, any other key: not",
    {
        key: Do(f"pause ({mode})", "/pause_generation", {"mode": mode})
        for key, mode in (("i", "in_place"), ("r", "retract"), ("a", "abort"))
    },
)


def press(ui: Ui, key: str, watched: Watched) -> tuple[Ui, Command | None]:
    """The key was pressed while this was shown."""
    answered = None if ui.asking is None else ui.asking.answers.get(key)
    if ui.asking is not None and key != "\x03":
        ui = msgspec.structs.replace(ui, asking=None, message="" if answered else "not done")
        return ui, answered
    ui = msgspec.structs.replace(ui, message="")
    match key:
        case "q" | "\x03":
            return ui, Quit()
        case "s":
            return msgspec.structs.replace(ui, order=(ui.order + 1) % len(ui.listing.orders)), None
        case "v":
            table = (ui.table + 1) % len(TABLES)
            return msgspec.structs.replace(ui, table=table, order=0, chosen=None, index=0), None
        case "h" | "?":
            return msgspec.structs.replace(ui, help=not ui.help), None
        case _ if key in MOVES or key in ENDS:
            return _moved(ui, key, watched), None
        case "a" | "A" | "p" | "c" | "f":
            return _told(ui, key, watched)
    return ui, None


def _told(ui: Ui, key: str, watched: Watched) -> tuple[Ui, Command | None]:
    """A key that is for the server."""
    if watched.lost is not None or watched.last is None:
        return msgspec.structs.replace(ui, message="the server does not answer"), None
    match key:
        case "A" | "p":
            return msgspec.structs.replace(ui, asking=ABORT_ALL if key == "A" else PAUSE), None
        case "c" | "f":
            return ui, CONTINUE if key == "c" else FLUSH
    row = chosen_row(ui, watched) if ui.listing is REQUESTS else None
    rid: Any = at(row, "rid")
    if not isinstance(rid, str):
        return msgspec.structs.replace(ui, message="choose a request first (j, k)"), None
    return ui, Do(f"abort {rid}", "/abort_request", {"rid": rid})


def chosen_row(ui: Ui, watched: Watched) -> Json | None:
    """The row that is chosen, if it is still there."""
    rows = rows_of(ui, watched)
    return next((row for row in rows if ui.listing.key(row) == ui.chosen), None)


def rows_of(ui: Ui, watched: Watched) -> list[Json]:
    """The list that is shown, in its order."""
    return [] if watched.last is None else ordered(ui.listing, watched.last, ui.order)


def _moved(ui: Ui, key: str, watched: Watched) -> Ui:
    keys = [ui.listing.key(row) for row in rows_of(ui, watched)]
    if not keys:
        return msgspec.structs.replace(ui, chosen=None, index=0)
    if key in ENDS:
        index = ENDS[key] % len(keys)
    elif ui.chosen in keys:
        index = keys.index(ui.chosen) + MOVES[key]
    else:
        index = ui.index
    index = min(max(index, 0), len(keys) - 1)
    return msgspec.structs.replace(ui, chosen=keys[index], index=index)


def decoded(typed: str) -> tuple[list[str], str]:
    """The keys in what a terminal sent, and the beginning of one of which the rest is still to come."""
    keys: list[str] = []
    at = 0
    while match := WHOLE.match(typed, at):
        at = match.end()
        key = NAMED.get(match[0], match[0])
        if not key.startswith("\x1b"):  # of a key that means nothing here
            keys.append(key)
    rest = typed[at:]
    if rest.startswith("\x1b\x1b"):
        keys.append(ESCAPE)
        more, rest = decoded(rest[1:])
        keys += more
    return keys, rest
