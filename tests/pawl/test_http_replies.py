"""What takes long to write is written beside the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pawl.actors.messages.generate import TokenLogprob
from pawl.actors.sink import Delta
from pawl.http.replies import MANY_CHARACTERS, MANY_SCORES, beside

SCORE = TokenLogprob(1, -1.0, "x")


@pytest.mark.parametrize(
    ("delta", "elsewhere"),
    [
        (Delta("x" * MANY_CHARACTERS), False),
        (Delta("x" * (MANY_CHARACTERS + 1)), True),
        (Delta("", logprobs=(SCORE,) * MANY_SCORES), False),
        (Delta("", logprobs=(SCORE,) * (MANY_SCORES + 1)), True),
    ],
)
def test_much_text_and_many_scores_are_written_in_another_thread(delta: Delta, elsewhere: bool) -> None:
    written: list[int] = []

    def write() -> bytes:
        written.append(threading.get_ident())
        return b"done"

    assert asyncio.run(beside([delta], write)) == b"done"
    assert (written != [threading.get_ident()]) == elsewhere
