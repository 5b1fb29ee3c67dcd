"""What is known of a run so far has room for any number of requests, and for what each has had elsewhere."""

from __future__ import annotations

from itertools import permutations

import msgspec
import numpy as np
import pytest

from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Started, Submitted
from tests.lifecycle.canaries import STORY

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
