"""What is known of a run so far has room for any number of requests, and for what each has had elsewhere."""

from __future__ import annotations

from itertools import permutations

import msgspec
import numpy as np
import pytest

from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Started, Submitted, Transition
from pawl.lifecycle.states import Cause, Event, State
from tests.lifecycle.canaries import STORY
from tests.lifecycle.story import Segment, planned, submitted

ROWS = {0: 70, 63: 64, 64: 65, 200: 300, 201: 0}
"""Row -> output tokens that its request has had before."""


@pytest.mark.parametrize("order", list(permutations(ROWS))[::17])
def test_each_request_is_known_with_its_output_whatever_row_it_has(order: tuple[int, ...]) -> None:
    history = History()
    history.advance(next(record for record in STORY.records if isinstance(record, Started)))
    first = next(record for record in STORY.records if isinstance(record, Submitted))
    for row in order:
        prompt, output = np.arange(row + 1, dtype=np.int32), np.arange(row, row + ROWS[row], dtype=np.int32)
        sampling = msgspec.structs.replace(first.sampling, max_new_tokens=row + 400)
        asked = {"request": row + 9, "rid": f"r{row}", "row": row, "sampling": sampling}
        history.advance(msgspec.structs.replace(first, **asked, tokens=prompt, output=output))
    assert history.num_rows == 202
    assert history.open == {row + 9: row for row in order}
    for row, count in ROWS.items():
        assert history.output(row).tolist() == list(range(row, row + count))
        columns = history.request, history.num_prompt, history.num_wanted, history.num_output
        assert [int(column[row]) for column in columns] == [row + 9, row + 1, row + 400, count]


def test_what_a_request_went_through_is_known_of_it_and_of_no_other() -> None:
    history = History()
    history.advance(next(record for record in STORY.records if isinstance(record, Started)))

    def fates() -> list[str]:
        return ["".join(name[0] for name, value in history.fate(row)._asdict().items() if value) for row in range(3)]

    def came(number: int, row: int) -> Submitted:
        return msgspec.structs.replace(submitted(number, f"r{number}", [1, 2, 3]), row=row)

    def moved(row: int, source: State, event: Event, target: State, num_cached: int | None = None) -> None:
        history.advance(Transition(row + 10, row, source, event, target, Cause.NONE, 0, 1.0, num_cached))

    def ran(step: int, *rows: int) -> list[str]:
        history.advance(planned(step, 1.0, *(Segment(row, 0, 3, samples=False) for row in rows)))
        return fates()

    for row in range(3):
        history.advance(came(row + 10, row))
        moved(row, State.NEW, Event.SUBMIT, State.QUEUED)
    moved(0, State.QUEUED, Event.ADMIT, State.PREFILLING, 0)
    assert ran(1, 0) == ["", "", ""]
    moved(1, State.QUEUED, Event.ADMIT, State.PREFILLING, 2)
    assert ran(2, 1) == ["", "w", ""]
    moved(2, State.QUEUED, Event.ADMIT, State.PREFILLING, 0)
    assert ran(3, 2, 0) == ["b", "w", "b"]
    moved(1, State.PREFILLING, Event.RETRACT, State.QUEUED)
    assert ran(4, 2) == ["b", "rw", "b"]
    moved(0, State.PREFILLING, Event.ABORT, State.ABORTED)
    history.advance(came(20, 0))
    assert fates() == ["", "rw", "b"], "whoever has the row next has gone through nothing"
