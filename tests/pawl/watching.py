"""Readings of a server for the tests of `pawl top`, and a terminal that refuses what it does not know."""

from __future__ import annotations

import re
from typing import Any

from pawl.top.reading import Reading, Watched

URL = "http://127.0.0.1:30000"


def scheduler(**more: Any) -> dict[str, Any]:
    """What a scheduler at work says."""
    return {
        "requests": {"decoding": 2, "queued": 1},
        "serving": "serving",
        "waiting": 1,
        "running": 2,
        "in_flight": 1,
        "pages": {
            "total": 100,
            "free": 40,
            "owned": 25,
            "cached": 35,
            "deferred": 0,
            "quarantined": 0,
            "page_size": 16,
        },
        "slots": {"total": 8, "free": 6},
        "sessions": {"open": 1, "closing": 0},
        "weights": {"state": "serving", "version": "v7"},
        "counters": {"steps": 100, "generated_tokens": 200, "cached_tokens": 30, "by_cause": {"eos": 3, "length": 4}},
        "steps": {
            "phase_seconds": {"receive": 0.1, "plan": 0.2, "launch": 0.1, "commit": 0.2},
            "duration_seconds": {"total": 3.0},
            "prefill_tokens": 90,
        },
        "live": [live(1, "one", output_tokens=5), live(2, "two", output_tokens=90), live(3, "three", state="queued")],
    } | more


def live(request: int, rid: str, *, state: str = "decoding", output_tokens: int = 0) -> dict[str, Any]:
    return {
        "request": request,
        "rid": rid,
        "state": state,
        "prompt_tokens": 10 * request,
        "output_tokens": output_tokens,
        "max_new_tokens": 100,
        "cached_tokens": 0,
        "retractions": 0,
        "age_s": 10.0 - request,
    }


def reading(at: float = 1.0, state: dict[str, Any] | None = None, **more: Any) -> Reading:
    server = {"served_model_name": "ghost", "status": "ready", "open_requests": 3, "actors": {}}
    health = {"status": "ok", "trace": "ok"}
    return Reading(at, "12:00:00", server | more, scheduler() if state is None else state, health)


def watched(*looks: Reading) -> Watched:
    seen = Watched(URL)
    for look in looks or (reading(),):
        seen.add(look)
    return seen


ORDER = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


class Screen:
    """What a terminal would show. An order that `pawl top` has no business to give, a control character, or text past
    the right edge is an AssertionError."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.strict = True
        """Else what does not fit is cut off, as terminals do."""
        self.rows = [""] * height
        self.row = 0
        self.modes: set[str] = set()
        """Modes that are on: 1049 the other screen; and off where they are on by themselves: 25 cursor, 7 wrapping."""
        self.styles: set[str] = set()
        self._rest = ""

    def feed(self, data: bytes) -> None:
        """What the program has written."""
        text = self._rest + data.decode(errors="surrogateescape")
        cut = text.rfind("\x1b")
        whole = cut < 0 or ORDER.match(text, cut) is not None
        text, self._rest = (text, "") if whole else (text[:cut], text[cut:])
        at = 0
        for match in ORDER.finditer(text):
            self._write(text[at : match.start()])
            self._obey(*match.groups())
            at = match.end()
        self._write(text[at:])

    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)

    def _write(self, text: str) -> None:
        assert text.isprintable(), f"{text!r} is no text"
        if text:
            row = self.rows[self.row] + text
            assert len(row) <= self.width or not self.strict, f"{row!r} is too long"
            self.rows[self.row] = row[: self.width]

    def _obey(self, private: str, numbers: str, order: str) -> None:
        match private, numbers, order:
            case "", _, "H":
                row = int(numbers.split(";")[0]) - 1
                assert 0 <= row < self.height or not self.strict, f"row {row}"
                self.row = min(row, self.height - 1)
                self.rows[self.row] = ""
            case "", "", "K":
                pass  # the row was emptied when it was gone to
            case "", "", "J":
                self.rows[self.row + 1 :] = [""] * (self.height - self.row - 1)
            case "", "2", "J":
                self.rows = [""] * self.height
            case "", _, "m":
                self.styles.add(numbers)
            case "?", "1049", "h" | "l":
                self._set(numbers, order == "h")
            case "?", "25" | "7", "h" | "l":
                self._set(numbers, order == "l")
            case _:
                raise AssertionError(f"ESC [ {private}{numbers}{order}")

    def _set(self, mode: str, on: bool) -> None:
        (self.modes.add if on else self.modes.discard)(mode)
